"""Pixels are those of `transformers`; the expected ones are in `tests/golden`."""

import json

import numpy as np
import pytest
import safetensors.numpy
import tensorflow as tf
from test_hugging_face import GOLDEN

from sigline.schemas import strict
from sigline.trainer import config
from sigline.trainer.config import ImageTowerConfig
from sigline.trainer.export import saved_model
from sigline.trainer.inputs import preprocess
from sigline.trainer.weights import processor, weight_folders

DESCRIPTIONS = json.loads((GOLDEN / "processors" / "descriptions.json").read_text())
SIZE = 12


def pixels(fields, picture, *, size=SIZE, patch=4):
    """Returns what the tower gets of a picture `(height, width, 3)`, uint8."""
    tower = ImageTowerConfig(size=size, patch=patch, **fields)
    return preprocess.to_model_range(preprocess.resize_image(tf.constant(picture), tower), tower)


@pytest.mark.parametrize("number", range(len(DESCRIPTIONS)))
def test_pixels_are_those_of_the_processor(number):
    kind, described = DESCRIPTIONS[number]
    held = safetensors.numpy.load_file(str(GOLDEN / "processors" / "expected.safetensors"))
    fields = processor.fields(described, kind, SIZE)
    expected = held[f"pixels_{number}"]
    for i, pixels_of_one in enumerate(expected):
        found = pixels(fields, held[f"picture_{i}"])
        np.testing.assert_allclose(found, pixels_of_one, rtol=1e-5, atol=1e-5)


def test_description_that_is_silent_is_that_of_the_class():
    siglip = processor.fields({}, "siglip", 224)
    assert siglip == processor.fields({"size": {"height": 224, "width": 224}}, "siglip", 224)
    assert (siglip["resize"], siglip["interpolation"]) == ("squash", "bicubic")
    assert (siglip["mean"], siglip["std"]) == ((0.5,) * 3, (0.5,) * 3)
    clip = processor.fields({"size": None}, "clip", 336)
    assert (clip["resize"], clip["resize_side"], clip["interpolation"]) == ("crop", None, "bicubic")


def test_vit_and_deit_take_squares():
    vit = processor.fields({}, "vit", 224)
    assert (vit["resize"], vit["resize_side"], vit["interpolation"]) == ("squash", None, "bilinear")
    assert (vit["mean"], vit["std"]) == ((0.5,) * 3, (0.5,) * 3)
    # google/vit-base-patch16-224, written by version 4.
    old = {"feature_extractor_type": "ViTFeatureExtractor", "size": 224, "resample": 2}
    assert processor.fields(old, "vit", 224) == vit
    deit = processor.fields({}, "deit", 224)
    assert (deit["resize"], deit["resize_side"]) == ("squash", 256)
    assert deit["interpolation"] == "bicubic"
    # facebook/deit-base-distilled-patch16-384. A single number is both sides.
    released = {"feature_extractor_type": "DeiTFeatureExtractor", "size": 438, "crop_size": 384}
    assert processor.fields(released, "deit", 384) == deit | {"resize_side": 438}
    assert processor.fields({}, "deit", 384)["resize_side"] == 438
    # Some DeiTs without a second token are of model_type vit.
    assert processor.fields(released, "vit", 384)["resize_side"] == 438


def test_without_antialiasing_the_kernels_of_tensorflow_resize():
    fields = processor.fields({"antialias": False, "resample": 2}, "siglip", 16)
    default = ImageTowerConfig()
    assert fields == {name: getattr(default, name) for name in processor.FIELDS}


@pytest.mark.parametrize(
    ("kind", "described", "message"),
    [
        ("siglip", {"image_processor_type": "BlipImageProcessor"}, "must be one of Siglip"),
        ("siglip", {"image_processor_type": "Siglip2ImageProcessorFast"}, "any aspect"),
        ("siglip", {"max_num_patches": 256, "patch_size": 16}, "any aspect"),
        ("siglip", {"do_resize": False}, "do_resize must be true"),
        ("siglip", {"do_pad": True}, "do_pad must be false"),
        ("siglip", {"resample": 0}, r"resample must be one of 1 \(lanczos\).*resample=0"),
        ("siglip", {"resample": "bicubic"}, "resample must be one of"),
        ("siglip", {"antialias": False, "resample": 1}, "antialias must be true"),
        ("siglip", {"size": {"height": 12, "width": 24}}, "size must be a square"),
        ("siglip", {"size": {"height": 24, "width": 24}}, "size must be the model's image_size=12"),
        ("siglip", {"size": {"shortest_edge": 12}}, "must give height and width"),
        ("siglip", {"size": {"longest_edge": 12}}, "must not name longest_edge"),
        ("siglip", {"size": {"height": "12", "width": 12}}, "size.height must be a positive"),
        ("siglip", {"rescale_factor": 0}, "rescale_factor must be positive"),
        ("siglip", {"image_mean": [0.5, 0.5]}, "image_mean must be a number for each"),
        ("siglip", {"image_std": [0.5, 0.5, 0.0]}, "image_std must be positive"),
        ("clip", {"size": {"shortest_edge": 8}}, "or with do_center_crop at least that"),
        ("clip", {"crop_size": 8}, "crop_size must be the square of the model's image_size=12"),
        ("clip", {"do_center_crop": False}, "pictures would not be square"),
        ("clip", {"do_center_crop": False, "size": 12}, "pictures would not be square"),
    ],
)
def test_processor_that_cannot_be_followed_is_refused(kind, described, message):
    with pytest.raises(ValueError, match=message):
        processor.fields(described, kind, SIZE)


@pytest.fixture
def folder(tmp_path):
    """A folder of Hugging Face with links to weights that no test changes."""
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).symlink_to(GOLDEN / "siglip" / name)
    return tmp_path


def test_import_reads_the_processor(folder):
    described = {"resample": 2, "image_mean": [0.1, 0.2, 0.3]}
    (folder / "preprocessor_config.json").write_text(json.dumps(described))
    weights = weight_folders.load(folder)
    image = weights.config.image
    assert (image.interpolation, image.resampler) == ("bilinear", "pillow")
    assert image.mean == (0.1, 0.2, 0.3)
    assert weights.assumed == ()


def test_settings_inside_of_a_processor_come_first(folder):
    (folder / "preprocessor_config.json").write_text(json.dumps({"resample": 2}))
    combined: dict[str, object] = {"processor_class": "SiglipProcessor"}
    (folder / "processor_config.json").write_text(json.dumps(combined))
    assert weight_folders.load(folder).config.image.interpolation == "bilinear"
    combined["image_processor"] = {"resample": 1}
    (folder / "processor_config.json").write_text(json.dumps(combined))
    assert weight_folders.load(folder).config.image.interpolation == "lanczos"


def test_what_is_assumed_without_a_processor_is_said(folder):
    weights = weight_folders.load(folder)
    assert weights.assumed == (
        "pixels as of SiglipImageProcessor: there is no preprocessor_config.json",
    )


def test_processor_that_cannot_be_followed_names_the_file(folder):
    path = folder / "preprocessor_config.json"
    path.write_text('{"do_resize": false}')
    message = r"preprocessor_config\.json cannot be followed: do_resize must be true"
    with pytest.raises(ValueError, match=message):
        weight_folders.load(folder)
    # Unless the user says what to do.
    chosen = ["image.resampler=tensorflow", "image.interpolation=bilinear", "image.antialias=false"]
    assert weight_folders.load(folder, assignments=chosen).config.image.resampler == "tensorflow"
    path.write_text("{")
    with pytest.raises(ValueError, match=r"preprocessor_config\.json must hold JSON"):
        weight_folders.load(folder)


def test_what_a_folder_tells_is_not_set(folder):
    with pytest.raises(
        ValueError, match=r"what the file does not tell: .*Received: 'image.size=3'"
    ):
        weight_folders.load(folder, assignments=["image.size=3"])


def test_pixels_survive_the_folder_of_weights(folder, tmp_path):
    weights = weight_folders.load(folder)
    weight_folders.save(tmp_path / "w", weights)
    assert weight_folders.load(tmp_path / "w").config.image == weights.config.image


def test_options_that_came_later_change_no_digest():
    default = config.load_recipe("siglip_demo")
    for name in ("drop_remainder", "resampler", "resize_side", "resize_ratio", "projection_tanh"):
        assert name not in strict.changed(default)["image"]
        assert name not in saved_model.answering(default.image)
    chosen = config.override(default, ["image.antialias=true", "image.resampler=pillow"])
    assert config.from_json(chosen.to_json()) == chosen
    assert chosen.digest() != default.digest()


@pytest.mark.parametrize(
    ("assignments", "message"),
    [
        (["image.size=30"], "image.drop_remainder=true allows"),
        (["image.size=2"], "image.size must be at least image.patch"),
        (["image.resize_side=4"], "image.resize_side must be at least image.size"),
        (["image.resampler=pillow"], "image.antialias must be true"),
        (["image.interpolation=lanczos"], "needs image.resampler=pillow"),
        (["image.resampler=torch"], "image.resampler must be one of tensorflow, pillow"),
        (["image.resize=crop_round"], "image.resize must be one of .* Did you mean crop_rounded"),
        (["image.resize_ratio=0"], "image.resize_ratio must be above 0 and at most 1"),
        (
            ["image.resize_ratio=0.5", "image.resize_side=64"],
            "image.resize_ratio must be 1 with image.resize_side",
        ),
        (["image.interpolation=area", "image.antialias=true"], "image.antialias must be false"),
        (
            ["image.interpolation=area", "image.resampler=pillow"],
            "image.interpolation=area needs image.resampler=tensorflow",
        ),
        (["image.projection_tanh=true"], "image.projection_tanh needs image.projection"),
    ],
)
def test_pixels_that_make_no_sense_are_refused(assignments, message):
    tiny = config.tiny(config.load_recipe("siglip_demo"))
    with pytest.raises(ValueError, match=message):
        config.override(tiny, assignments)
