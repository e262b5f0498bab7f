import numpy as np
import pytest
import tensorflow as tf

from sigline.trainer import losses

# Golden values of big_vision's loss in float64, from a hand-checked three-pair batch.
IMAGE = np.array([[1, 0, 0], [0.6, 0.8, 0], [0, 0, 1]])
TEXT = np.array([[0.8, 0.6, 0], [0, 1, 0], [0, 0.6, 0.8]])
GOLDEN_LOSS = 2.299827428345132
GOLDEN_LOG_TEMPERATURE = -5.753399057943785
GOLDEN_BIAS = -0.7451370012239462


def _reference(image, text, temperature, bias):
    """Loss and gradients in float64, from the definition: every pair a binary label."""
    image, text = image.astype(np.float64), text.astype(np.float64)
    scores = image @ text.T
    signs = 2 * np.eye(len(image)) - 1
    margins = signs * (temperature * scores + bias)
    loss = np.logaddexp(0, -margins).sum(axis=1).mean()
    slope = -signs / (1 + np.exp(margins)) / len(image)
    return {
        "loss": loss,
        "image": temperature * slope @ text,
        "text": temperature * slope.T @ image,
        "log_temperature": temperature * (slope * scores).sum(),
        "bias": slope.sum(),
    }


def _ours(image, text, log_temperature, bias):
    names = ("image", "text", "log_temperature", "bias")
    arrays = (image, text, log_temperature, bias)
    inputs = [tf.cast(x, tf.float32) for x in arrays]
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        outcome = losses.sigmoid_loss(
            inputs[0], inputs[1], temperature=tf.exp(inputs[2]), bias=inputs[3]
        )
    found = dict(zip(names, tape.gradient(outcome.loss, inputs), strict=True))
    return {"loss": outcome.loss} | found, outcome


def _pairs(batch, dim=16):
    rng = np.random.default_rng(0)
    image = rng.standard_normal((batch, dim))
    text = 0.5 * image + rng.standard_normal((batch, dim))
    return [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (image, text)]


def test_golden_values_of_the_reference():
    found, _ = _ours(IMAGE, TEXT, np.log(10.0), -10.0)
    np.testing.assert_allclose(found["loss"], GOLDEN_LOSS, rtol=1e-6)
    np.testing.assert_allclose(found["log_temperature"], GOLDEN_LOG_TEMPERATURE, rtol=1e-6)
    np.testing.assert_allclose(found["bias"], GOLDEN_BIAS, rtol=1e-6)


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "xla"])
@pytest.mark.parametrize("batch", [1, 7, 128])
def test_loss_and_gradients_match_float64(batch, compiled):
    image, text = _pairs(batch)
    expected = _reference(image, text, 10.0, -3.0)
    function = tf.function(_ours, jit_compile=True) if compiled else _ours
    found, _ = function(image, text, np.log(10.0), -3.0)
    for name, value in expected.items():
        scale = np.abs(value).max()
        np.testing.assert_allclose(found[name], value, atol=5e-6 * scale, rtol=0, err_msg=name)


def test_value_under_xla_is_right_at_a_large_batch():
    # One fused reduction is 3 % off here under XLA:CPU of TensorFlow 2.21.
    image, text = _pairs(8192, dim=8)
    expected = _reference(image, text, 10.0, -10.0)["loss"]
    arrays = [tf.constant(x, tf.float32) for x in (image, text)]
    compute = tf.function(
        lambda a, b: losses.sigmoid_loss(a, b, temperature=10.0, bias=-10.0).loss, jit_compile=True
    )
    np.testing.assert_allclose(compute(*arrays), expected, rtol=2e-5)


def test_initial_loss_of_orthogonal_embeddings_has_the_closed_form():
    zeros = np.zeros((512, 4))
    found, _ = _ours(zeros, zeros, np.log(10.0), -10.0)
    expected = np.log1p(np.exp(10.0)) + 511 * np.log1p(np.exp(-10.0))
    np.testing.assert_allclose(found["loss"], expected, rtol=1e-6)


def test_logged_logit_means_match_numpy():
    image, text = _pairs(9)
    _, outcome = _ours(image, text, np.log(10.0), -3.0)
    logits = 10.0 * image @ text.T - 3.0
    np.testing.assert_allclose(outcome.positive_logit_mean, np.diag(logits).mean(), rtol=1e-5)
    negatives = logits[~np.eye(9, dtype=bool)]
    np.testing.assert_allclose(outcome.negative_logit_mean, negatives.mean(), rtol=1e-5)


def test_nan_input_gives_nan_loss():
    image, text = _pairs(4)
    image[0, 0] = np.nan
    found, _ = _ours(image, text, 0.0, 0.0)
    assert np.isnan(found["loss"])


def test_large_logits_stay_finite():
    image, text = _pairs(4)
    found, _ = _ours(image, text, np.log(1e4), -10.0)
    assert all(np.isfinite(value).all() for value in found.values())
