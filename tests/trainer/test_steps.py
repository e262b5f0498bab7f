import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf

from sigline.trainer import collectives, config, losses, steps, two_tower
from sigline.trainer.checkpoints import named_variables


@pytest.fixture(scope="module")
def tiny():
    return config.tiny(config.load_recipe("siglip_demo"))


@pytest.fixture(scope="module")
def inputs(tiny):
    size, length = tiny.image.size, tiny.text.length
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (8, size, size, 3), np.uint8)
    return tf.constant(pixels), tf.constant(rng.integers(1, 500, (8, length)), tf.int32)


def _run(settings, inputs, model=None):
    model = model or two_tower.build(settings)
    parameters = {n: tf.convert_to_tensor(v) for n, v in named_variables(model).items()}

    @tf.function
    def compute():
        return steps.forward_backward(
            parameters, inputs, tf.zeros((), tf.int64), model=model, config=settings
        )

    return compute()


def test_parameters_that_are_passed_in_are_used_and_not_the_models(tiny, inputs):
    model = two_tower.build(tiny)
    before = _run(tiny, inputs, model)
    parameters = {n: tf.convert_to_tensor(v) for n, v in named_variables(model).items()}
    for variable in named_variables(model).values():
        variable.assign(tf.zeros_like(variable))
    after = steps.forward_backward(
        parameters, inputs, tf.zeros((), tf.int64), model=model, config=tiny
    )
    for name, value in before.gradients.items():
        np.testing.assert_allclose(after.gradients[name], value, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("pool", ["map", "gap", "tok"])
def test_rematerialized_blocks_have_the_same_loss_and_gradients(tiny, inputs, pool):
    plain = dataclasses.replace(tiny, image=dataclasses.replace(tiny.image, pool=pool))
    expected = _run(plain, inputs)
    found = _run(dataclasses.replace(plain, rematerialize=True), inputs)
    assert float(found.scalars["loss"]) == pytest.approx(float(expected.scalars["loss"]), rel=1e-6)
    for name, value in expected.gradients.items():
        scale = np.abs(value).max() + 1e-9
        np.testing.assert_allclose(
            found.gradients[name], value, atol=1e-5 * scale + 1e-8, rtol=0, err_msg=name
        )


def test_rematerialized_blocks_are_computed_again(tiny, inputs):
    def hyperbolic_tangents(settings):
        model = two_tower.build(settings)
        compute = tf.function(
            lambda *x: steps.forward_backward(
                {n: v.value for n, v in two_tower.named_parameters(model).items()},
                x,
                tf.zeros((), tf.int64),
                model=model,
                config=settings,
            )
        )
        graph = compute.get_concrete_function(*inputs).graph.as_graph_def()
        nodes = [*graph.node, *(n for f in graph.library.function for n in f.node_def)]
        return sum(node.op == "Tanh" for node in nodes)

    # GELU has one in each MLP: of two and two blocks, and of the attention pool.
    assert hyperbolic_tangents(tiny) == 5
    assert hyperbolic_tangents(dataclasses.replace(tiny, rematerialize=True)) == 9


def test_bfloat16_towers_give_nearly_the_same_loss_in_float32(tiny, inputs):
    expected = _run(tiny, inputs)
    found = _run(dataclasses.replace(tiny, precision="bfloat16"), inputs)
    assert found.scalars["loss"].dtype == tf.float32
    assert float(found.scalars["loss"]) == pytest.approx(float(expected.scalars["loss"]), rel=2e-2)
    flat = [
        np.concatenate([np.ravel(outcome.gradients[n]) for n in expected.gradients])
        for outcome in (expected, found)
    ]
    cosine = flat[0] @ flat[1] / np.linalg.norm(flat[0]) / np.linalg.norm(flat[1])
    assert cosine > 0.99


def test_bfloat16_computes_products_in_bfloat16_and_norms_in_float32(tiny):
    model = two_tower.build(dataclasses.replace(tiny, precision="bfloat16"))
    dense = [x for x in model._flatten_layers() if isinstance(x, keras.layers.Dense)]
    norms = [x for x in model._flatten_layers() if isinstance(x, keras.layers.LayerNormalization)]
    assert dense
    assert norms
    assert {x.compute_dtype for x in dense} == {"bfloat16"}
    assert {x.compute_dtype for x in norms} == {"float32"}
    assert {v.dtype for v in model.variables} == {"float32"}


def test_frozen_tower_has_no_gradient(tiny, inputs):
    frozen = dataclasses.replace(tiny, image=dataclasses.replace(tiny.image, frozen=True))
    outcome = _run(frozen, inputs)
    assert not any(name.startswith("image/") for name in outcome.gradients)
    expected = _run(tiny, inputs)
    for name, value in outcome.gradients.items():
        np.testing.assert_allclose(value, expected.gradients[name], atol=1e-6, err_msg=name)


def test_softmax_recipe_computes_the_softmax_loss(tiny, inputs):
    softmax = dataclasses.replace(tiny, loss=dataclasses.replace(tiny.loss, name="softmax"))
    model = two_tower.build(softmax)
    image, text = steps.embed_pixels(model, inputs)
    expected = losses.softmax_loss(image, text, temperature=tiny.loss.temperature_init).loss
    outcome = _run(softmax, inputs, model)
    assert float(outcome.scalars["loss"]) == pytest.approx(float(expected), rel=1e-5)
    assert float(outcome.gradients["bias"]) == 0.0
    assert float(outcome.gradients["log_temperature"]) != 0.0


def test_studied_negatives_change_from_step_to_step(tiny, inputs):
    settings = dataclasses.replace(
        tiny, loss=dataclasses.replace(tiny.loss, negatives="random", negatives_per_image=2)
    )
    model = two_tower.build(settings)
    parameters = {n: tf.convert_to_tensor(v) for n, v in named_variables(model).items()}

    def loss(step):
        outcome = steps.forward_backward(
            parameters, inputs, tf.constant(step, tf.int64), model=model, config=settings
        )
        return float(outcome.scalars["negative_logit_mean"])

    assert loss(0) == loss(0)
    assert len({loss(step) for step in range(4)}) == 4


def test_configured_chunk_size_reaches_the_loss(tiny):
    settings = config.override(tiny, ["loss.chunk_size=24"])
    spec = tf.TensorSpec((100, 8), tf.float32)

    @tf.function(jit_compile=True)
    def compute(image, text):
        parameters = {"log_temperature": tf.constant(1.0), "bias": tf.constant(0.0)}
        exchange = collectives.single_replica()
        return steps.configured_loss(image, text, parameters, tf.constant(0), settings, exchange)

    assert "[24,100]" in compute.experimental_get_compiler_ir(spec, spec)(stage="hlo")


def test_configured_number_of_negatives_reaches_the_loss(tiny, inputs):
    def mean(number):
        settings = config.override(
            tiny, ["loss.negatives=hard", f"loss.negatives_per_image={number}"]
        )
        return float(_run(settings, inputs).scalars["negative_logit_mean"])

    assert mean(1) > mean(3) > mean(7)
    everything = float(_run(tiny, inputs).scalars["negative_logit_mean"])
    assert mean(7) == pytest.approx(everything, rel=1e-4)


def test_configured_exchange_is_asked_for(tiny, inputs, monkeypatch):
    asked = []

    def exchange_for_context(form):
        asked.append(form)
        return collectives.single_replica()

    monkeypatch.setattr(steps, "exchange_for_context", exchange_for_context)
    _run(config.override(tiny, ["loss.exchange=all_gather"]), inputs)
    assert asked == ["all_gather"]


def test_tower_without_gradient_is_reported(tiny, inputs):
    model = two_tower.build(tiny)
    parameters = {n: tf.convert_to_tensor(v) for n, v in named_variables(model).items()}

    def embed(model, inputs):
        image, text = steps.embed_pixels(model, inputs)
        return tf.stop_gradient(image), text

    with pytest.raises(RuntimeError, match=r"does not depend on image/positions"):
        steps.forward_backward(
            parameters, inputs, tf.constant(0), model=model, config=tiny, embed=embed
        )
