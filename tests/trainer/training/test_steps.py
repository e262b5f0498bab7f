import dataclasses
import functools
import types

import keras
import numpy as np
import pytest
import tensorflow as tf

from sigline.trainer import config
from sigline.trainer.inputs.preprocess import to_model_range
from sigline.trainer.losses import collectives, pair_losses
from sigline.trainer.models import two_tower
from sigline.trainer.models.two_tower import named_variables
from sigline.trainer.objectives import making
from sigline.trainer.objectives.base import Context
from sigline.trainer.training import calls, optimizers, steps
from sigline.trainer.training.calls import Models
from sigline.trainer.training.state import TrainState


@pytest.fixture(scope="module")
def deep():
    """Two towers of two blocks."""
    return config.tiny(config.load_recipe("siglip_demo"))


@pytest.fixture(scope="module")
def tiny(deep):
    return config.override(deep, ["image.depth=1", "text.depth=1"])


@pytest.fixture(scope="module")
def inputs(tiny):
    size, length = tiny.image.size, tiny.text.length
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (8, size, size, 3), np.uint8)
    ids = tf.constant(rng.integers(1, 500, (8, length)), tf.int32)
    return {"image": tf.constant(pixels), "text": ids}


def _run(settings, inputs, model=None, *, traced=False):
    model = model or two_tower.build(settings)
    parameters = {n: tf.convert_to_tensor(v) for n, v in named_variables(model).items()}

    def compute():
        return steps.forward_backward(
            parameters, inputs, tf.zeros((), tf.int64), models=Models.of(settings, model)
        )

    return tf.function(compute, autograph=False)() if traced else compute()


@pytest.fixture(scope="module")
def plain(tiny, inputs):
    """Loss and gradients without any option."""
    return _run(tiny, inputs, traced=True)


def test_parameters_that_are_passed_in_are_used_and_not_the_models(tiny, inputs, plain):
    model = two_tower.build(tiny)
    parameters = {n: tf.convert_to_tensor(v) for n, v in named_variables(model).items()}
    for variable in named_variables(model).values():
        variable.assign(tf.zeros_like(variable))
    after = steps.forward_backward(
        parameters, inputs, tf.zeros((), tf.int64), models=Models.of(tiny, model)
    )
    for name, value in plain.gradients.items():
        np.testing.assert_allclose(after.gradients[name], value, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("pool", ["map", "gap", "tok"])
def test_rematerialized_blocks_have_the_same_loss_and_gradients(tiny, inputs, pool):
    kept = dataclasses.replace(tiny, image=dataclasses.replace(tiny.image, pool=pool))
    expected = _run(kept, inputs, traced=True)
    found = _run(dataclasses.replace(kept, rematerialize=True), inputs, traced=True)
    assert float(found.shares["loss"]) == pytest.approx(float(expected.shares["loss"]), rel=1e-6)
    for name, value in expected.gradients.items():
        scale = np.abs(value).max() + 1e-9
        np.testing.assert_allclose(
            found.gradients[name], value, atol=1e-5 * scale + 1e-7, rtol=0, err_msg=name
        )


def test_rematerialized_blocks_are_computed_again(deep, inputs):
    def hyperbolic_tangents(settings):
        model = two_tower.build(settings)
        compute = tf.function(
            lambda x: steps.forward_backward(
                {n: v.value for n, v in two_tower.named_parameters(model).items()},
                x,
                tf.zeros((), tf.int64),
                models=Models.of(settings, model),
            ),
            autograph=False,
        )
        graph = compute.get_concrete_function(inputs).graph.as_graph_def()
        nodes = [*graph.node, *(n for f in graph.library.function for n in f.node_def)]
        return sum(node.op == "Tanh" for node in nodes)

    # GELU has one in each MLP: of two and two blocks, and of the attention pool.
    assert hyperbolic_tangents(deep) == 5
    assert hyperbolic_tangents(dataclasses.replace(deep, rematerialize=True)) == 9


def test_bfloat16_towers_give_nearly_the_same_loss_in_float32(tiny, inputs, plain):
    expected = plain
    found = _run(dataclasses.replace(tiny, precision="bfloat16"), inputs)
    assert found.shares["loss"].dtype == tf.float32
    assert float(found.shares["loss"]) == pytest.approx(float(expected.shares["loss"]), rel=2e-2)
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


def test_frozen_tower_has_no_gradient(tiny, inputs, plain):
    frozen = config.override(tiny, ['optimizer.rates=[["image/.*", null], [".*", 1]]'])
    outcome = _run(frozen, inputs)
    assert not any(name.startswith("image/") for name in outcome.gradients)
    for name, value in outcome.gradients.items():
        np.testing.assert_allclose(value, plain.gradients[name], atol=1e-6, err_msg=name)


def test_softmax_recipe_computes_the_softmax_loss(tiny, inputs):
    softmax = config.override(tiny, ["objectives.pairs.loss=softmax"])
    model = two_tower.build(softmax)
    image, text = model(to_model_range(inputs["image"], tiny.image), inputs["text"])
    temperature = tiny.similarity.temperature_init
    expected = pair_losses.softmax_loss(image, text, temperature=temperature).loss
    outcome = _run(softmax, inputs, model)
    assert float(outcome.shares["loss"]) == pytest.approx(float(expected), rel=1e-5)
    assert float(outcome.gradients["bias"]) == 0.0
    assert float(outcome.gradients["log_temperature"]) != 0.0


def test_studied_negatives_change_from_step_to_step(tiny, inputs):
    studied = ["objectives.pairs.negatives=random", "objectives.pairs.negatives_per_image=2"]
    settings = config.override(tiny, studied)
    model = two_tower.build(settings)
    parameters = {n: tf.convert_to_tensor(v) for n, v in named_variables(model).items()}

    def loss(step):
        outcome = steps.forward_backward(
            parameters, inputs, tf.constant(step, tf.int64), models=Models.of(settings, model)
        )
        return float(outcome.means["negative_logit_mean"])

    assert loss(0) == loss(0)
    assert len({loss(step) for step in range(4)}) == 4


def test_configured_chunk_size_reaches_the_loss(tiny):
    settings = config.override(tiny, ["objectives.pairs.chunk_size=24"])
    spec = tf.TensorSpec((100, 8), tf.float32)

    @tf.function(jit_compile=True, autograph=False)
    def compute(image, text):
        parameters = {"log_temperature": tf.constant(1.0), "bias": tf.constant(0.0)}
        call = types.SimpleNamespace(
            parameters=parameters, step=tf.constant(0), exchange=collectives.single_replica()
        )
        (objective,) = making.make(Context(settings))
        return objective.loss({"image": image, "text": text}, call).shares

    assert "[24,100]" in compute.experimental_get_compiler_ir(spec, spec)(stage="hlo")


def test_configured_number_of_negatives_reaches_the_loss(tiny, inputs, plain):
    def mean(number):
        settings = config.override(
            tiny,
            [
                "objectives.pairs.negatives=hard",
                f"objectives.pairs.negatives_per_image={number}",
            ],
        )
        return float(_run(settings, inputs).means["negative_logit_mean"])

    means = [mean(number) for number in (1, 3, 7)]
    assert means[0] > means[1] > means[2]
    everything = float(plain.means["negative_logit_mean"])
    assert means[2] == pytest.approx(everything, rel=1e-4)


def test_configured_exchange_is_asked_for(tiny, inputs, monkeypatch):
    asked = []

    def exchange_for_context(form):
        asked.append(form)
        return collectives.single_replica()

    monkeypatch.setattr(steps, "exchange_for_context", exchange_for_context)
    _run(config.override(tiny, ["run.exchange=all_gather"]), inputs)
    assert asked == ["all_gather"]


def test_tower_without_gradient_is_reported(tiny, inputs, monkeypatch):
    model = two_tower.build(tiny)
    parameters = {n: tf.convert_to_tensor(v) for n, v in named_variables(model).items()}

    see = calls.ModelCall.image
    monkeypatch.setattr(
        calls.ModelCall,
        "image",
        lambda call: {name: tf.stop_gradient(x) for name, x in see(call).items()},
    )
    for number in (1, 2):
        models = Models.of(dataclasses.replace(tiny, microbatches=number), model)
        with pytest.raises(RuntimeError, match=r"does not depend on image/positions"):
            steps.forward_backward(parameters, inputs, tf.constant(0), models=models)


@pytest.mark.parametrize("loss", ["sigmoid", "softmax"])
@pytest.mark.parametrize("compiled", [False, True])
def test_microbatches_give_the_gradients_of_the_whole_batch(tiny, inputs, loss, compiled):
    whole = config.override(tiny, [f"objectives.pairs.loss={loss}"])
    model = two_tower.build(whole)
    parameters = {n: tf.convert_to_tensor(v) for n, v in named_variables(model).items()}
    found = []
    for number in (1, 4):
        settings = dataclasses.replace(whole, microbatches=number)
        compute = functools.partial(steps.forward_backward, models=Models.of(settings, model))
        compute = tf.function(compute, jit_compile=compiled, autograph=False)
        found.append(compute(parameters, inputs, tf.zeros((), tf.int64)))
    expected, parts = found
    assert float(parts.shares["loss"]) == pytest.approx(float(expected.shares["loss"]), rel=1e-5)
    assert set(parts.gradients) == set(expected.gradients)
    for name, value in expected.gradients.items():
        scale = np.abs(value).max()
        np.testing.assert_allclose(
            parts.gradients[name], value, atol=2e-5 * scale + 1e-7, rtol=0, err_msg=name
        )


def test_microbatches_drop_the_same_when_embedded_again(deep, inputs, monkeypatch):
    settings = config.override(
        deep, ["microbatches=2", "image.block.dropout=0.3", "text.block.stochastic_depth=0.5"]
    )
    model = two_tower.build(settings)
    parameters = {n: tf.convert_to_tensor(v) for n, v in named_variables(model).items()}
    seen = []

    see = calls.ModelCall.image

    def image(call):
        said = see(call)
        # The shapes are looked up in a graph first.
        if not tf.is_symbolic_tensor(said["embedding"]):
            seen.append(said["embedding"])
        return said

    monkeypatch.setattr(calls.ModelCall, "image", image)
    step = tf.zeros((), tf.int64)
    steps.forward_backward(parameters, inputs, step, models=Models.of(settings, model))
    first, second, first_again, second_again = (x.numpy() for x in seen)
    np.testing.assert_array_equal(first, first_again)
    np.testing.assert_array_equal(second, second_again)
    pixels = to_model_range(inputs["image"], settings.image)
    plain = model.embed_image(pixels).numpy()
    assert np.abs(np.concatenate([first, second]) - plain).max() > 1e-3


def test_microbatches_that_do_not_divide_the_batch_are_refused(tiny, inputs):
    with pytest.raises(ValueError, match=r"must divide.*microbatches=3, batch=8"):
        _run(dataclasses.replace(tiny, microbatches=3), inputs)


def test_dropout_changes_from_step_to_step_and_spares_frozen_towers(tiny, inputs):
    def losses_of(assignments):
        settings = config.override(tiny, assignments)
        model = two_tower.build(settings)
        parameters = {n: tf.convert_to_tensor(v) for n, v in named_variables(model).items()}
        compute = functools.partial(
            steps.forward_backward, parameters, inputs, models=Models.of(settings, model)
        )
        found = [compute(tf.constant(step, tf.int64)) for step in (0, 0, 1)]
        return [float(outcome.shares["loss"]) for outcome in found]

    dropping = ["image.block.dropout=0.3", "image.token_dropout=0.5"]
    first, again, later = losses_of(dropping)
    assert first == again != later
    frozen = 'optimizer.rates=[["image/.*", null], [".*", 1]]'
    first, _, later = losses_of([*dropping, frozen])
    assert first == later
    assert first == losses_of([frozen])[0]


def _start(settings):
    """Returns a model and the state before its first step, as tensors."""
    model = two_tower.build(settings)
    parameters = {n: tf.convert_to_tensor(v) for n, v in named_variables(model).items()}
    specs = {n: optimizers.slot_specs(v.shape, settings.optimizer) for n, v in parameters.items()}
    slots = {n: {k: tf.zeros(x.shape) for k, x in found.items()} for n, found in specs.items()}
    return model, TrainState(
        parameters, slots, dict(parameters), tf.zeros((), tf.int64), tf.zeros((2,), tf.int64)
    )


def test_averages_follow_the_parameters(tiny, inputs):
    settings = config.override(tiny, ["optimizer.ema_decay=0.9", "optimizer.warmup_steps=0"])
    model, state = _start(settings)
    compute = functools.partial(steps.forward_backward, models=Models.of(settings, model))
    update = functools.partial(steps.apply_gradients, config=settings)
    exchange = collectives.single_replica()
    expected = {n: v.numpy().astype(np.float64) for n, v in state.parameters.items()}
    for _ in range(3):
        state, _ = steps.train_step(
            state, inputs, config=settings, exchange=exchange, compute=compute, update=update
        )
        expected = {n: 0.9 * v + 0.1 * state.parameters[n].numpy() for n, v in expected.items()}
    for name, value in expected.items():
        np.testing.assert_allclose(state.ema[name], value, rtol=1e-4, atol=1e-6, err_msg=name)


def test_step_that_is_not_finite_changes_nothing_and_is_counted(tiny, inputs):
    settings = config.override(tiny, ["optimizer.ema_decay=0.9", "optimizer.warmup_steps=0"])
    model, state = _start(settings)
    sound = functools.partial(steps.forward_backward, models=Models.of(settings, model))

    def broken(*args):
        outcome = sound(*args)
        name = "text/head/kernel"
        return outcome._replace(
            gradients=outcome.gradients | {name: outcome.gradients[name] * np.nan}
        )

    update = functools.partial(steps.apply_gradients, config=settings)
    exchange = collectives.single_replica()
    seen = []
    for compute in (sound, broken, sound, broken):
        before = state
        state, scalars = steps.train_step(
            state, inputs, config=settings, exchange=exchange, compute=compute, update=update
        )
        old, new = before.parameters["image/positions"], state.parameters["image/positions"]
        assert bool(tf.reduce_all(old == new)) == (compute is broken)
        seen.append([int(scalars["skipped_steps"]), *state.skipped.numpy(), int(state.step)])
        for value in tf.nest.flatten((state.parameters, state.slots, state.ema)):
            assert np.isfinite(value).all()
    assert seen == [[0, 0, 0, 1], [1, 1, 2, 2], [1, 1, 2, 3], [2, 2, 2, 4]]
