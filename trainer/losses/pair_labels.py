"""Labels of all pairs of the global batch, computed block by block where they are needed.

The identity, image i belongs to text i and to no other, is the losses' default and needs nothing
from here. Everything else is a function of what each image and each text carries: the features of
the texts travel with them to the images of other replicas.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import tensorflow as tf


@dataclass(frozen=True)
class PairLabels:
    """Labels of all pairs of the global batch.

    Attributes:
        image: Features of this replica's images, a structure of tensors `(batch, ...)`.
        text: Features of this replica's texts, likewise.
        block: `block(image, text) -> (targets, weights)`, both of shape `(texts, images)` and
            float32: targets in [0, 1] say how much the pair belongs together, weights multiply its
            loss, and `weights` may be None for all ones. It gets all images and some of the texts,
            of any replica.
    """

    image: Any
    text: Any
    block: Callable[[Any, Any], tuple[tf.Tensor, tf.Tensor | None]]

    def checked_block(self, text: Any, shape: tf.TensorShape) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns targets, and weights or a scalar one, of all images and some texts.

        Args:
            text: Features of the texts.
            shape: `(texts, images)`.

        Raises:
            ValueError: If the targets or the weights have another shape, which would broadcast.
        """
        targets, weights = self.block(self.image, text)
        for name, x in (("targets", targets), ("weights", weights)):
            if x is not None and not x.shape.is_compatible_with(shape):
                raise ValueError(
                    f"{name} of labels must have the shape (texts, images) = {shape}. "
                    f"Received: {name}.shape={x.shape}. Features must have one row for each image "
                    "or text, and ids no other axis."
                )
        return targets, tf.ones(()) if weights is None else weights

    def without_gradient(self) -> "PairLabels":
        """Returns the same labels as constants."""
        image, text = tf.nest.map_structure(tf.stop_gradient, (self.image, self.text))
        return PairLabels(image, text, self.block)


def same_group(image: tf.Tensor, text: tf.Tensor) -> PairLabels:
    """Returns labels by which a pair belongs together if its group ids are equal.

    For several captions of a picture, near-duplicates, or equal captions.

    Args:
        image: Group ids of the images, shape `(batch,)`, int32 or int64.
        text: Group ids of the texts, of the same type.
    """

    def block(image, text):
        return tf.cast(text[:, tf.newaxis] == image, tf.float32), None

    return PairLabels(image, text, block)


def from_teacher(
    image: tf.Tensor, text: tf.Tensor, *, temperature: tf.Tensor, bias: tf.Tensor
) -> PairLabels:
    """Returns soft targets: the probabilities that a two-tower teacher gives to the pairs.

    Args:
        image: The teacher's unit embeddings of the images, shape `(batch, teacher_dim)`.
        text: Its unit embeddings of the texts.
        temperature: The teacher's, a scalar.
        bias: The teacher's, a scalar.
    """
    temperature, bias = tf.cast(temperature, tf.float32), tf.cast(bias, tf.float32)

    def block(image, text):
        image, text = tf.cast(image, tf.float32), tf.cast(text, tf.float32)
        products = tf.matmul(text, image, transpose_b=True)
        return tf.sigmoid(temperature * products + bias), None

    return PairLabels(image, text, block)


def from_matrix(
    targets: tf.Tensor, *, first_row: tf.Tensor, weights: tf.Tensor | None = None
) -> PairLabels:
    """Returns labels that are given whole, for small batches and studies.

    Args:
        targets: This replica's images times all texts of the global batch, in the order of the
            replicas, shape `(batch, global_batch)`.
        first_row: Position of this replica's first pair in the global batch, an int32 scalar.
        weights: As `targets`; None for all ones.
    """
    batch = tf.shape(targets)[0]
    image = (targets,) if weights is None else (targets, weights)
    positions = first_row + tf.range(batch)

    def block(image, text):
        chosen = [tf.transpose(tf.gather(tf.cast(x, tf.float32), text, axis=1)) for x in image]
        return chosen[0], chosen[1] if len(chosen) > 1 else None

    return PairLabels(image, positions, block)


def masked(labels: PairLabels, *, image: tf.Tensor, text: tf.Tensor) -> PairLabels:
    """Returns labels with some rows taken out, such as padding: their pairs have no loss.

    The loss is still divided by the global batch size.

    Args:
        labels: The labels of all pairs.
        image: Which images count, shape `(batch,)`, bool.
        text: Which texts count, shape `(batch,)`, bool.
    """

    def block(image, text):
        inner_image, image_counts = image
        inner_text, text_counts = text
        targets, weights = labels.block(inner_image, inner_text)
        counts = text_counts[:, tf.newaxis] * image_counts
        return targets, counts if weights is None else weights * counts

    # Cast to numbers, since collectives do not move booleans.
    image, text = tf.cast(image, tf.float32), tf.cast(text, tf.float32)
    return PairLabels((labels.image, image), (labels.text, text), block)


def identity(batch: Any, replica_id: tf.Tensor) -> PairLabels:
    """Returns the identity in the general form, for what builds upon other labels.

    Args:
        batch: Pairs of this replica; all replicas must have equally many.
        replica_id: Number of the replica, an int32 scalar.
    """
    positions = replica_id * batch + tf.range(batch)
    return same_group(positions, positions)
