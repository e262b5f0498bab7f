"""Class ids of records as rows of equal length, checked."""

import tensorflow as tf

from sigline.trainer.inputs.needs import Labels


def row(ids: tf.Tensor, labels: Labels) -> tf.Tensor:
    """Returns the ids of one record, filled with -1.

    Args:
        ids: The record's class ids, int64 of shape `(labels,)`.
        labels: What they may be.

    Returns:
        Shape `(labels.most,)`, int32.

    Raises:
        tf.errors.InvalidArgumentError: If an id is no class, or there are too many of them or none.
    """
    count = tf.size(ids)
    checks = [
        tf.debugging.Assert(
            tf.reduce_all((ids >= 0) & (ids < labels.classes)),
            [f"label must be at least 0 and below image.classes={labels.classes}"],
        ),
        tf.debugging.Assert(
            count <= labels.most,
            [f"no more labels than labels_per_image={labels.most} are read"],
        ),
        tf.debugging.Assert(
            (count > 0) | (not labels.required), ["no label, which unlabelled=skip allows"]
        ),
    ]
    with tf.control_dependencies([check for check in checks if check is not None]):
        filled = tf.pad(tf.cast(ids, tf.int32), [[0, labels.most - count]], constant_values=-1)
    return tf.ensure_shape(filled, (labels.most,))
