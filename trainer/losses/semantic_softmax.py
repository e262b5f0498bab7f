"""Semantic softmax: a softmax for each level of a tree of classes (arXiv 2104.10972).

A label stands for its class and for all classes above it. At every level down to that of its class
the one of these that is on the level is the target; the levels below do not count.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from sigline.schemas import class_tree

# Largest weight of a level, as in the authors' code.
_MAX_WEIGHT = 20.0


class Levels(NamedTuple):
    """A tree of classes by its levels, the top first.

    Attributes:
        order: Class ids, those of a level side by side, shape `(classes,)`.
        sizes: Number of classes of each level.
        ancestors: For each level and class, the place within the level of the class itself or of
            the one above it; -1 for classes that end higher. Shape `(levels, classes)`.
        weights: Of the levels in the loss.
    """

    order: np.ndarray
    sizes: tuple[int, ...]
    ancestors: np.ndarray
    weights: tuple[float, ...]


def levels_of(parents: Sequence[int]) -> Levels:
    """Returns the levels of a tree.

    The weight of a level is the number of all classes over that of classes at the level or below
    it, at most 20: the fewer classes reach a level, the more each counts there.

    Args:
        parents: For each class the id of the class above it, or -1; see `class_tree.check`.
    """
    level = np.array(class_tree.levels(parents))
    # Within a level by class id.
    order = np.argsort(level, kind="stable")
    sizes = np.bincount(level)
    place = np.empty(len(level), np.int32)
    place[order] = np.concatenate([np.arange(size) for size in sizes])
    ancestors = np.full((len(sizes), len(level)), -1, np.int32)
    for number in order:
        parent = parents[number]
        if parent != class_tree.ROOT:
            ancestors[:, number] = ancestors[:, parent]
        ancestors[level[number], number] = place[number]
    reaching = np.cumsum(sizes[::-1])[::-1]
    weights = tuple(min(len(level) / int(count), _MAX_WEIGHT) for count in reaching)
    return Levels(order, tuple(int(size) for size in sizes), ancestors, weights)


def semantic_targets(labels: tf.Tensor, *, levels: Levels, smoothing: float = 0.0) -> tf.Tensor:
    """Returns a distribution over the classes of each level that the labels reach.

    Several labels of an example have equal parts of it, at the levels that they reach.

    Args:
        labels: Class ids, int32 `(batch, most)`, filled with -1.
        levels: The tree.
        smoothing: Share that is spread over all classes of a level, at the levels that are reached.

    Returns:
        Shape `(batch, classes)`, float32, in the order of class ids; a row without labels is zero.
        They are linear in the labels' parts, so that mixup may mix them.

    Source: arXiv 2104.10972, section 3.2.
    """
    parts = tf.expand_dims(_parts(labels), axis=2)
    by_level = []
    for ancestors, size in zip(levels.ancestors, levels.sizes, strict=True):
        # A label of -1 has a part of zero, whatever it is looked up as.
        places = tf.gather(tf.constant(ancestors), tf.maximum(labels, 0))
        targets = tf.reduce_sum(parts * tf.one_hot(places, size), axis=1)
        reached = tf.reduce_sum(targets, axis=1, keepdims=True)
        by_level.append((1.0 - smoothing) * targets + smoothing / size * reached)
    return tf.gather(tf.concat(by_level, axis=1), np.argsort(levels.order), axis=1)


def _parts(labels: tf.Tensor) -> tf.Tensor:
    """Returns the part of each label of an example, `(batch, most)`; none of one that repeats."""
    same = tf.equal(labels[:, :, tf.newaxis], labels[:, tf.newaxis, :])
    most: Any = labels.shape[1]
    earlier = np.tri(most, k=-1, dtype=bool)
    counts = tf.cast((labels >= 0) & ~tf.reduce_any(same & earlier, axis=2), tf.float32)
    return tf.math.divide_no_nan(counts, tf.reduce_sum(counts, axis=1, keepdims=True))


def semantic_cross_entropy(logits: tf.Tensor, targets: tf.Tensor, *, levels: Levels) -> tf.Tensor:
    """Returns -sum_l w_l sum_(c on l) t_c * log softmax_l(logits)_c of each example.

    A level that an example does not reach adds nothing, and still counts in a mean over examples.
    The released code differs: it drops the deepest level and levels of one class, and then takes
    the weights by position. Here the deepest level counts, and each level has its own weight; one
    of a single class adds zero.

    Args:
        logits: Shape `(batch, classes)`, any float type.
        targets: As many, float32; no gradient flows to them. See `semantic_targets`.
        levels: The tree.

    Returns:
        Shape `(batch,)`, float32.

    Raises:
        ValueError: If the shapes differ, or are not of the tree's classes.

    Source: arXiv 2104.10972, section 3.2.
    """
    classes = len(levels.order)
    if not (logits.shape[-1] == targets.shape[-1] == classes):
        raise ValueError(
            f"logits and targets must be of {classes} classes, those of the tree. "
            f"Received: logits.shape={logits.shape}, targets.shape={targets.shape}"
        )
    losses = [
        -weight * tf.reduce_sum(of_level * tf.nn.log_softmax(scores), axis=-1)
        for weight, scores, of_level in zip(
            levels.weights,
            _split(tf.cast(logits, tf.float32), levels),
            _split(tf.stop_gradient(tf.cast(targets, tf.float32)), levels),
            strict=True,
        )
    ]
    return tf.add_n(losses)


def semantic_accuracy(logits: tf.Tensor, targets: tf.Tensor, *, levels: Levels) -> tf.Tensor:
    """Returns at how many of the levels that an example reaches its best class is right, a share.

    A class is right where it is one of the largest targets of its level.

    Args:
        logits: As in `semantic_cross_entropy`.
        targets: As in `semantic_cross_entropy`.
        levels: The tree.

    Returns:
        Shape `(batch,)`, float32; zero for an example without labels.
    """
    right, reached = [], []
    for scores, of_level in zip(_split(logits, levels), _split(targets, levels), strict=True):
        best = tf.gather(of_level, tf.argmax(scores, axis=-1), batch_dims=1)
        largest = tf.reduce_max(of_level, axis=-1)
        reached.append(tf.cast(largest > 0, tf.float32))
        right.append(tf.cast(best >= largest, tf.float32) * reached[-1])
    return tf.math.divide_no_nan(tf.add_n(right), tf.add_n(reached))


def semantic_probabilities(logits: tf.Tensor, *, levels: Levels) -> tf.Tensor:
    """Returns the probability of each class among those of its level, `(batch, classes)`."""
    by_level = [tf.nn.softmax(scores) for scores in _split(logits, levels)]
    return tf.gather(tf.concat(by_level, axis=1), np.argsort(levels.order), axis=1)


def _split(values: tf.Tensor, levels: Levels) -> list[tf.Tensor]:
    """Returns values of classes, `(batch, classes)`, as those of each level."""
    return tf.split(tf.gather(values, levels.order, axis=1), levels.sizes, axis=1)
