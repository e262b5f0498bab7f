"""Blocks and towers with the options that papers ask for."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from sigline.trainer import config
from sigline.trainer.config import BlockConfig, ImageTowerConfig, TextTowerConfig
from sigline.trainer.models import sizes as variants
from sigline.trainer.models import two_tower, vit
from sigline.trainer.models.text import TextTransformer
from sigline.trainer.models.transformer import Block, Encoder, drop

WIDTH, HEADS = 8, 2


def _randomized(layer, seed=0):
    """Gives a built layer weights of which none is special, and returns them by name."""
    rng = np.random.default_rng(seed)
    for variable in layer.variables:
        variable.assign(0.5 * rng.standard_normal(variable.shape))
    prefix = f"{layer.name}/"
    return {v.path.removeprefix(prefix): v.numpy().astype(np.float64) for v in layer.variables}


def _norm(x, weights, name, epsilon):
    if f"{name}/scale" in weights:
        # Not centred: an RMS norm.
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + epsilon) * weights[f"{name}/scale"]
    x = x - x.mean(-1, keepdims=True)
    x = x / np.sqrt((x**2).mean(-1, keepdims=True) + epsilon) * weights[f"{name}/gamma"]
    return x + weights.get(f"{name}/beta", 0.0)


def _dense(x, weights, name):
    return x @ weights[f"{name}/kernel"] + weights.get(f"{name}/bias", 0.0)


def _numpy_block(x, weights, options, causal):
    """A block in float64, written out by heads."""

    def attend(y):
        q, k, v = (_dense(y, weights, f"attention/{n}") for n in ("query", "key", "value"))
        size, mixed = WIDTH // HEADS, []
        for i in range(HEADS):
            one = slice(i * size, (i + 1) * size)
            q_i, k_i = q[..., one], k[..., one]
            if options.qk_norm:
                q_i = _norm(q_i, weights, "attention/query_norm", options.norm_epsilon)
                k_i = _norm(k_i, weights, "attention/key_norm", options.norm_epsilon)
            scores = q_i @ k_i.transpose(0, 2, 1) / np.sqrt(size)
            if causal:
                scores = scores + np.triu(np.full(scores.shape[-2:], -np.inf), 1)
            scores = np.exp(scores - scores.max(-1, keepdims=True))
            mixed.append(scores / scores.sum(-1, keepdims=True) @ v[..., one])
        return _dense(np.concatenate(mixed, -1), weights, "attention/out")

    def mlp(y):
        hidden = _dense(y, weights, "mlp/up")
        if options.activation == "quick_gelu":
            hidden = hidden / (1 + np.exp(-1.702 * hidden))
        elif options.activation == "gelu":
            from scipy.special import erf

            hidden = hidden * 0.5 * (1 + erf(hidden / np.sqrt(2)))
        else:
            cubic = np.sqrt(2 / np.pi) * (hidden + 0.044715 * hidden**3)
            hidden = 0.5 * hidden * (1 + np.tanh(cubic))
        return _dense(hidden, weights, "mlp/down")

    y = _norm(x, weights, "attention_norm", options.norm_epsilon)
    if options.parallel:
        return x + attend(y) + mlp(y)
    x = x + attend(y)
    return x + mlp(_norm(x, weights, "mlp_norm", options.norm_epsilon))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"activation": "gelu"},
        {"activation": "quick_gelu", "norm_epsilon": 1e-2},
        {"qk_norm": True},
        {"parallel": True},
        {"norm_bias": False, "qkv_bias": False, "mlp_bias": False},
        # ViT-22B: all at once, with biases in the MLP only.
        {
            "qk_norm": True,
            "parallel": True,
            "qkv_bias": False,
            "norm": "rms",
            "norm_bias": False,
        },
    ],
    ids=str,
)
@pytest.mark.parametrize("causal", [False, True])
def test_block_equals_numpy(options, causal):
    options = BlockConfig(**options)
    block = Block(WIDTH, 12, HEADS, options=options, causal=causal, name="block")
    block.build((None, 5, WIDTH))
    weights = _randomized(block)
    x = np.random.default_rng(1).standard_normal((3, 5, WIDTH))
    expected = _numpy_block(x, weights, options, causal)
    np.testing.assert_allclose(block(tf.constant(x, tf.float32)), expected, rtol=1e-4, atol=1e-4)


def test_causal_encoder_does_not_see_what_follows():
    encoder = Encoder(WIDTH, 2, 12, HEADS, causal=True)
    encoder.build((None, 5, WIDTH))
    x = tf.random.stateless_normal((1, 5, WIDTH), (0, 0))
    changed = tf.concat([x[:, :3], x[:, 3:] + 1.0], axis=1)
    np.testing.assert_array_equal(encoder(x)[:, :3], encoder(changed)[:, :3])
    assert (encoder(x)[:, 3:].numpy() != encoder(changed)[:, 3:].numpy()).any()


@pytest.mark.parametrize("rematerialize", [False, True])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("options", [{}, {"parallel": True, "qk_norm": True}])
@pytest.mark.parametrize("tokens", [slice(0, 1), slice(-1, None), slice(1, 4)])
def test_some_tokens_are_those_of_all(tokens, options, causal, rematerialize):
    options = BlockConfig(**options)
    encoder = Encoder(
        WIDTH, 2, 12, HEADS, options=options, causal=causal, rematerialize=rematerialize
    )
    encoder.build((None, 5, WIDTH))
    _randomized(encoder)
    x = tf.random.stateless_normal((3, 5, WIDTH), (0, 0))

    @tf.function(autograph=False)
    def compute(some):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = encoder(x, tokens=tokens) if some else encoder(x)[:, tokens]
            loss = tf.reduce_sum(y**3)
        return y, tape.gradient(loss, [x, *(v.value for v in encoder.trainable_variables)])

    for some, all_ in zip(*map(tf.nest.flatten, (compute(True), compute(False))), strict=True):
        np.testing.assert_allclose(some, all_, rtol=1e-3, atol=1e-3)


def test_drop_keeps_the_mean_and_drops_the_asked_share():
    dropped = drop(tf.ones((200, 50)), 0.3, tf.constant([0, 1])).numpy()
    np.testing.assert_allclose(np.unique(dropped), [0.0, 1 / 0.7], rtol=1e-6)
    assert (dropped == 0).mean() == pytest.approx(0.3, abs=0.02)


def test_drop_of_examples_drops_them_whole():
    dropped = drop(tf.ones((200, 50)), 0.3, tf.constant([0, 1]), examples=True).numpy()
    assert (dropped == dropped[:, :1]).all()
    assert (dropped[:, 0] == 0).mean() == pytest.approx(0.3, abs=0.1)


def test_nothing_is_dropped_without_a_seed():
    x = tf.ones((4, 4))
    assert drop(x, 0.5, None) is x
    encoder = Encoder(WIDTH, 2, 12, HEADS, options=BlockConfig(dropout=0.5, stochastic_depth=0.5))
    plain = Encoder(WIDTH, 2, 12, HEADS)
    for layer in (encoder, plain):
        layer.build((None, 5, WIDTH))
        _randomized(layer)
    x = tf.random.stateless_normal((2, 5, WIDTH), (0, 0))
    np.testing.assert_array_equal(encoder(x), plain(x))


def test_stochastic_depth_grows_from_none_at_the_first_block():
    encoder = Encoder(WIDTH, 5, 12, HEADS, options=BlockConfig(stochastic_depth=0.4))
    assert [block.stochastic_depth for block in encoder.blocks] == pytest.approx(
        [0.0, 0.1, 0.2, 0.3, 0.4]
    )


def test_what_is_dropped_is_a_function_of_the_seed():
    encoder = Encoder(WIDTH, 3, 12, HEADS, options=BlockConfig(dropout=0.2, stochastic_depth=0.5))
    encoder.build((None, 5, WIDTH))
    _randomized(encoder)
    x = tf.random.stateless_normal((8, 5, WIDTH), (0, 0))
    seeds = [1, 2], [1, 2], [1, 3]
    first, again, other = (encoder(x, tf.constant(seed)).numpy() for seed in seeds)
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    assert (first != encoder(x).numpy()).any()


def test_rematerialized_blocks_drop_the_same():
    options = BlockConfig(dropout=0.2, stochastic_depth=0.5)
    found = []
    for rematerialize in (False, True):
        encoder = Encoder(WIDTH, 2, 12, HEADS, options=options, rematerialize=rematerialize)
        encoder.build((None, 5, WIDTH))
        _randomized(encoder)
        x = tf.random.stateless_normal((8, 5, WIDTH), (0, 0))

        @tf.function(autograph=False)
        def compute(x, encoder=encoder):
            with tf.GradientTape() as tape:
                tape.watch(x)
                y = tf.reduce_sum(encoder(x, tf.constant([1, 2])) ** 3)
            return y, tape.gradient(y, x)

        found.append(compute(x))
    for plain, remade in zip(*found, strict=True):
        np.testing.assert_allclose(plain, remade, rtol=1e-4, atol=1e-5)


def _image_tower(**options):
    settings = ImageTowerConfig(
        size=12, patch=4, width=WIDTH, depth=1, mlp_dim=12, num_heads=HEADS, **options
    )
    tower = vit.VisionTransformer(settings, name="image")
    tower.build()
    _randomized(tower)
    return tower


IMAGES = np.random.default_rng(0).standard_normal((3, 12, 12, 3)).astype(np.float32)


@pytest.mark.parametrize("pool", ["map", "gap", "tok", "last"])
@pytest.mark.parametrize("registers", [0, 2])
def test_image_pools_embed(pool, registers):
    tower = _image_tower(pool=pool, num_registers=registers)
    assert tower(IMAGES).shape == (3, WIDTH)
    assert tower.encoder.norm.gamma.shape == (WIDTH,)


def test_rms_norm_has_no_bias():
    block = BlockConfig(norm="rms", norm_bias=False)
    block.check("block")
    with pytest.raises(ValueError, match=r"block\.norm_bias must be false with block\.norm=rms"):
        dataclasses.replace(block, norm_bias=True).check("block")
    tower = _image_tower(pool="map", embedding_norm=True, block=block)
    paths = [variable.path for variable in tower.variables]
    assert not [path for path in paths if path.endswith(("gamma", "beta"))]
    # Before the first block, in each block, behind the last one, and in the pool.
    assert sum(path.endswith("norm/scale") for path in paths) == 5


@pytest.mark.parametrize(("pool", "token"), [("tok", 0), ("last", 8), ("gap", slice(0, 9))])
def test_image_pool_reads_its_tokens_and_no_register(pool, token):
    tower = _image_tower(pool=pool, num_registers=2)
    seen = []
    tower.encoder.call = lambda x, seed=None, tokens=None: seen.append(tokens) or x[:, tokens]
    tower(IMAGES)
    expected = token if isinstance(token, slice) else slice(token, token + 1)
    assert seen == [expected]


def test_fixed_positions_are_no_variables():
    names = [v.path for v in _image_tower(positions="sincos2d").variables]
    assert not [name for name in names if "positions" in name]


def test_projection_follows_the_pool():
    tower = _image_tower(pool="tok", projection=6, projection_bias=False)
    plain = _image_tower(pool="tok")
    for ours, theirs in zip(plain.variables, tower.variables, strict=False):
        ours.assign(theirs)
    np.testing.assert_allclose(
        tower(IMAGES), plain(IMAGES).numpy() @ tower.projection.kernel.numpy(), rtol=1e-4, atol=1e-5
    )


def test_token_dropout_leaves_out_a_share_of_the_patches_in_training_only():
    tower = _image_tower(token_dropout=0.5)
    lengths = []
    call = tower.encoder.call
    tower.encoder.call = lambda x, seed=None, tokens=None: lengths.append(x.shape[1]) or call(x)
    tower(IMAGES)
    tower(IMAGES, tf.constant([0, 0]))
    # Half of nine patches: Python rounds to the even number.
    assert lengths == [9, 4]


def test_token_dropout_keeps_some_of_the_patches_of_each_image():
    x = tf.reshape(tf.range(3 * 9.0), (3, 9, 1))
    kept = vit._some_tokens(x, 0.5, tf.constant([0, 0])).numpy()[..., 0]
    for row, image in zip(kept, x.numpy()[..., 0], strict=True):
        assert len(set(row)) == 4
        assert set(row) <= set(image)
        assert sorted(row) == list(row)
    assert len({tuple(row - row.min() // 9 * 9) for row in kept}) > 1


def _text_tower(**options):
    settings = TextTowerConfig(
        vocabulary_size=20,
        length=5,
        width=WIDTH,
        depth=1,
        mlp_dim=12,
        num_heads=HEADS,
        **options,
    )
    tower = TextTransformer(settings, output_dim=WIDTH, name="text")
    tower.build()
    _randomized(tower)
    return tower


IDS = np.array([[5, 6, 1, 1, 1], [7, 8, 9, 10, 1]], np.int32)


@pytest.mark.parametrize("pool", ["last", "first", "end", "gap", "max", "map"])
def test_text_pools_embed(pool):
    assert _text_tower(pool=pool, end_id=1)(IDS).shape == (2, WIDTH)


def test_text_pool_reads_the_first_end():
    tower = _text_tower(pool="end", end_id=1)
    tower.encoder.call = lambda x, seed=None, tokens=None: x
    x = tower.tokens.numpy()[IDS] + tower.positions.numpy()
    pooled = np.stack([x[0, 2], x[1, 4]])
    expected = pooled @ tower.head.kernel.numpy() + tower.head.bias.numpy()
    np.testing.assert_allclose(tower(IDS), expected, rtol=1e-5)


@pytest.mark.parametrize("name", variants.names())
def test_heads_divide_the_width(name):
    sizes = variants.sizes(name)
    assert sizes["width"] % sizes["num_heads"] == 0


# In millions, of arXiv 2106.04560 (table 2), 2010.11929 and 2305.13035; of a whole image tower.
@pytest.mark.parametrize(
    ("name", "millions"),
    [("B", 86), ("L", 303), ("So400m", 428), ("H", 632), ("g", 1011), ("G", 1843), ("e", 3926)],
)
def test_published_sizes_have_about_the_published_parameters(name, millions):
    sizes = variants.sizes(name)
    width, mlp = sizes["width"], sizes["mlp_dim"]
    blocks = sizes["depth"] * (4 * width**2 + 2 * width * mlp) / 1e6
    # Patches, positions, norms and the pool are the rest.
    assert 0.95 * millions < blocks < millions


def test_unknown_size_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"name='XXL'. Known sizes: mu, Ti, S,"):
        variants.sizes("XXL")


def test_so400m_has_the_published_number_of_parameters():
    # google/siglip-so400m-patch14-384: of its 384 pixels, 27 x 14 are seen.
    def count(depth):
        sizes = variants.sizes("So400m") | {"depth": depth}
        with tf.Graph().as_default():
            tower = vit.VisionTransformer(ImageTowerConfig(size=378, patch=14, **sizes))
            tower.build()
            return sum(int(np.prod(v.shape)) for v in tower.variables)

    one = count(1)
    assert one + 26 * (count(2) - one) == 428_225_600


def test_options_reach_the_towers_of_a_model():
    base = config.tiny(config.load_recipe("siglip_demo"))
    settings = dataclasses.replace(
        base,
        image=dataclasses.replace(base.image, projection=24, block=BlockConfig(qk_norm=True)),
        text=dataclasses.replace(base.text, causal=True, pool="gap"),
    )
    model = two_tower.build(settings)
    names = two_tower.named_parameters(model)
    assert "image/encoder/block_0/attention/query_norm/gamma" in names
    size = settings.image.size
    image, text = model(tf.zeros((2, size, size, 3)), tf.ones((2, 16), tf.int32))
    assert image.shape == text.shape == (2, 24)
