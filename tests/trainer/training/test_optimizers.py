import numpy as np
import pytest
import tensorflow as tf

from sigline.trainer.config import OptimizerConfig
from sigline.trainer.training import optimizers

# Golden values of big_vision's schedules, measured there.
COSINE = [(0, 0.0), (5, 0.5), (10, 1.0), (55, 0.5), (100, 0.0)]
RSQRT = [(200, 0.70711), (500, 0.44721), (900, 0.33333), (950, 0.16222)]
LINEAR = [(5, 0.5), (10, 1.0), (55, 0.5), (100, 0.0)]
CONSTANT = [(5, 0.5), (10, 1.0), (90, 1.0), (95, 0.5), (100, 0.0)]


@pytest.mark.parametrize(
    ("options", "total_steps", "table"),
    [
        ({"schedule": "cosine", "warmup_steps": 10}, 100, COSINE),
        (
            {"schedule": "rsqrt", "warmup_steps": 100, "cooldown_steps": 100, "timescale": 100},
            1000,
            RSQRT,
        ),
        ({"schedule": "linear", "warmup_steps": 10}, 100, LINEAR),
        ({"schedule": "constant", "warmup_steps": 10, "cooldown_steps": 10}, 100, CONSTANT),
    ],
    ids=["cosine", "rsqrt", "linear", "constant"],
)
def test_schedule_matches_the_reference(options, total_steps, table):
    config = OptimizerConfig(**options)
    for step, expected in table:
        factor = optimizers.schedule(tf.constant(step), config=config, total_steps=total_steps)
        assert float(factor) == pytest.approx(expected, abs=1e-5), step


def test_schedule_without_warmup_starts_at_one():
    factor = optimizers.schedule(tf.constant(0), config=OptimizerConfig(), total_steps=10)
    assert float(factor) == 1.0


def test_clip_scales_to_the_norm():
    gradients = {"a": tf.constant([3.0]), "b": tf.constant([4.0])}
    clipped = optimizers.clip_by_global_norm(gradients, tf.constant(5.0), 1.0)
    assert {n: float(g[0]) for n, g in clipped.items()} == pytest.approx({"a": 0.6, "b": 0.8})


def test_clip_leaves_small_gradients_alone():
    clipped = optimizers.clip_by_global_norm({"a": tf.constant([0.3])}, tf.constant(0.3), 1.0)
    assert float(clipped["a"][0]) == pytest.approx(0.3)


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
    specs = {name: optimizers.slot_specs(v.shape, config) for name, v in values.items()}
    slots = {n: {k: tf.zeros(x.shape, x.dtype) for k, x in specs[n].items()} for n in values}
    rates = optimizers.matched(config.rates, values)
    decays = optimizers.matched(config.decays, values)
    for step, (gradient, factor) in enumerate(zip(gradients, factors, strict=True)):
        update = optimizers.make_update(tf.constant(factor), tf.constant(step), config=config)
        for name in values:
            values[name], slots[name] = update(
                values[name],
                slots[name],
                tf.constant(gradient[name], tf.float32),
                rate=rates[name],
                decay=decays[name],
            )
            assert {k: x.dtype for k, x in slots[name].items()} == {
                k: x.dtype for k, x in specs[name].items()
            }
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
    start = {name: np.full(1, 2.0) for name in ("a/kernel", "a/bias")}
    found = _updates(start, [{n: np.ones(1) for n in start}] * 3, [0.0, 0.0, 1.0], config)
    assert float(found["a/kernel"][0]) - 2 == pytest.approx(-1.2e-3, rel=1e-3)
    assert float(found["a/bias"][0]) - 2 == pytest.approx(-1.0e-3, rel=1e-3)


def test_adafactor_of_a_constant_gradient_gives_the_references_updates():
    # big_vision's scale_by_adafactor: a tenth, then up to one, without bias correction.
    config = OptimizerConfig(name="adafactor", learning_rate=1.0, weight_decay=0.0, beta_2=0.999)
    start = {"a/bias": np.zeros(3), "a/kernel": np.zeros((32, 40))}
    gradients = [{n: np.full(v.shape, 0.5) for n, v in start.items()}] * 3
    for count, expected in ((1, 0.1), (2, 0.1 + 0.19), (3, 0.1 + 0.19 + 0.271)):
        found = _updates(start, gradients[:count], [1.0] * count, config)
        for name, value in found.items():
            np.testing.assert_allclose(value, -expected, rtol=1e-4, err_msg=name)


def _numpy_adafactor(value, gradients, config):
    """Shazeer & Stern, algorithm 4, with the outer product written out."""
    first = np.zeros_like(value)
    rows, columns = np.zeros(value.shape[0]), np.zeros(value.shape[1])
    for count, gradient in enumerate(gradients, start=1):
        beta = min(config.beta_2, 1 - count**-0.8)
        rows = beta * rows + (1 - beta) * (gradient**2 + 1e-30).mean(1)
        columns = beta * columns + (1 - beta) * (gradient**2 + 1e-30).mean(0)
        second = np.outer(rows, columns) / rows.mean()
        first = config.beta_1 * first + (1 - config.beta_1) * gradient / np.sqrt(second)
        value = value - config.learning_rate * first
    return value


@pytest.mark.parametrize("shape", [(32, 48), (48, 32), (40, 40)])
def test_adafactor_matches_numpy(shape):
    rng = np.random.default_rng(0)
    config = OptimizerConfig(name="adafactor", learning_rate=1e-2, weight_decay=0.0, beta_2=0.95)
    start = {"a/kernel": rng.standard_normal(shape)}
    gradients = [{"a/kernel": rng.standard_normal(shape)} for _ in range(5)]
    found = _updates(start, gradients, [1.0] * 5, config)["a/kernel"]
    series = [gradient["a/kernel"] for gradient in gradients]
    np.testing.assert_allclose(
        found, _numpy_adafactor(start["a/kernel"], series, config), rtol=1e-4
    )


def test_adafactor_factors_the_two_largest_axes():
    specs = optimizers.slot_specs((4, 64, 32), OptimizerConfig(name="adafactor"))
    assert {name: tuple(spec.shape) for name, spec in specs.items()} == {
        "first": (4, 64, 32),
        "rows": (4, 32),
        "columns": (4, 64),
    }
    rng = np.random.default_rng(0)
    config = OptimizerConfig(name="adafactor", learning_rate=1e-2, weight_decay=0.0)
    start = {"a": rng.standard_normal((2, 64, 32))}
    gradients = [{"a": rng.standard_normal((2, 64, 32))} for _ in range(3)]
    found = _updates(start, gradients, [1.0] * 3, config)["a"]
    for i in range(2):
        series = [gradient["a"][i] for gradient in gradients]
        expected = _numpy_adafactor(start["a"][i], series, config)
        np.testing.assert_allclose(found[i], expected, rtol=1e-4)


def test_adafactor_keeps_less_than_adamw():
    def size(name):
        config = OptimizerConfig(name=name, first_moment_dtype="bfloat16")
        specs = optimizers.slot_specs((256, 512), config).values()
        return sum(spec.dtype.size * spec.shape.num_elements() for spec in specs)

    assert size("adamw") == 256 * 512 * 6
    assert size("adafactor") == 256 * 512 * 2 + (256 + 512) * 4
    assert size("lion") == 256 * 512 * 2


def test_lion_matches_numpy():
    rng = np.random.default_rng(0)
    config = OptimizerConfig(
        name="lion", learning_rate=1e-2, weight_decay=1e-3, beta_1=0.9, beta_2=0.99
    )
    value = rng.standard_normal((3, 4))
    gradients = [{"a/kernel": rng.standard_normal((3, 4))} for _ in range(5)]
    found = _updates({"a/kernel": value}, gradients, [1.0] * 5, config)["a/kernel"]
    momentum = np.zeros_like(value)
    for gradient in (g["a/kernel"] for g in gradients):
        direction = np.sign(0.9 * momentum + 0.1 * gradient)
        momentum = 0.99 * momentum + 0.01 * gradient
        value = value - 1e-2 * direction - 1e-3 * value
    np.testing.assert_allclose(found, value, rtol=1e-5)


def test_first_pattern_that_matches_the_whole_name_decides():
    rules = (("image/block_1/.*", 0.1), ("image/.*", None), (".*kernel", 2.0), (".*", 1.0))
    names = ["image/block_1/kernel", "image/block_11/kernel", "text/kernel", "text/kernel/x"]
    assert list(optimizers.matched(rules, names).values()) == [0.1, None, 2.0, 1.0]


def test_name_without_a_pattern_is_an_error_that_lists_it():
    with pytest.raises(ValueError, match=r"No pattern matches text/a, bias\."):
        optimizers.matched((("image/.*", 1.0),), ["image/a", "text/a", "bias"])


def test_rates_multiply_the_learning_rate_but_not_the_decay():
    rates = (("slow/.*", 0.1), (".*", 1.0))
    config = OptimizerConfig(learning_rate=1e-2, weight_decay=1e-3, rates=rates, epsilon=0.0)
    start = {"slow/kernel": np.full(1, 2.0), "fast/kernel": np.full(1, 2.0)}
    found = _updates(start, [{n: np.ones(1) for n in start}], [1.0], config)
    assert float(found["fast/kernel"][0]) - 2 == pytest.approx(-1e-2 - 2e-3, rel=1e-4)
    assert float(found["slow/kernel"][0]) - 2 == pytest.approx(-1e-3 - 2e-3, rel=1e-4)


def test_no_clip_norm_leaves_large_gradients_alone():
    clipped = optimizers.clip_by_global_norm({"a": tf.constant([30.0])}, tf.constant(30.0), None)
    assert float(clipped["a"][0]) == 30.0
