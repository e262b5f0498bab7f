"""Numbers of visits, and seeds of all that is drawn for training examples by a position."""

from typing import Any

import tensorflow as tf

_FILES, _RECORDS, CAPTION, IMAGE, MIXTURE = 1, 2, 3, 4, 5
# Numbers of seeds for each run's seed, more than there are purposes.
_PURPOSES = 8
# Distance between the numbers of visits of two folders: more than any run visits.
_VISITS = 1 << 40


def of(seed: int, purpose: int) -> int:
    """Returns a run's seed for one of the purposes that are drawn by the number of a visit."""
    return seed * _PURPOSES + purpose


def first_visit(source: int) -> int:
    """Returns the number of the first visit of one of several folders."""
    return source * _VISITS


def numbered(dataset: Any, first: tf.Tensor | int = 0) -> Any:
    """Returns the elements of a dataset behind their numbers, as `enumerate` does.

    That rewrites the graph whenever a dataset is made, which takes a millisecond, 30 times as long.
    """
    return tf.data.Dataset.zip((tf.data.Dataset.range(first, tf.int64.max), dataset))


def order_of_shards(seed: int, epoch: tf.Tensor, count: int) -> tf.Tensor:
    """Returns a permutation of so many shards, int32."""
    return tf.argsort(tf.random.stateless_uniform([count], _of_epoch(seed, epoch) + _FILES))


def shuffled(
    dataset: tf.data.Dataset,
    size: tf.Tensor | int,
    seed: int,
    epoch: tf.Tensor,
    place: tf.Tensor | None = None,
) -> tf.data.Dataset:
    """Returns records in a random order, by a buffer of `size` records.

    Args:
        dataset: The records.
        size: Records of the buffer.
        seed: The run's seed.
        epoch: The epoch.
        place: A number that tells these records from others of the epoch; None for all of it.
    """
    pair = _of_epoch(seed, epoch) + _RECORDS
    if place is not None:
        pair = tf.random.experimental.stateless_fold_in(pair, place)
    drawn = tf.random.stateless_uniform([], pair, maxval=2**31 - 1, dtype=tf.int64)
    # Seeds this function's graph: a graph seed of 0 may not meet an op seed that is a tensor.
    tf.random.set_seed(1)
    return dataset.shuffle(
        size,  # pyright: ignore[reportArgumentType]  # Tensors work too.
        seed=drawn,  # pyright: ignore[reportArgumentType]
    )


def _of_epoch(seed: int, epoch: tf.Tensor) -> tf.Tensor:
    return tf.stack([tf.constant(seed, tf.int64), epoch])
