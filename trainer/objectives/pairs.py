"""The objective over all pairs of the global batch: SigLIP's sigmoid and CLIP's softmax loss."""

import tensorflow as tf

from sigline.trainer.config import PairsConfig
from sigline.trainer.inputs import needs
from sigline.trainer.losses import pair_losses
from sigline.trainer.losses.negatives import Negatives
from sigline.trainer.models import two_tower
from sigline.trainer.objectives import base


class Pairs(base.Objective):
    """Brings images and the texts that belong to them together, and others apart."""

    over = "pairs"

    def __init__(self, config: PairsConfig, context: base.Context):
        super().__init__(config.name, config.weight)
        self._config = config
        self._needs = needs.of_pairs(context.config.image, context.tokenizer)
        self._seed = context.config.seed

    def needs(self) -> needs.Needs:
        """Returns a view and a text."""
        return self._needs

    def outputs(self, call: base.Call) -> dict[str, tf.Tensor]:
        """Returns unit embeddings of images and texts."""
        return {needs.IMAGE: call.image()[two_tower.EMBEDDING], needs.TEXT: call.text()}

    def loss(self, outputs: base.Tensors, call: base.Call) -> base.Outcome:
        """Returns the loss of all pairs and the mean logits; see `losses.pair_losses`."""
        image, text = outputs[needs.IMAGE], outputs[needs.TEXT]
        temperature, bias = base.similarity(call.parameters)
        options = {"chunk_size": self._config.chunk_size, "exchange": call.exchange}
        if self._config.loss == "softmax":
            loss_and_means = pair_losses.softmax_loss(
                image, text, temperature=temperature, **options
            )
            # The same bias in all logits changes no softmax: its gradient is zero.
            loss_and_means = loss_and_means._replace(loss=loss_and_means.loss + 0.0 * bias)
        else:
            loss_and_means = pair_losses.sigmoid_loss(
                image,
                text,
                temperature=temperature,
                bias=bias,
                negatives=self._negatives(call.step),
                **options,
            )
        scalars = loss_and_means._asdict()
        return base.Outcome({base.LOSS: scalars.pop(base.LOSS)}, scalars)

    def _negatives(self, step: tf.Tensor) -> Negatives | None:
        if self._config.negatives == "all":
            return None
        return Negatives(
            self._config.negatives,
            per_image=self._config.negatives_per_image,
            # The seed is the step: every step chooses anew, and a step that is repeated chooses the
            # same.
            seed=tf.cast(step, tf.int32) + self._seed,
        )
