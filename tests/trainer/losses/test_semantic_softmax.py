"""Semantic softmax against golden values and an implementation in float64."""

import numpy as np
import pytest
import tensorflow as tf

from sigline.schemas import class_tree
from sigline.trainer.losses import semantic_softmax

PARENTS = (-1, -1, 0, 0, 1, 2, 2)
# In another order, in which levels are not side by side.
MIXED = (3, 3, -1, 5, 2, -1, 3, 4, 4, 0)


def _ancestors(parents, number):
    while number != -1:
        yield number
        number = parents[number]


def _targets(parents, labels, smoothing):
    """Returns targets from the definition, one label of one example after the other."""
    level = np.array(class_tree.levels(parents))
    targets = np.zeros((len(labels), len(parents)))
    for row, ids in zip(targets, labels, strict=True):
        distinct = sorted({int(x) for x in ids if x >= 0})
        for label in distinct:
            for number in _ancestors(parents, label):
                row[number] += (1 - smoothing) / len(distinct)
                same = level == level[number]
                row[same] += smoothing / same.sum() / len(distinct)
    return targets


def _loss_and_slopes(parents, logits, targets):
    level = np.array(class_tree.levels(parents))
    losses, slopes = np.zeros(len(logits)), np.zeros(logits.shape)
    for number in range(level.max() + 1):
        weight = min(len(parents) / (level >= number).sum(), 20.0)
        at = level == number
        x, t = logits[:, at], targets[:, at]
        log_p = x - np.log(np.exp(x).sum(1, keepdims=True))
        losses -= weight * (t * log_p).sum(1)
        slopes[:, at] = weight * (t.sum(1, keepdims=True) * np.exp(log_p) - t)
    return losses, slopes


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "xla"])
def test_losses_equal_golden_values(compiled):
    levels = semantic_softmax.levels_of(PARENTS)
    assert levels.weights == pytest.approx((1.0, 1.4, 3.5))

    def compute(logits, labels):
        made = [
            semantic_softmax.semantic_targets(labels, levels=levels, smoothing=x) for x in (0, 0.2)
        ]
        return [semantic_softmax.semantic_cross_entropy(logits, x, levels=levels) for x in made]

    run = tf.function(compute, jit_compile=compiled, autograph=False)
    logits = np.tile(np.float32([0.5, -0.5, 1, 0, -1, 2, 0]), (3, 1))
    plain, smoothed = run(tf.constant(logits), tf.constant([[5, -1], [4, -1], [1, -1]]))
    np.testing.assert_allclose(plain, [1.328158076391, 4.683910037740, 1.313261687518], rtol=1e-6)
    np.testing.assert_allclose(
        smoothed, [2.408158076391, 4.303910037740, 1.213261687518], rtol=1e-6
    )


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "xla"])
@pytest.mark.parametrize("parents", [PARENTS, MIXED], ids=["sorted", "mixed"])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_losses_and_gradients_equal_float64(parents, smoothing, compiled):
    rng = np.random.default_rng(0)
    levels = semantic_softmax.levels_of(parents)
    logits = 4 * rng.standard_normal((6, len(parents)))
    # One label, several of other levels, one that stands twice, a class at the top, and none.
    labels = np.array([[6, -1, -1], [6, 3, 1], [4, 4, 0], [1, -1, -1], [5, 2, -1], [-1, -1, -1]])
    expected = _targets(parents, labels, smoothing)

    def compute(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            ids = tf.constant(labels, tf.int32)
            made = semantic_softmax.semantic_targets(ids, levels=levels, smoothing=smoothing)
            value = semantic_softmax.semantic_cross_entropy(x, made, levels=levels)
        return made, value, tape.gradient(value, x)

    run = tf.function(compute, jit_compile=compiled, autograph=False)
    made, value, gradient = run(tf.constant(logits, tf.float32))
    np.testing.assert_allclose(made, expected, atol=1e-6)
    losses, slopes = _loss_and_slopes(parents, logits, expected)
    np.testing.assert_allclose(value, losses, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(gradient, slopes, rtol=1e-5, atol=1e-5)
    assert float(value[-1]) == 0.0


def test_large_logits_of_one_level_leave_the_others_as_they_are():
    levels = semantic_softmax.levels_of(PARENTS)
    logits = tf.constant([[1e4, 1e4, 1.0, 0.0, -1.0, -1e4, -1e4]])
    probabilities = semantic_softmax.semantic_probabilities(logits, levels=levels)
    middle = np.exp([1.0, 0.0, -1.0]) / np.exp([1.0, 0.0, -1.0]).sum()
    np.testing.assert_allclose(probabilities[0], [0.5, 0.5, *middle, 0.5, 0.5], rtol=1e-6)


def test_weight_of_a_level_is_at_most_20():
    # 100 classes at the top, and one below one of them.
    levels = semantic_softmax.levels_of((*(-1 for _ in range(100)), 0))
    assert levels.weights == (1.0, 20.0)
    assert levels.sizes == (100, 1)


def test_accuracy_is_the_share_of_the_levels_that_are_reached():
    levels = semantic_softmax.levels_of(PARENTS)
    labels = tf.constant([[5], [5], [4], [-1]])
    targets = semantic_softmax.semantic_targets(labels, levels=levels, smoothing=0.1)
    right, wrong_end = [3.0, 0, 3, 0, 0, 3, 0], [3.0, 0, 3, 0, 0, 0, 3]
    logits = tf.constant([right, wrong_end, right, right])
    accuracy = semantic_softmax.semantic_accuracy(logits, targets, levels=levels)
    np.testing.assert_allclose(accuracy, [1.0, 2 / 3, 0.0, 0.0], rtol=1e-6)


def test_logits_of_other_classes_are_refused():
    levels = semantic_softmax.levels_of(PARENTS)
    with pytest.raises(ValueError, match=r"must be of 7 classes.*logits.shape=\(2, 6\)"):
        semantic_softmax.semantic_cross_entropy(tf.zeros((2, 6)), tf.zeros((2, 6)), levels=levels)
