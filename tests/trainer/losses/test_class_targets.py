"""Golden values of losses of dense targets, of hard distillation, and of where a head begins."""

import math

import numpy as np
import pytest
import tensorflow as tf

from sigline.trainer.config.objectives import log_prior
from sigline.trainer.losses import cross_entropy, divergence

_LOGITS = tf.constant([[1.0, 2.0, 3.0], [0.0, -1.0, 2.0]])
_TARGETS = tf.constant([[0.5, 0.0, 0.5], [1.0, 0.0, 0.0]])


def test_targets_of_one_half_count_by_half():
    softmax = cross_entropy.softmax_cross_entropy(_LOGITS, _TARGETS)
    np.testing.assert_allclose(softmax, [1.407605964444, 2.169846019556], rtol=1e-6)
    assert float(tf.reduce_mean(softmax)) == pytest.approx(1.788725992000, rel=1e-6)
    sigmoid = cross_entropy.sigmoid_cross_entropy(_LOGITS, _TARGETS)
    np.testing.assert_allclose(sigmoid, [4.488777050135, 3.133336879121], rtol=1e-6)
    hot = cross_entropy.sigmoid_cross_entropy(_LOGITS, tf.cast(_TARGETS > 0, tf.float32))
    assert float(tf.reduce_mean(hot)) == pytest.approx(2.811056964628, rel=1e-6)


@pytest.mark.parametrize(("classes", "bias"), [(1_000, -6.906755), (21_843, -9.991590)])
def test_bias_of_the_prior_gives_each_class_its_share(classes, bias):
    assert log_prior(classes) == pytest.approx(bias, abs=5e-7)
    assert 1 / (1 + math.exp(-log_prior(classes))) == pytest.approx(1 / classes, rel=1e-9)


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "xla"])
def test_hard_distillation_equals_golden_value_and_float64_slopes(compiled):
    student = np.array([[0.0, 1.0, -1.0], [2.0, -3.0, 0.5]])
    teacher = np.array([[0.1, 0.9, 0.3], [0.2, 0.2, 0.1]])

    def compute(t, s):
        with tf.GradientTape() as tape:
            tape.watch((t, s))
            value = divergence.hard_cross_entropy(t, s)
        return value, *tape.gradient(value, (t, s), unconnected_gradients="zero")

    run = tf.function(compute, jit_compile=compiled, autograph=False)
    value, of_teacher, of_student = run(
        tf.constant(teacher, tf.float32), tf.constant(student, tf.float32)
    )
    log_p = student - np.log(np.exp(student).sum(1, keepdims=True))
    # Of equal classes the first one counts.
    best = np.array([[0, 1, 0], [1, 0, 0]])
    assert float(value[0]) == pytest.approx(0.407605964444, rel=1e-6)
    np.testing.assert_allclose(value, -(best * log_p).sum(1), rtol=1e-5)
    np.testing.assert_allclose(of_student, np.exp(log_p) - best, atol=1e-6)
    np.testing.assert_array_equal(of_teacher, np.zeros_like(teacher))


def test_hard_distillation_of_other_shapes_is_refused():
    with pytest.raises(ValueError, match=r"same shape.*student.shape=\(2, 4\)"):
        divergence.hard_cross_entropy(tf.zeros((2, 3)), tf.zeros((2, 4)))
