import numpy as np
import pytest
import tensorflow as tf

from sigline.trainer import optimizers
from sigline.trainer.config import OptimizerConfig


@pytest.mark.parametrize(
    ("step", "expected"), [(0, 0.0), (5, 0.5), (10, 1.0), (55, 0.5), (100, 0.0)]
)
def test_schedule_matches_the_reference(step, expected):
    # Golden values of big_vision's cosine with 100 steps and 10 of warm-up.
    config = OptimizerConfig(warmup_steps=10)
    factor = optimizers.schedule(tf.constant(step), config=config, total_steps=100)
    assert float(factor) == pytest.approx(expected, abs=1e-6)


def test_schedule_without_warmup_starts_at_one():
    factor = optimizers.schedule(tf.constant(0), config=OptimizerConfig(), total_steps=10)
    assert float(factor) == 1.0


def test_clip_scales_to_the_norm_and_reports_it():
    clipped, norm = optimizers.clip_by_global_norm([tf.constant([3.0]), tf.constant([4.0])], 1.0)
    assert float(norm) == pytest.approx(5.0)
    np.testing.assert_allclose([float(g[0]) for g in clipped], [0.6, 0.8], rtol=1e-6)


def test_clip_leaves_small_gradients_alone():
    clipped, _ = optimizers.clip_by_global_norm([tf.constant([0.3])], 1.0)
    assert float(clipped[0][0]) == pytest.approx(0.3)


def _numpy_adamw(value, gradients, config, factors, decay):
    first = second = np.zeros_like(value)
    for count, (gradient, factor) in enumerate(zip(gradients, factors, strict=True), start=1):
        first = config.beta_1 * first + (1 - config.beta_1) * gradient
        second = config.beta_2 * second + (1 - config.beta_2) * gradient**2
        mean = first / (1 - config.beta_1**count)
        root = np.sqrt(second / (1 - config.beta_2**count)) + config.epsilon
        update = config.learning_rate * mean / root + decay * value
        value = value - factor * update
    return value


def _updates(start, gradients, factors, config):
    """Returns the parameters after one update per gradient."""
    values = {name: tf.constant(value, tf.float32) for name, value in start.items()}
    first_dtype = tf.as_dtype(config.first_moment_dtype)
    moments = {n: (tf.zeros(v.shape, first_dtype), tf.zeros(v.shape)) for n, v in values.items()}
    for step, (gradient, factor) in enumerate(zip(gradients, factors, strict=True)):
        for name in values:
            values[name], *moments[name] = optimizers.adamw(
                values[name],
                *moments[name],
                tf.constant(gradient[name], tf.float32),
                factor=tf.constant(factor),
                step=tf.constant(step),
                decay=optimizers.decays(name),
                config=config,
            )
            assert moments[name][0].dtype == first_dtype
    return values


def test_five_updates_match_numpy_and_decay_touches_kernels_only():
    rng = np.random.default_rng(0)
    config = OptimizerConfig(learning_rate=1e-2, weight_decay=1e-2)
    start = {"a/kernel": rng.standard_normal((3, 2)), "a/bias": rng.standard_normal(2)}
    gradients = [{n: rng.standard_normal(v.shape) for n, v in start.items()} for _ in range(5)]
    factors = [0.0, 0.5, 1.0, 1.0, 0.3]
    found = _updates(start, gradients, factors, config)
    for name, value in start.items():
        decay = config.weight_decay if name == "a/kernel" else 0.0
        series = [gradient[name] for gradient in gradients]
        expected = _numpy_adamw(value, series, config, factors, decay)
        np.testing.assert_allclose(found[name].numpy(), expected, rtol=1e-5, err_msg=name)


def test_first_moments_in_bfloat16_change_the_updates_little():
    rng = np.random.default_rng(0)
    config = OptimizerConfig(learning_rate=1e-2, first_moment_dtype="bfloat16")
    start = {"a/bias": rng.standard_normal(50)}
    gradients = [{"a/bias": rng.standard_normal(50)} for _ in range(5)]
    found = _updates(start, gradients, [1.0] * 5, config)["a/bias"].numpy()
    series = [gradient["a/bias"] for gradient in gradients]
    expected = _numpy_adamw(start["a/bias"], series, config, [1.0] * 5, 0.0)
    # A hundredth of what five updates move.
    np.testing.assert_allclose(found, expected, atol=5 * 1e-2 * 1e-2)


def test_decay_is_multiplied_by_the_schedule_and_not_by_the_rate():
    # big_vision's third step at rate 1e-3, decay 1e-4, p = 2: -1.2e-3 for kernels, else -1e-3.
    config = OptimizerConfig(learning_rate=1e-3, weight_decay=1e-4, epsilon=0.0)
    start = {name: np.full(1, 2.0) for name in ("kernel", "bias")}
    found = _updates(start, [{n: np.ones(1) for n in start}] * 3, [0.0, 0.0, 1.0], config)
    assert float(found["kernel"][0]) - 2 == pytest.approx(-1.2e-3, rel=1e-3)
    assert float(found["bias"][0]) - 2 == pytest.approx(-1.0e-3, rel=1e-3)
