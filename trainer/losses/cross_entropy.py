"""Losses of classes: softmax and sigmoid cross-entropy with dense targets."""

import tensorflow as tf


def softmax_targets(labels: tf.Tensor, *, classes: int, smoothing: float = 0.0) -> tf.Tensor:
    """Returns distributions over classes that give an example's labels equal parts.

    Args:
        labels: Class ids, int32 `(batch, most)`, filled with -1.
        classes: How many classes there are.
        smoothing: Share that is spread over all classes, those of the labels too.

    Returns:
        Shape `(batch, classes)`, float32; a row without labels is zero but for the smoothing.

    Source: arXiv 1512.00567, section 7.
    """
    hot = _multi_hot(labels, classes)
    shares = tf.math.divide_no_nan(hot, tf.reduce_sum(hot, axis=1, keepdims=True))
    return (1.0 - smoothing) * shares + smoothing / classes


def sigmoid_targets(labels: tf.Tensor, *, classes: int, smoothing: float = 0.0) -> tf.Tensor:
    """Returns for each class whether an example has it.

    Args:
        labels: Class ids, int32 `(batch, most)`, filled with -1.
        classes: How many classes there are.
        smoothing: Share of each target that is replaced by one half.

    Returns:
        Shape `(batch, classes)`, float32.
    """
    return (1.0 - smoothing) * _multi_hot(labels, classes) + 0.5 * smoothing


def _multi_hot(labels: tf.Tensor, classes: int) -> tf.Tensor:
    # An id of -1 is hot nowhere, and one that stands twice counts once.
    return tf.reduce_max(tf.one_hot(labels, classes), axis=1)


def softmax_cross_entropy(logits: tf.Tensor, targets: tf.Tensor) -> tf.Tensor:
    """Returns -sum_c t_c * log softmax(logits)_c of each example.

    Args:
        logits: Shape `(batch, classes)`, any float type.
        targets: As many, float32; no gradient flows to them.

    Returns:
        Shape `(batch,)`, float32.

    Raises:
        ValueError: If the shapes differ.
    """
    logits, targets = _checked(logits, targets)
    return -tf.reduce_sum(targets * tf.nn.log_softmax(logits), axis=-1)


def sigmoid_cross_entropy(logits: tf.Tensor, targets: tf.Tensor) -> tf.Tensor:
    """Returns sum_c t_c * softplus(-l_c) + (1 - t_c) * softplus(l_c) of each example.

    The sum over classes is not divided by their number, as in big_vision.

    Args:
        logits: Shape `(batch, classes)`, any float type.
        targets: As many, float32; no gradient flows to them.

    Returns:
        Shape `(batch,)`, float32.

    Raises:
        ValueError: If the shapes differ.

    Source: arXiv 2006.07159, section 3.
    """
    logits, targets = _checked(logits, targets)
    losses = tf.nn.sigmoid_cross_entropy_with_logits(labels=targets, logits=logits)
    return tf.reduce_sum(losses, axis=-1)


def _checked(logits: tf.Tensor, targets: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    if not logits.shape.is_compatible_with(targets.shape):
        raise ValueError(
            "logits and targets must have the same shape (batch, classes). "
            f"Received: logits.shape={logits.shape}, targets.shape={targets.shape}"
        )
    return tf.cast(logits, tf.float32), tf.stop_gradient(tf.cast(targets, tf.float32))
