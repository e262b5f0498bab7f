import functools

import numpy as np
import pytest
import reference_losses
import tensorflow as tf

from sigline.trainer.losses import pair_labels, pair_losses
from sigline.trainer.losses.negatives import Negatives

# Golden values of big_vision's loss in float64, from a hand-checked three-pair batch.
IMAGE = np.array([[1, 0, 0], [0.6, 0.8, 0], [0, 0, 1]])
TEXT = np.array([[0.8, 0.6, 0], [0, 1, 0], [0, 0.6, 0.8]])
GOLDEN_LOSS = 2.299827428345132
GOLDEN_LOG_TEMPERATURE = -5.753399057943785
GOLDEN_BIAS = -0.7451370012239462

MODES = pytest.mark.parametrize("compiled", [False, True], ids=["eager", "xla"])


def _with_gradients(loss, options):
    """Returns a function of a loss's arguments that gives what it returned, and gradients."""

    def compute(inputs):
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            outcome = loss(**inputs, **options)
        return outcome, tape.gradient(outcome.loss, inputs)

    return compute


def _function(loss, options, compiled):
    """Returns the same, by XLA or not."""
    if not compiled:
        return _with_gradients(loss, options)
    # Labels hold tensors, so that no two are known to be equal.
    return _compile(loss, **options) if "labels" in options else _compiled(loss, **options)


def _compile(loss, **options):
    return tf.function(_with_gradients(loss, options), jit_compile=True, autograph=False)


# Compiled once for all values of the same shapes.
_compiled = functools.cache(_compile)


def _sigmoid(
    image, text, temperature=10.0, bias=-3.0, *, compiled=False, dtype=tf.float32, **options
):
    """Returns our loss and gradients by name, and all that the loss returned."""
    inputs = {"image": tf.cast(image, dtype), "text": tf.cast(text, dtype)}
    inputs["temperature"] = tf.constant(temperature, tf.float32)
    inputs["bias"] = tf.constant(bias, tf.float32)
    compute = _function(pair_losses.sigmoid_loss, options, compiled)
    outcome, gradients = compute(inputs)
    return {"loss": outcome.loss} | gradients, outcome


def _softmax(image, text, temperature=10.0, *, compiled=False, **options):
    inputs = {"image": tf.cast(image, tf.float32), "text": tf.cast(text, tf.float32)}
    inputs["temperature"] = tf.constant(temperature)
    compute = _function(pair_losses.softmax_loss, options, compiled)
    outcome, gradients = compute(inputs)
    return {"loss": outcome.loss} | gradients


def test_golden_values_of_the_reference():
    log_temperature = tf.constant(np.log(10.0), tf.float32)
    with tf.GradientTape() as tape:
        tape.watch(log_temperature)
        loss = pair_losses.sigmoid_loss(
            tf.constant(IMAGE, tf.float32),
            tf.constant(TEXT, tf.float32),
            temperature=tf.exp(log_temperature),
            bias=-10.0,
        ).loss
    assert float(loss) == pytest.approx(GOLDEN_LOSS, rel=1e-6)
    gradient = tape.gradient(loss, log_temperature)
    assert float(gradient) == pytest.approx(GOLDEN_LOG_TEMPERATURE, rel=1e-6)
    found, _ = _sigmoid(IMAGE, TEXT, bias=-10.0)
    assert float(found["bias"]) == pytest.approx(GOLDEN_BIAS, rel=1e-6)


@MODES
@pytest.mark.parametrize(
    ("batch", "chunk_size"), [(1, None), (7, None), (7, 3), (7, 7), (130, 64), (1000, 300)]
)
def test_sigmoid_loss_and_gradients_match_float64(batch, chunk_size, compiled):
    image, text = reference_losses.pairs(batch)
    found, _ = _sigmoid(image, text, compiled=compiled, chunk_size=chunk_size)
    reference_losses.assert_close(found, reference_losses.sigmoid(image, text, 10.0, -3.0))


@MODES
@pytest.mark.parametrize(
    ("batch", "chunk_size"), [(2, None), (7, None), (7, 3), (7, 7), (130, 64), (1000, 300)]
)
def test_softmax_loss_and_gradients_match_float64(batch, chunk_size, compiled):
    image, text = reference_losses.pairs(batch)
    found = _softmax(image, text, compiled=compiled, chunk_size=chunk_size)
    reference_losses.assert_close(found, reference_losses.softmax(image, text, 10.0))


@pytest.mark.parametrize("name", ["sigmoid", "softmax"])
def test_gradients_match_finite_differences_of_the_definition(name):
    image, text = reference_losses.pairs(5, dim=4)
    scalars = (10.0, -3.0) if name == "sigmoid" else (10.0,)
    reference = getattr(reference_losses, name)
    found = _sigmoid(image, text)[0] if name == "sigmoid" else _softmax(image, text)
    inputs = [image, text, *(np.array(x) for x in scalars)]
    names = ("image", "text", "temperature", "bias")[: len(inputs)]
    for position, argument in enumerate(names):
        expected = np.zeros_like(inputs[position])
        for index in np.ndindex(expected.shape):
            values = []
            for step in (1e-6, -1e-6):
                moved = [x.copy() for x in inputs]
                moved[position][index] += step
                values.append(reference(*moved)["loss"])
            expected[index] = (values[0] - values[1]) / 2e-6
        reference_losses.assert_close({argument: found[argument]}, {argument: expected})


@MODES
def test_confident_pairs_lose_no_digits(compiled):
    # At logits of +-20, softplus(l) - l and sigmoid(l) - 1 would have one digit left, or none.
    image = text = np.eye(6)
    found, _ = _sigmoid(image, text, 40.0, -20.0, compiled=compiled)
    expected = reference_losses.sigmoid(image, text, 40.0, -20.0)
    # The negatives' part of these two cancels against the positives', in float64 as well.
    del expected["bias"], expected["temperature"]
    reference_losses.assert_close(found, expected)


@MODES
def test_bfloat16_embeddings_are_accumulated_in_float32(compiled):
    pairs = reference_losses.pairs(300, dim=64)
    rounded = [np.asarray(tf.cast(tf.cast(x, tf.bfloat16), tf.float64)) for x in pairs]
    expected = reference_losses.sigmoid(*rounded, 10.0, -3.0)
    found, outcome = _sigmoid(*pairs, compiled=compiled, dtype=tf.bfloat16, chunk_size=128)
    assert found["image"].dtype == found["text"].dtype == tf.bfloat16
    assert outcome.loss.dtype == tf.float32
    reference_losses.assert_close(found, expected, tolerance=1e-2)
    for name in ("loss", "temperature", "bias"):
        assert float(found[name]) == pytest.approx(expected[name], rel=2e-6)


@pytest.fixture(scope="module")
def large_batch():
    """Pairs, and what is expected of them."""
    image, text = (x.astype(np.float32) for x in reference_losses.pairs(16_384, dim=8))
    expected = reference_losses.sigmoid_scalars(
        image.astype(np.float64), text.astype(np.float64), 10.0, -10.0
    )
    return image, text, expected


@pytest.mark.slow
@MODES
def test_values_are_right_at_a_large_batch(large_batch, compiled):
    # One fused reduction is 6 % off here under XLA:CPU of TensorFlow 2.21.
    image, text, expected = large_batch
    found, _ = _sigmoid(image, text, 10.0, -10.0, compiled=compiled)
    reference_losses.assert_close(found, expected)


@pytest.mark.parametrize("name", ["sigmoid_loss", "softmax_loss"])
def test_compiled_program_holds_no_matrix_of_all_pairs(name):
    batch, chunk_size = 1000, 256

    def compute(image, text):
        bias = {"bias": -10.0} if name == "sigmoid_loss" else {}
        with tf.GradientTape() as tape:
            tape.watch((image, text))
            loss = getattr(pair_losses, name)(
                image, text, temperature=10.0, chunk_size=chunk_size, **bias
            ).loss
        return (loss, *tape.gradient(loss, (image, text)))

    spec = tf.TensorSpec((batch, 8), tf.float32)
    compiled = tf.function(compute, jit_compile=True, autograph=False)
    hlo = compiled.experimental_get_compiler_ir(spec, spec)(stage="optimized_hlo")
    assert f"[{chunk_size},{batch}]" in hlo
    assert f"[{batch},{batch}]" not in hlo


@MODES
def test_all_block_sizes_give_the_same_loss(compiled):
    image, text = reference_losses.pairs(50)
    whole, _ = _sigmoid(image, text, compiled=compiled)
    for chunk_size in (1, 7, 49, 50, 51):
        found, _ = _sigmoid(image, text, compiled=compiled, chunk_size=chunk_size)
        for name, value in whole.items():
            scale = np.abs(value).max()
            np.testing.assert_allclose(found[name], value, atol=2e-6 * scale, rtol=0)


def test_batch_size_may_be_unknown_when_the_graph_is_built():
    @tf.function(input_signature=[tf.TensorSpec((None, 16))] * 2, autograph=False)
    def compute(image, text):
        with tf.GradientTape() as tape:
            tape.watch((image, text))
            loss = pair_losses.sigmoid_loss(
                image, text, temperature=10.0, bias=-3.0, chunk_size=4
            ).loss
        return (loss, *tape.gradient(loss, (image, text)))

    for batch in (4, 10, 3):
        image, text = reference_losses.pairs(batch)
        found = dict(zip(("loss", "image", "text"), compute(image, text), strict=True))
        expected = reference_losses.sigmoid(image, text, 10.0, -3.0)
        reference_losses.assert_close(found, {name: expected[name] for name in found})


def test_upstream_gradient_scales_the_gradients():
    image, text = reference_losses.pairs(6)
    inputs = tf.constant(image, tf.float32)
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        loss = pair_losses.sigmoid_loss(
            inputs, tf.constant(text, tf.float32), temperature=10.0, bias=-3.0
        ).loss
        scaled = -2.5 * loss
    expected = -2.5 * reference_losses.sigmoid(image, text, 10.0, -3.0)["image"]
    reference_losses.assert_close({"image": tape.gradient(scaled, inputs)}, {"image": expected})


def test_initial_loss_of_orthogonal_embeddings_has_the_closed_form():
    zeros = np.zeros((512, 4))
    found, _ = _sigmoid(zeros, zeros, 10.0, -10.0)
    expected = np.log1p(np.exp(10.0)) + 511 * np.log1p(np.exp(-10.0))
    np.testing.assert_allclose(found["loss"], expected, rtol=1e-6)


@pytest.mark.parametrize("labelled", [False, True])
def test_logged_logit_means_match_numpy(labelled):
    image, text = reference_losses.pairs(9)
    labels = pair_labels.identity(9, tf.zeros((), tf.int32)) if labelled else None
    _, outcome = _sigmoid(image, text, labels=labels, chunk_size=4)
    logits = 10.0 * image @ text.T - 3.0
    np.testing.assert_allclose(outcome.positive_logit_mean, np.diag(logits).mean(), rtol=1e-5)
    negatives = logits[~np.eye(9, dtype=bool)]
    np.testing.assert_allclose(outcome.negative_logit_mean, negatives.mean(), rtol=1e-5)


def test_logit_means_of_a_single_pair():
    _, outcome = _sigmoid(np.ones((1, 1)), np.ones((1, 1)))
    assert float(outcome.positive_logit_mean) == pytest.approx(7.0)
    assert float(outcome.negative_logit_mean) == 0.0


@MODES
@pytest.mark.parametrize("argument", ["image", "text", "temperature", "bias"])
def test_nan_input_gives_nan_loss(argument, compiled):
    image, text = reference_losses.pairs(4)
    inputs = {"image": image, "text": text, "temperature": 10.0, "bias": -3.0}
    inputs[argument] = np.array(inputs[argument])
    inputs[argument].flat[0] = np.nan
    found, _ = _sigmoid(**inputs, compiled=compiled)
    assert np.isnan(found["loss"])


@MODES
@pytest.mark.parametrize("sign", [1, -1])
def test_logits_of_ten_thousand_stay_finite(sign, compiled):
    image, text = np.eye(4), sign * np.eye(4)
    for found in (
        _sigmoid(image, text, 1e4, -10.0, compiled=compiled)[0],
        _softmax(image, text, 1e4, compiled=compiled),
    ):
        assert all(np.isfinite(value).all() for value in found.values())
    found, _ = _sigmoid(image, text, 1e4, 0.0, compiled=compiled)
    expected = reference_losses.sigmoid(image, text, 1e4, 0.0)["loss"]
    assert float(found["loss"]) == pytest.approx(expected, rel=2e-6)


@pytest.mark.parametrize("loss", [_sigmoid, _softmax])
def test_towers_of_different_shape_are_refused(loss):
    with pytest.raises(ValueError, match=r"same shape.*image.shape=\(3, 2\), text.shape=\(4, 2\)"):
        loss(np.ones((3, 2)), np.ones((4, 2)))


def test_chunk_size_zero_is_refused():
    with pytest.raises(ValueError, match=r"must be positive\. Received: chunk_size=0"):
        _sigmoid(np.ones((3, 2)), np.ones((3, 2)), chunk_size=0)


def test_negatives_that_are_all_kept_change_nothing():
    image, text = reference_losses.pairs(8)
    for kind in ("random", "hard", "easy"):
        found, _ = _sigmoid(image, text, negatives=Negatives(kind, per_image=20), chunk_size=3)
        reference_losses.assert_close(found, reference_losses.sigmoid(image, text, 10.0, -3.0))


@MODES
def test_softmax_loss_of_a_single_pair_is_zero(compiled):
    found = _softmax(np.ones((1, 2)) / np.sqrt(2), np.ones((1, 2)) / np.sqrt(2), compiled=compiled)
    for name, value in found.items():
        np.testing.assert_array_equal(value, np.zeros_like(value), err_msg=name)


@MODES
@pytest.mark.parametrize("argument", ["image", "text", "temperature"])
def test_nan_input_gives_nan_softmax_loss(argument, compiled):
    image, text = reference_losses.pairs(4)
    inputs = {"image": image, "text": text, "temperature": np.array(10.0, np.float32)}
    inputs[argument].flat[0] = np.nan
    assert np.isnan(_softmax(**inputs, compiled=compiled)["loss"])


@pytest.mark.parametrize("loss", [_sigmoid, _softmax])
def test_temperature_that_is_no_scalar_is_refused(loss):
    with pytest.raises(ValueError, match=r"temperature must be a scalar.*shape=\(1,\)"):
        loss(np.ones((3, 2)), np.ones((3, 2)), np.ones(1, np.float32))


@MODES
@pytest.mark.parametrize("kind", ["random", "hard", "easy"])
def test_loss_with_few_negatives_matches_the_masked_reference(kind, compiled):
    batch, per_image = 40, 5
    image, text = reference_losses.pairs(batch)
    found, _ = _sigmoid(
        image, text, negatives=Negatives(kind, per_image), chunk_size=16, compiled=compiled
    )
    if kind == "random":
        plain, _ = _sigmoid(image, text, negatives=Negatives(kind, per_image), chunk_size=9)
        return reference_losses.assert_close(found, {n: np.asarray(v) for n, v in plain.items()})
    scores = image @ text.T * (1 if kind == "hard" else -1)
    np.fill_diagonal(scores, -np.inf)
    weights = np.eye(batch)
    np.put_along_axis(weights, np.argsort(-scores, axis=1)[:, :per_image], 1.0, axis=1)
    expected = reference_losses.sigmoid(image, text, 10.0, -3.0, weights=weights)
    return reference_losses.assert_close(found, expected)


@MODES
def test_groups_under_a_mask_match_float64(compiled):
    batch = 30
    image, text = reference_losses.pairs(batch)
    images, texts = np.arange(batch) // 2, np.arange(batch) // 3
    image_counts, text_counts = np.arange(batch) != 4, np.arange(batch) < 25
    labels = pair_labels.masked(
        pair_labels.same_group(tf.constant(images), tf.constant(texts)),
        image=tf.constant(image_counts),
        text=tf.constant(text_counts),
    )
    found, _ = _sigmoid(image, text, labels=labels, chunk_size=16, compiled=compiled)
    targets = (images[:, None] == texts).astype(float)
    weights = np.outer(image_counts, text_counts)
    expected = reference_losses.sigmoid(image, text, 10.0, -3.0, targets, weights)
    reference_losses.assert_close(found, expected)


@pytest.mark.parametrize("chunk_size", [None, 2])
def test_ids_with_another_axis_are_refused(chunk_size):
    ids = tf.range(6)[:, tf.newaxis]
    labels = pair_labels.same_group(ids, ids)
    with pytest.raises(
        ValueError, match=r"targets of labels must have the shape \(texts, images\)"
    ):
        _sigmoid(*reference_losses.pairs(6), labels=labels, chunk_size=chunk_size)
