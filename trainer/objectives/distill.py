"""Distillation: what a frozen model says of the same examples is the target."""

import tensorflow as tf

from sigline.trainer.config import DistillConfig
from sigline.trainer.inputs import needs
from sigline.trainer.losses import divergence, pair_labels, pair_losses
from sigline.trainer.models import two_tower
from sigline.trainer.objectives import base, frozen


def make(config: DistillConfig, context: base.Context) -> base.Objective:
    """Returns the objective that a configuration names by its target."""
    return (DistillClasses if config.target == "classes" else DistillPairs)(config, context)


class DistillClasses(base.Objective):
    """The student's head learns the teacher's distribution over classes, or its best class."""

    over = "examples"

    def __init__(self, config: DistillConfig, context: base.Context):
        super().__init__(config.name, config.weight)
        self._config = config
        own = needs.of_pairs(context.config.image, None)
        self._needs = needs.merged([own, context.frozen[config.teacher].own])

    def needs(self) -> needs.Needs:
        """Returns a view, and the teacher's where it is another one."""
        return self._needs

    def outputs(self, call: base.Call) -> dict[str, tf.Tensor]:
        """Returns the logits of both."""
        theirs = call.frozen(self._config.teacher)[two_tower.CLASSES]
        return {"student": call.image()[two_tower.DISTILLATION_HEAD], "teacher": theirs}

    def loss(self, outputs: base.Tensors, call: base.Call) -> base.Outcome:
        """Returns the mean divergence, or cross-entropy; see `losses.divergence`."""
        if self._config.hard:
            losses = divergence.hard_cross_entropy(outputs["teacher"], outputs["student"])
        else:
            losses = divergence.kl_divergence(
                outputs["teacher"], outputs["student"], temperature=self._config.temperature
            )
        return base.Outcome({base.LOSS: tf.reduce_sum(losses) / call.count})


class DistillPairs(base.Objective):
    """The student learns the probabilities that the teacher gives to the pairs of the batch."""

    over = "pairs"

    def __init__(self, config: DistillConfig, context: base.Context):
        super().__init__(config.name, config.weight)
        self._config = config
        own = needs.of_pairs(context.config.image, context.tokenizer)
        self._needs = needs.merged([own, context.frozen[config.teacher].own])

    def needs(self) -> needs.Needs:
        """Returns a view and a text, and the teacher's where they are others."""
        return self._needs

    def outputs(self, call: base.Call) -> dict[str, tf.Tensor]:
        """Returns unit embeddings of both."""
        theirs = call.frozen(self._config.teacher)
        return {
            "image": call.image()[two_tower.EMBEDDING],
            "text": call.text(),
            "teacher_image": theirs[two_tower.EMBEDDING],
            "teacher_text": theirs[frozen.TEXT],
        }

    def loss(self, outputs: base.Tensors, call: base.Call) -> base.Outcome:
        """Returns the sigmoid loss with the teacher's probabilities as soft targets."""
        theirs = call.frozen_scalars(self._config.teacher)
        labels = pair_labels.from_teacher(
            outputs["teacher_image"],
            outputs["teacher_text"],
            temperature=theirs["temperature"],
            bias=theirs["bias"],
        )
        temperature, bias = base.similarity(call.parameters)
        loss_and_means = pair_losses.sigmoid_loss(
            outputs["image"],
            outputs["text"],
            temperature=temperature,
            bias=bias,
            labels=labels,
            chunk_size=self._config.chunk_size,
            exchange=call.exchange,
        )
        return base.Outcome({base.LOSS: loss_and_means.loss})
