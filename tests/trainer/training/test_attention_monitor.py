"""The scalars of attention, against NumPy float64."""

import functools
import math

import numpy as np
import pytest
import tensorflow as tf

from sigline.trainer import config
from sigline.trainer.inputs import preprocess
from sigline.trainer.models import attention_statistics, two_tower
from sigline.trainer.models.transformer import Attention
from sigline.trainer.training import attention_monitor
from sigline.trainer.training.attention_monitor import MAX_LOGIT, MIN_ENTROPY_SHARE
from sigline.trainer.training.calls import Models

ONE_BLOCK = ["image.depth=1", "text.depth=1"]


def _numpy_statistics(logits, mask=None):
    """In float64, a query at a time, over the tokens that it sees."""
    entropies, most = [], []
    for number in range(logits.shape[2]):
        seen = slice(None) if mask is None else mask[number]
        rows = logits[:, :, number, seen].astype(np.float64)
        shares = np.exp(rows - rows.max(-1, keepdims=True))
        shares /= shares.sum(-1, keepdims=True)
        logarithms = np.log(np.where(shares > 0, shares, 1.0))
        entropies.append(-(shares * logarithms).sum(-1))
        most.append(math.log(rows.shape[-1]))
    visible = logits if mask is None else logits[:, :, mask]
    return np.abs(visible).max(), np.mean(entropies), np.mean(entropies) / np.mean(most)


@pytest.mark.parametrize("scale", [1.0, 30.0, 1e4])
@pytest.mark.parametrize("causal", [False, True])
def test_statistics_equal_numpy(scale, causal):
    logits = (scale * np.random.default_rng(0).standard_normal((3, 2, 5, 5))).astype(np.float32)
    mask = np.tri(5, dtype=bool) if causal else None
    found = attention_statistics.of_logits(tf.constant(logits), mask)
    np.testing.assert_allclose(found, _numpy_statistics(logits, mask), rtol=1e-5, atol=1e-6)


def test_even_attention_has_the_entropy_of_its_tokens():
    found = attention_statistics.of_logits(tf.fill((2, 3, 4, 7), 5.0))
    np.testing.assert_allclose(found, (5.0, math.log(7), 1.0), rtol=1e-6)
    alone = attention_statistics.of_logits(tf.fill((2, 3, 4, 1), 5.0))
    np.testing.assert_array_equal(alone, (5.0, 0.0, 1.0))


def test_nothing_is_recorded_outside_of_a_block_that_records():
    def fail():
        with attention_statistics.recording():
            assert attention_statistics.is_recording()
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert not attention_statistics.is_recording()


def _models(assignments, recipe="siglip_demo"):
    tiny = config.override(config.tiny(config.load_recipe(recipe)), [*ONE_BLOCK, *assignments])
    model = two_tower.build(tiny)
    rng = np.random.default_rng(1)
    for variable in model.variables:
        if variable.path.endswith(("kernel", "scale", "gamma")):
            variable.assign(rng.standard_normal(variable.shape))
    return Models.of(tiny, model)


def _batch(models, count=10):
    rng = np.random.default_rng(0)
    size, length = models.config.image.size, models.config.text.length
    pixels = rng.integers(0, 256, (count, size, size, 3), np.uint8)
    ids = rng.integers(1, 500, (count, length))
    return {"image": tf.constant(pixels), "text": tf.constant(ids, tf.int32)}


def _monitored(models, batch):
    return attention_monitor.make_monitor(models, tf.distribute.get_strategy())(batch)


def _expected(models, batch, monkeypatch):
    """Returns the scalars by the kernels and what each layer of attention is called with."""
    calls, call = [], Attention.call

    def remembering(self, query, source, tokens=slice(None)):
        calls.append((self, query.numpy(), source.numpy(), tokens))
        return call(self, query, source, tokens)

    with monkeypatch.context() as patch:
        patch.setattr(Attention, "call", remembering)
        first = {name: values[: attention_monitor.EXAMPLES] for name, values in batch.items()}
        models.model.look(preprocess.to_model_range(first["image"], models.config.image))
        models.model.embed_text(first["text"])
    expected = {}
    for layer, query, source, tokens in calls:
        q, k = (_heads(layer, i, x) for i, x in enumerate((query, source)))
        logits = np.einsum("bqhd,bkhd->bhqk", q, k) / np.sqrt(layer.head_dim)
        mask = np.tri(source.shape[1], dtype=bool)[tokens] if layer.causal else None
        name = layer.path.removeprefix("two_tower/").removesuffix("/attention")
        values = _numpy_statistics(logits, mask)
        for field, value in zip(("max_logit", "entropy", "entropy_share"), values, strict=True):
            expected[f"attention_{field}/{name}"] = value
    of = {x: [v for k, v in expected.items() if f"_{x}/" in k] for x in ("max_logit", "share")}
    return expected | {MAX_LOGIT: max(of["max_logit"]), MIN_ENTROPY_SHARE: min(of["share"])}


def _heads(layer, place, x):
    projection = (layer.query, layer.key)[place]
    y = x.astype(np.float64) @ projection.kernel.numpy().astype(np.float64)
    y = y + (0.0 if projection.bias is None else projection.bias.numpy())
    y = y.reshape(*y.shape[:2], layer.num_heads, layer.head_dim)
    if not layer.norms:
        return y
    y = y / np.sqrt((y**2).mean(-1, keepdims=True) + layer.norms[place].epsilon)
    return y * layer.norms[place].scale.numpy()


BLOCK_OF_22B = [
    f"image.block.{option}"
    for option in ("parallel=true", "qk_norm=true", "qkv_bias=false", "norm=rms", "norm_bias=false")
]


@pytest.mark.parametrize(
    "assignments",
    [
        ["text.causal=true"],
        ["image.pool=tok", *BLOCK_OF_22B],
        ["image.grids=[1,2]", "image.position_grid=2", "image.pool=gap"],
    ],
    ids=["map-causal", "token-22b", "grids"],
)
def test_scalars_equal_numpy(assignments, monkeypatch):
    models = _models(assignments)
    batch = _batch(models)
    found, expected = _monitored(models, batch), _expected(models, batch, monkeypatch)
    assert found.keys() == expected.keys()
    assert "attention_entropy/text/encoder/block_0" in found
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-4, abs=1e-5), name


@functools.cache
def _plain():
    models = _models([])
    return _batch(models), _monitored(models, _batch(models))


@pytest.mark.parametrize(
    "assignments",
    [
        ["rematerialize=true", "microbatches=2"],
        ["image.block.dropout=0.5", "text.block.stochastic_depth=0.5", "image.token_dropout=0.5"],
        ['optimizer.rates=[["image/.*", null], [".*", 1]]'],
    ],
    ids=["memory", "drops", "frozen"],
)
def test_scalars_do_not_depend_on_how_training_goes(assignments):
    batch, expected = _plain()
    found = _monitored(_models(assignments), batch)
    assert found == pytest.approx(expected, rel=1e-5)


def test_only_the_first_examples_count():
    batch, expected = _plain()
    bound = attention_monitor.EXAMPLES
    assert expected == _monitored(_models([]), {k: x[:bound] for k, x in batch.items()})
    other = _monitored(_models([]), {k: x[: bound - 1] for k, x in batch.items()})
    assert other != pytest.approx(expected, rel=1e-5)


def test_towers_that_do_not_run_have_no_scalars():
    models = _models([])
    batch, expected = _plain()
    embedded = batch | {"image": tf.zeros((10, models.config.image.output_dim))}
    found = _monitored(models._replace(embedded=True), embedded)
    names = {name for name in found if "/text/" not in name}
    assert names == {MAX_LOGIT, MIN_ENTROPY_SHARE}
    for name in found.keys() - names:
        assert found[name] == pytest.approx(expected[name], rel=1e-6)
    with pytest.raises(ValueError, match=r"run\.monitor_attention must be false where no layer"):
        _monitored(models._replace(embedded=True), {"image": embedded["image"]})
