"""ViT-22B: its block, its counts, its groups of decay, and where it is refused."""

import dataclasses
import re

import numpy as np
import pytest

from sigline.trainer import config
from sigline.trainer.models import specs
from sigline.trainer.models.transformer import Block
from sigline.trainer.training import loop, memory, optimizers
from sigline.trainer.weights import inheritance, model_weights
from sigline.trainer.weights.model_weights import Weights

RECIPE = config.load_recipe("vit_22b")
SMALLER = config.load_recipe("vit_parallel_so400m14")


@pytest.fixture(scope="module")
def sizes():
    """Numbers of parameters by name. 90 GB of float32, if they were made."""
    found = specs.parameter_specs(RECIPE)
    return {name: spec.shape.num_elements() for name, spec in found.items()}


def _sum(sizes, pattern):
    return sum(size for name, size in sizes.items() if re.fullmatch(pattern, name))


def _fused_block(x, weights, heads):
    """The block in float64 as the paper fuses it: one product in, one product out."""

    def rms(x, scale):
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * scale

    width, mlp = weights["mlp/up/kernel"].shape
    inner = [weights[f"attention/{name}/kernel"] for name in ("query", "key", "value")]
    y = rms(x, weights["attention_norm/scale"])
    joined = y @ np.concatenate([*inner, weights["mlp/up/kernel"]], axis=1)
    q, k, v, hidden = np.split(joined, [width, 2 * width, 3 * width], axis=-1)
    q, k, v = (z.reshape(*z.shape[:2], heads, width // heads) for z in (q, k, v))
    q = rms(q, weights["attention/query_norm/scale"])
    k = rms(k, weights["attention/key_norm/scale"])
    logits = np.einsum("bqhd,bkhd->bhqk", q, k) / np.sqrt(width // heads)
    shares = np.exp(logits - logits.max(-1, keepdims=True))
    shares /= shares.sum(-1, keepdims=True)
    mixed = np.einsum("bhqk,bkhd->bqhd", shares, v).reshape(x.shape)
    hidden = hidden + weights["mlp/up/bias"]
    assert hidden.shape[-1] == mlp
    hidden *= 0.5 * (1 + np.tanh(np.sqrt(2 / np.pi) * (hidden + 0.044715 * hidden**3)))
    outer = np.concatenate([weights["attention/out/kernel"], weights["mlp/down/kernel"]], axis=0)
    biases = weights["attention/out/bias"] + weights["mlp/down/bias"]
    return x + np.concatenate([mixed, hidden], axis=-1) @ outer + biases


def test_block_equals_the_fused_form_of_the_paper():
    width, heads = 12, 3
    block = Block(width, 20, heads, options=RECIPE.image.block, name="block")
    block.build((None, 5, width))
    rng = np.random.default_rng(0)
    weights = {}
    for variable in block.variables:
        value = rng.standard_normal(variable.shape)
        value = 1.0 + 0.1 * value if variable.path.endswith("scale") else 0.3 * value
        variable.assign(value)
        weights[variable.path.removeprefix("block/")] = variable.numpy().astype(np.float64)
    x = rng.standard_normal((2, 5, width)).astype(np.float32)
    expected = _fused_block(x.astype(np.float64), weights, heads)
    np.testing.assert_allclose(block(x), expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_counts_are_the_published_ones(sizes):
    # 48 times 12 times the square of 6,144: the published 21,743 million are those of the matrices.
    assert _sum(sizes, r"image/encoder/block_\d+/.*/kernel") == 21_743_271_936
    assert _sum(sizes, r"image/encoder/block_7/.*") == 453_028_096
    body = _sum(sizes, r"image/(encoder|embedding|positions).*")
    assert body == 21_750_546_432
    assert body + _sum(sizes, r"image/pool/.*") == 22_203_580_672
    assert sum(sizes.values()) == 22_203_580_672 + (6_144 + 1) * 30_000


def test_no_projection_to_queries_keys_and_values_and_no_norm_has_a_bias(sizes):
    biased = {name for name in sizes if name.endswith(("bias", "beta"))}
    parts = {re.sub(r"block_\d+", "block", name) for name in biased}
    assert parts == {
        "image/embedding/bias",
        "image/encoder/block/attention/out/bias",
        "image/encoder/block/mlp/up/bias",
        "image/encoder/block/mlp/down/bias",
        "image/pool/attention/out/bias",
        "image/pool/mlp/up/bias",
        "image/pool/mlp/down/bias",
        "image/head/bias",
    }


def test_head_and_body_have_the_published_decays(sizes):
    optimizer = RECIPE.optimizer
    # In the paper's convention the decay is multiplied by the rate.
    factor = optimizer.weight_decay / optimizer.learning_rate
    decays = optimizers.matched(optimizer.decays, sizes)
    assert factor * decays["image/head/kernel"] == pytest.approx(3.0)
    others = {name: factor * decay for name, decay in decays.items() if decay}
    del others["image/head/kernel"]
    assert set(others) == {
        name for name in sizes if name.endswith("/kernel") and not name.startswith("image/head")
    }
    assert list(others.values()) == pytest.approx([0.03] * len(others))


def test_state_takes_ten_bytes_a_parameter(sizes):
    state = memory.state_bytes(RECIPE)
    assert state.total == 10 * sum(sizes.values())
    without_head = 10 * (sum(sizes.values()) - (6_144 + 1) * 30_000)
    assert round(without_head / 2**30) == 207


def test_training_is_refused_before_anything_is_made(monkeypatch, split_dir, tmp_path):
    monkeypatch.setattr(memory, "_host_bytes", lambda: 64 * 2**30)
    message = r"takes 208\.5 GiB \(parameters 83\.4 GiB, .* this machine has 64\.0 GiB"
    with pytest.raises(ValueError, match=message):
        loop.train(RECIPE, split_dir=split_dir, vocabulary=None, checkpoint_dir=tmp_path / "ck")
    assert not (tmp_path / "ck").exists()


def test_smaller_model_has_the_same_block_and_options_and_fits_on_a_chip():
    differing = {"name", "steps", "global_batch_size", "image"}
    changes = {name: getattr(RECIPE, name) for name in differing}
    assert dataclasses.replace(SMALLER, **changes) == RECIPE
    assert SMALLER.image.block == RECIPE.image.block
    assert memory.state_bytes(SMALLER).total < 5 * 2**30


def test_lit_takes_blocks_sizes_and_pool_from_the_weights():
    tiny = config.tiny(SMALLER)
    held = {
        name: np.zeros(spec.shape, np.float32) for name, spec in specs.parameter_specs(tiny).items()
    }
    weights = Weights(tiny, held)
    changes = ['pretrained=["image/(?!head/).*"]']
    tiny_lit = config.override(config.tiny(config.load_recipe("lit_b16")), changes)
    lit = inheritance.inherit(tiny_lit, weights, changes)
    assert lit.image == dataclasses.replace(tiny.image, classes=None)
    shapes = {name: tuple(spec.shape) for name, spec in specs.parameter_specs(lit).items()}
    fitted = model_weights.fitted(weights, shapes, lit.pretrained)
    assert set(fitted) == {name for name in held if not name.startswith("image/head/")}
    trained = optimizers.matched(lit.optimizer.rates, shapes)
    assert all(rate is None for name, rate in trained.items() if name.startswith("image/"))


def test_weights_of_a_plain_vit_are_refused_by_name():
    plain = dataclasses.replace(SMALLER.image, block=config.BlockConfig())
    tiny = config.tiny(dataclasses.replace(SMALLER, image=plain))
    held = {
        name: np.zeros(spec.shape, np.float32) for name, spec in specs.parameter_specs(tiny).items()
    }
    shapes = specs.parameter_specs(config.tiny(SMALLER))
    shapes = {name: tuple(spec.shape) for name, spec in shapes.items()}
    with pytest.raises(ValueError, match="image/encoder/block_0/attention/query_norm/scale"):
        model_weights.fitted(Weights(tiny, held), shapes, ["image/.*"])
