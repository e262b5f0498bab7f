import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from sigline.trainer import config, recipes
from sigline.trainer.inputs import preprocess
from sigline.trainer.models import specs, two_tower
from sigline.trainer.models.transformer import Attention
from sigline.trainer.models.two_tower import named_variables
from sigline.trainer.models.vit import _patches


@pytest.fixture(scope="module")
def tiny():
    return config.tiny(config.load_recipe("siglip_demo"))


@pytest.fixture(scope="module")
def model(tiny):
    return two_tower.build(tiny)


def test_embeddings_are_unit_vectors(model, tiny):
    size = tiny.image.size
    image, text = model(tf.random.uniform((3, size, size, 3)), tf.ones((3, 16), tf.int32))
    assert image.shape == text.shape == (3, tiny.image.width)
    for vectors in (image, text):
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, rtol=1e-5)


def test_normalize_of_zero_is_zero_with_finite_gradient():
    x = tf.zeros((1, 4))
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = two_tower.normalize(x)
    assert not y.numpy().any()
    assert np.isfinite(tape.gradient(y, x)).all()


def test_same_seed_gives_the_same_weights(model, tiny):
    again = named_variables(two_tower.build(tiny))
    for name, variable in named_variables(model).items():
        np.testing.assert_array_equal(variable.numpy(), again[name].numpy(), err_msg=name)


def test_other_seed_gives_other_weights(model, tiny):
    other = named_variables(two_tower.build(dataclasses.replace(tiny, seed=1)))
    name = "image/encoder/block_0/mlp/up/kernel"
    assert (named_variables(model)[name].numpy() != other[name].numpy()).any()


def test_temperature_and_bias_start_as_configured(model, tiny):
    assert float(tf.exp(model.log_temperature.value)) == pytest.approx(
        tiny.similarity.temperature_init
    )
    assert float(model.bias.value) == pytest.approx(tiny.bias_init)


def test_base_towers_have_the_published_size():
    # Released SigLIP B/16 has 203 M parameters: 93 M in the image tower, 110 M in the text tower.
    base = config.load_recipe("siglip_b16")
    sizes = {n: spec.shape.num_elements() for n, spec in specs.parameter_specs(base).items()}
    image = sum(size for name, size in sizes.items() if name.startswith("image/"))
    text = sum(size for name, size in sizes.items() if name.startswith("text/"))
    assert image == 92_884_224
    assert text == 110_271_744


def test_initialisers_have_the_reference_scale():
    base = config.load_recipe("siglip_b16")
    small = dataclasses.replace(
        base,
        image=dataclasses.replace(base.image, depth=1),
        text=dataclasses.replace(base.text, depth=1, vocabulary_size=1000),
    )
    variables = named_variables(two_tower.build(small))
    width = 768
    xavier = np.sqrt(2 / (width + width))
    expected = {
        "image/encoder/block_0/attention/query/kernel": xavier,
        "image/encoder/block_0/mlp/up/kernel": np.sqrt(2 / (width + 3072)),
        "image/encoder/block_0/mlp/up/bias": 1e-6,
        "image/embedding/kernel": np.sqrt(1 / width),
        "image/positions": width**-0.5,
        "text/tokens": width**-0.5,
        "image/pool/probe": np.sqrt(2 / (1 + width)),
    }
    for name, stddev in expected.items():
        assert variables[name].numpy().std() == pytest.approx(stddev, rel=0.1), name
    assert not variables["image/encoder/block_0/attention/query/bias"].numpy().any()


def test_tanh_follows_the_projection(tiny):
    image = dataclasses.replace(tiny.image, projection=5)
    plain, curved = (
        two_tower.build(
            dataclasses.replace(tiny, image=dataclasses.replace(image, projection_tanh=tanh))
        ).image
        for tanh in (False, True)
    )
    pixels = tf.random.stateless_uniform((2, image.size, image.size, 3), (0, 1))
    np.testing.assert_allclose(curved(pixels), np.tanh(plain(pixels)), atol=1e-6)


@pytest.mark.parametrize("pool", ["gap", "tok"])
def test_other_pools_embed(tiny, pool):
    changed = dataclasses.replace(tiny, image=dataclasses.replace(tiny.image, pool=pool))
    size = tiny.image.size
    assert two_tower.build(changed).embed_image(tf.zeros((2, size, size, 3))).shape == (2, 32)


def test_patches_equal_a_strided_convolution():
    rng = np.random.default_rng(0)
    images = rng.standard_normal((2, 8, 8, 3)).astype(np.float32)
    kernel = rng.standard_normal((4, 4, 3, 5)).astype(np.float32)
    expected = tf.nn.conv2d(images, kernel, strides=4, padding="VALID").numpy().reshape(2, 4, 5)
    found = _patches(tf.constant(images), 4) @ tf.reshape(kernel, (48, 5))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_attention_equals_keras_multi_head_attention():
    import keras

    ours = Attention(8, 2)
    ours.build((None, 5, 8), (None, 5, 8))
    theirs = keras.layers.MultiHeadAttention(num_heads=2, key_dim=4)
    x = np.random.default_rng(0).standard_normal((3, 5, 8)).astype(np.float32)
    theirs(x, x)
    weights = []
    for layer in (ours.query, ours.key, ours.value):
        weights += [layer.kernel.numpy().reshape(8, 2, 4), layer.bias.numpy().reshape(2, 4)]
    weights += [ours.out.kernel.numpy().reshape(2, 4, 8), ours.out.bias.numpy()]
    theirs.set_weights(weights)
    np.testing.assert_allclose(ours(x, x), theirs(x, x), rtol=1e-4, atol=1e-5)


def test_text_tower_has_no_mask(model):
    # Bidirectional without padding mask: the first token moves the last one's representation.
    ids = np.full((2, 16), 1, np.int32)
    ids[1, 0] = 5
    vectors = model.embed_text(tf.constant(ids)).numpy()
    assert np.abs(vectors[0] - vectors[1]).max() > 1e-6


def test_building_a_model_leaves_tokenizers_and_random_numbers_alone(tiny, vocabulary):
    import random

    tokenizer = preprocess.Tokenizer(vocabulary, tiny.text)
    before = tokenizer(tf.constant(["a red ring"])).numpy()
    state = random.getstate()
    two_tower.build(tiny)
    assert random.getstate() == state
    np.testing.assert_array_equal(tokenizer(tf.constant(["a red ring"])), before)


@pytest.mark.parametrize("name", recipes.names())
def test_specs_are_those_of_the_model(name):
    tiny = config.tiny(config.load_recipe(name))
    variables = two_tower.named_parameters(two_tower.build(tiny))
    expected = {name: tf.TensorSpec(x.shape, x.dtype) for name, x in variables.items()}
    found = specs.parameter_specs(tiny)
    assert found == expected
    assert list(found) == list(expected)
