"""RandAugment: bytes of every operation, what a seed draws, and what is refused."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import reference_randaugment as reference
import tensorflow as tf

from sigline.trainer import config
from sigline.trainer.config import augmentation
from sigline.trainer.inputs import data, preprocess, randaugment
from sigline.trainer.inputs.needs import Needs
from sigline.trainer.inputs.views import View

# What `tests/golden/make_randaugment.py` wrote.
GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "randaugment.json").read_text())
# Operations that no magnitude changes.
_ALWAYS_THE_SAME = ("AutoContrast", "Equalize", "Invert")


def _changed(image, name, settings, *, negative=False, center=(0, 0)):
    number = tf.constant(randaugment.OPERATIONS.index(name))
    center = tuple(map(tf.constant, center))
    changed = randaugment.operation(
        tf.constant(image), number, settings, negative=tf.constant(negative), center=center
    )
    assert changed.dtype == tf.uint8
    return changed.numpy()


def test_operations_are_numbered_as_published():
    assert randaugment.OPERATIONS == reference.NAMES


@pytest.mark.parametrize("variant", GOLDEN)
def test_bytes_are_the_published_ones(variant):
    name, _, switch = variant.rstrip("+-").partition(" ")
    options = {name.lower(): switch} if switch else {}
    for size, digests in GOLDEN[variant].items():
        height, width = map(int, size.split("x"))
        image = reference.picture(height, width)
        for magnitude, digest in digests.items():
            if name in _ALWAYS_THE_SAME and magnitude != "0":
                assert digest == digests["0"]
                continue
            settings = config.RandAugmentConfig(1, int(magnitude), scale_pixels=False, **options)
            center = (height // 3, width // 2)
            changed = _changed(image, name, settings, negative=variant.endswith("-"), center=center)
            found = hashlib.sha256(changed.tobytes()).hexdigest()[:16]
            assert found == digest, (size, magnitude)


@pytest.mark.parametrize("name", randaugment.OPERATIONS)
def test_bytes_at_other_sizes_and_magnitudes_are_those_of_numpy(name):
    rng = np.random.default_rng(0)
    noise = rng.integers(40, 200, (13, 13, 3), np.uint8)
    # Channels of one and of two levels, which AutoContrast and Equalize leave alone.
    noise[..., 1], noise[..., 2] = 77, np.where(noise[..., 2] < 100, 3, 9)
    for magnitude, negative, scaled in ((7, True, True), (23, False, True), (5, True, False)):
        settings = config.RandAugmentConfig(1, magnitude, scale_pixels=scaled)
        scale = 13 / 224 if scaled else 1.0
        options = {"negative": negative, "center": (3, 11)}
        expected = reference.operation(noise, name, magnitude, scale=scale, **options)
        np.testing.assert_array_equal(_changed(noise, name, settings, **options), expected)


@pytest.mark.parametrize("size", [8, 32, 224, 384])
def test_grey_of_contrast_is_that_of_224_pixels_at_every_size(size):
    image = np.zeros((size, size, 3), np.uint8)
    # At a magnitude of 0 a tenth of the picture is left.
    changed = _changed(image, "Contrast", config.RandAugmentConfig(1, 0))
    assert (changed == int(np.float32(196) - np.float32(0.1) * np.float32(196))).all()


@pytest.fixture(scope="module")
def settings():
    return config.RandAugmentConfig(layers=2, magnitude=9)


@pytest.fixture(scope="module")
def augment(settings):
    """The traced function of a picture and a seed."""

    @tf.function(
        input_signature=[tf.TensorSpec((20, 20, 3), tf.uint8), tf.TensorSpec((2,), tf.int64)],
        autograph=False,
    )
    def _augment(image, seed):
        return randaugment.augment(image, settings, seed=seed)

    return _augment


def test_seed_draws_layers_as_numpy_applies_them(augment, settings):
    image, drawn = reference.picture(20, 20), set()
    seeds = tf.data.Dataset.range(40).map(lambda number: tf.stack([number, 3]))
    # Input pipelines are optimised otherwise than functions, to which sums of floats are sensitive.
    changed = seeds.map(lambda seed: augment(image, seed)).as_numpy_iterator()
    for seed, in_pipeline in zip(seeds, changed, strict=True):
        expected = image
        for kind, sign, row, column in tf.random.stateless_uniform((2, 4), seed).numpy():
            name = reference.NAMES[int(kind * 16)]
            drawn.add(name)
            expected = reference.operation(
                expected,
                name,
                settings.magnitude,
                negative=sign < 0.5,
                center=(int(row * 20), int(column * 20)),
                scale=20 / 224,
            )
        np.testing.assert_array_equal(augment(image, seed), expected)
        np.testing.assert_array_equal(in_pipeline, expected)
    assert drawn == set(reference.NAMES)


def test_it_is_a_graph_of_static_shape_without_python_in_it(augment):
    graph = augment.get_concrete_function().graph
    assert graph.structured_outputs.shape == (20, 20, 3)
    definition = graph.as_graph_def()
    functions = [item.node_def for item in definition.library.function]
    types = {node.op for nodes in (definition.node, *functions) for node in nodes}
    assert not {name for name in types if "PyFunc" in name or "Variable" in name}
    assert any("Case" in name for name in types)


@pytest.fixture(scope="module")
def load():
    """Returns two views of a smooth picture for a number of a visit."""
    rough = np.random.default_rng(0).integers(0, 256, (6, 6, 3), np.uint8)
    encoded = tf.io.encode_png(tf.cast(tf.image.resize(rough, (64, 64), "bicubic"), tf.uint8))
    sizes = {"small": 32, "large": 64}
    views = {
        name: View(config.ImageTowerConfig(size=size, patch=8)) for name, size in sizes.items()
    }
    options = config.DataConfig(flip=True, randaugment=config.RandAugmentConfig(2, 10))

    @tf.function(input_signature=[tf.TensorSpec((), tf.int64)], autograph=False)
    def _load(number):
        seed = tf.stack([number, tf.constant(1, tf.int64)])
        return preprocess.load_views(encoded, views, options, seed=seed)

    return _load


@pytest.fixture(scope="module")
def pairs(load):
    """The two views of twelve visits."""
    return [{n: x.numpy() for n, x in load(number).items()} for number in range(12)]


def test_visits_have_the_same_pixels_wherever_one_enters_and_with_any_workers(load, pairs):
    visits = tf.data.Dataset.range(5, 12).map(load, num_parallel_calls=7)
    for pair, expected in zip(visits.as_numpy_iterator(), pairs[5:], strict=True):
        np.testing.assert_array_equal(pair["small"], expected["small"])
        np.testing.assert_array_equal(pair["large"], expected["large"])


def test_views_of_one_crop_are_changed_alike_at_their_sizes(pairs):
    small = [pair["small"].astype(int) for pair in pairs]
    halved = [pair["large"].astype(int)[::2, ::2] for pair in pairs]
    distances = [[np.abs(a - b).mean() for b in halved] for a in small]
    assert np.argmin(distances, axis=1).tolist() == list(range(12))


def test_views_of_one_crop_and_several_sizes_need_scaled_pixels(split_dir):
    tiny = config.tiny(config.load_recipe("vit_s16"))
    tiny = config.override(tiny, ["data.randaugment.scale_pixels=false"])
    large = config.override(tiny, ["image.size=64"]).image
    both = Needs({"image": View(tiny.image), "vit_image": View(large)})
    with pytest.raises(ValueError, match=r"scale_pixels must be true.*vit_image of 64 pixels"):
        data.training_batches(split_dir, tiny, both, first_step=0)


def test_embedded_images_cannot_be_augmented():
    demo = config.tiny(config.load_recipe("siglip_demo"))
    augmented = config.override(demo, ["data.randaugment={}"])
    assert augmented.data.randaugment == config.RandAugmentConfig()
    with pytest.raises(ValueError, match=r"augmented, mixed.*data\.randaugment=given"):
        data.check_embedded(augmented)
    data.check_embedded(demo)


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("layers=0", r"data\.randaugment\.layers must be at least 1"),
        ("magnitude=-1", r"data\.randaugment\.magnitude must be at least 0"),
        ("solarize=wraped", r"data\.randaugment\.solarize must be one of .* Did you mean wrapped"),
        ("contrast=median", r"data\.randaugment\.contrast must be one of pixels, mean"),
    ],
)
def test_settings_that_make_no_sense_are_refused(assignment, message):
    recipe = config.load_recipe("vit_s16")
    with pytest.raises(ValueError, match=message):
        config.override(recipe, [f"data.randaugment.{assignment}"])


@pytest.mark.parametrize(
    ("name", "mixup", "magnitude"),
    [
        ("none", 0.0, None),
        ("light1", 0.0, 0),
        ("light2", 0.2, 10),
        ("medium1", 0.2, 15),
        ("medium2", 0.5, 15),
        ("strong1", 0.5, 20),
        ("strong2", 0.8, 20),
    ],
)
def test_presets_are_those_of_augreg(name, mixup, magnitude):
    changes = None if magnitude is None else config.RandAugmentConfig(2, magnitude)
    assert augmentation.augreg(name) == {"mixup": mixup, "randaugment": changes}
    assert name in augmentation.names()


def test_unknown_preset_names_the_known_ones():
    with pytest.raises(ValueError, match=r"Received: name='medium'.*strong2.*Did you mean medium"):
        augmentation.augreg("medium")
