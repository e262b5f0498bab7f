"""Supervised classification: the head learns the labels of the records."""

import tensorflow as tf

from sigline.trainer.config import ClassifyConfig
from sigline.trainer.config.objectives import check_tree
from sigline.trainer.inputs import needs
from sigline.trainer.losses import cross_entropy, semantic_softmax
from sigline.trainer.models import two_tower
from sigline.trainer.objectives import base

_TARGETS, _LABELLED = "classify_targets", "classify_labelled"


class Classify(base.Objective):
    """Cross-entropy of the head's logits and the labels."""

    over = "examples"

    def __init__(self, config: ClassifyConfig, context: base.Context):
        super().__init__(config.name, config.weight)
        self._config = config
        image = context.config.image
        assert image.classes is not None
        self._classes = image.classes
        check_tree((config,), context.labels)
        self._levels = None
        if config.loss == "semantic":
            assert context.labels is not None
            self._levels = semantic_softmax.levels_of(context.labels.parents)
        self._required = config.unlabelled == "refuse"
        labels = needs.Labels(image.classes, config.labels_per_image, self._required)
        self._needs = needs.of_pairs(image, None)._replace(labels=labels)

    def needs(self) -> needs.Needs:
        """Returns a view and labels."""
        return self._needs

    def targets(self, inputs: base.Tensors) -> dict[str, tf.Tensor]:
        """Returns the targets `(batch, classes)`, made dense on the device."""
        labels, smoothing = inputs[needs.LABEL], self._config.smoothing
        if self._levels is not None:
            targets = semantic_softmax.semantic_targets(
                labels, levels=self._levels, smoothing=smoothing
            )
        else:
            make = cross_entropy.softmax_targets
            if self._config.loss == "sigmoid":
                make = cross_entropy.sigmoid_targets
            targets = make(labels, classes=self._classes, smoothing=smoothing)
        return {_TARGETS: targets}

    def count(self, inputs: base.Tensors) -> tf.Tensor:
        """Returns how many examples are labelled."""
        return tf.reduce_sum(_labelled(inputs))

    def outputs(self, call: base.Call) -> dict[str, tf.Tensor]:
        """Returns logits, targets, and which examples are labelled."""
        return {
            "logits": call.image()[two_tower.CLASS_HEAD],
            "targets": call.inputs[_TARGETS],
            "labelled": _labelled(call.inputs),
        }

    def loss(self, outputs: base.Tensors, call: base.Call) -> base.Outcome:
        """Returns the mean cross-entropy of labelled examples, and how many are right.

        An example is right if the best class is one of its largest targets; with a tree, at each
        level that it reaches, and the mean over these levels counts.
        """
        labelled = outputs["labelled"]

        def share(values: tf.Tensor) -> tf.Tensor:
            # A batch without a label has nothing to learn, and is no error.
            return tf.reduce_sum(values * labelled) / tf.maximum(call.count, 1.0)

        losses, right = self._measured(outputs["logits"], outputs["targets"])
        return base.Outcome({base.LOSS: share(losses), "accuracy": share(right)})

    def _measured(self, logits: tf.Tensor, targets: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns loss and rightness of each example, both `(batch,)`."""
        if self._levels is not None:
            return (
                semantic_softmax.semantic_cross_entropy(logits, targets, levels=self._levels),
                semantic_softmax.semantic_accuracy(logits, targets, levels=self._levels),
            )
        loss = cross_entropy.softmax_cross_entropy
        if self._config.loss == "sigmoid":
            loss = cross_entropy.sigmoid_cross_entropy
        best = tf.one_hot(tf.argmax(logits, axis=-1), self._classes)
        largest = tf.reduce_max(targets, axis=-1)
        right = tf.cast(tf.reduce_sum(best * targets, axis=-1) >= largest, tf.float32)
        return loss(logits, targets), right


def _labelled(inputs: base.Tensors) -> tf.Tensor:
    """Returns 1 for each example that has a label, else 0."""
    return tf.cast(tf.reduce_any(inputs[needs.LABEL] >= 0, axis=1), tf.float32)
