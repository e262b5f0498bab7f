"""Mixup: pixels and targets of neighbours in a batch, mixed on the device."""

from collections.abc import Collection, Mapping

import tensorflow as tf


def mixed_up(
    inputs: Mapping[str, tf.Tensor],
    names: Collection[str],
    *,
    concentration: float,
    seed: tf.Tensor,
) -> dict[str, tf.Tensor]:
    """Mixes every example with the one before it on the replica, all by the same share.

    Args:
        inputs: What a batch holds.
        names: What of it is mixed: views of images, and dense targets.
        concentration: p of Beta(p, p), of which a draw or its complement, the larger of them, is
            the share that an example keeps.
        seed: Two integers, the same on all replicas.

    Returns:
        The batch, with float32 in place of what is mixed.

    Raises:
        ValueError: If the replica has one example.

    Source: arXiv 1710.09412.
    """
    if any(inputs[name].shape[0] == 1 for name in names):
        raise ValueError(
            "data.mixup needs at least two images on each replica. Received: a batch of 1 each"
        )
    share = _upper_beta(concentration, tf.random.stateless_uniform([], seed))
    return {name: mixed(x, share) if name in names else x for name, x in inputs.items()}


def mixed(values: tf.Tensor, share: float | tf.Tensor) -> tf.Tensor:
    """Returns the share of each example and the rest of the one before it, float32.

    Args:
        values: Shape `(batch, ...)`, any type of numbers.
        share: What an example keeps, a scalar.
    """
    values = tf.cast(values, tf.float32)
    return share * values + (1.0 - share) * tf.roll(values, 1, axis=0)


def _upper_beta(concentration: float, uniform: tf.Tensor) -> tf.Tensor:
    """Returns max(a, 1 - a) of a from Beta(p, p), by the inverse of its distribution.

    XLA has no sampler of Gamma or Beta, but the distribution, which bisection inverts.
    """
    if concentration == 1.0:
        return 0.5 + 0.5 * uniform
    p, target = tf.constant(concentration), 0.5 + 0.5 * uniform

    def halve(low, high):
        middle = 0.5 * (low + high)
        below = tf.math.betainc(p, p, middle) < target
        return tf.where(below, middle, low), tf.where(below, high, middle)

    low, high = tf.while_loop(
        lambda low, high: True,
        halve,
        (tf.constant(0.5), tf.constant(1.0)),
        # 24 halvings exhaust the precision of a float32 in [0.5, 1].
        maximum_iterations=24,
    )
    return 0.5 * (low + high)
