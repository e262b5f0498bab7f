"""The same comparisons with models of transformers that are made on the spot (`make parity`)."""

import dataclasses
import importlib.util
import io
import json

import numpy as np
import pytest
import tensorflow as tf
from test_hugging_face import GOLDEN, KINDS, check_answers

from sigline.trainer.config import ImageTowerConfig, TextTowerConfig
from sigline.trainer.inputs import preprocess
from sigline.trainer.models import two_tower
from sigline.trainer.training import start
from sigline.trainer.weights import (
    hugging_face_folders,
    processor,
    tokenizer_files,
    tokenizer_import,
    weight_folders,
)

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("transformers") is None or importlib.util.find_spec("torch") is None,
    reason="transformers and torch are not installed; `make parity` runs this where they are",
)


@pytest.mark.parametrize("kind", KINDS)
def test_import_and_export_agree_with_transformers(kind, tmp_path):
    import make_hugging_face as golden

    model, given = golden.build(kind), golden.inputs(kind)
    expected = golden.answers(model, given)
    model.save_pretrained(tmp_path / "theirs")
    check_answers(tmp_path / "theirs", given, expected)
    hugging_face_folders.save(tmp_path / "ours", weight_folders.load(tmp_path / "theirs"))
    again = type(model).from_pretrained(tmp_path / "ours").eval()
    for name, value in golden.answers(again, given).items():
        assert abs(value - expected[name]).max() < 1e-6, name


@pytest.mark.parametrize("kind", KINDS)
def test_pixels_that_fill_no_patch_are_dropped_as_there(kind, tmp_path):
    import make_hugging_face as golden

    size = golden.REMAINDER_SIZE
    model, given = golden.build(kind, image_size=size), golden.inputs(kind, image_size=size)
    expected = golden.answers(model, given)
    model.save_pretrained(tmp_path / "theirs")
    check_answers(tmp_path / "theirs", given, expected)
    hugging_face_folders.save(tmp_path / "ours", weight_folders.load(tmp_path / "theirs"))
    again = type(model).from_pretrained(tmp_path / "ours").eval()
    assert again.config.vision_config.image_size == size
    for name, value in golden.answers(again, given).items():
        assert abs(value - expected[name]).max() < 1e-6, name


CLASSIFIERS = [
    ("ViTForImageClassification", {}),
    ("ViTForImageClassification", {"qkv_bias": False, "hidden_act": "gelu_new"}),
    ("ViTModel", {}),
    ("DeiTForImageClassification", {"image_size": 14}),
    ("DeiTForImageClassificationWithTeacher", {}),
    ("DeiTModel", {}),
]
# What our model calls their outputs.
OUTPUTS = {
    "logits": two_tower.CLASSES,
    "cls_logits": two_tower.CLASS_HEAD,
    "distillation_logits": two_tower.DISTILLATION_HEAD,
    "token": two_tower.EMBEDDING,
}


def check_classifier(folder, pixels, expected):
    """Asserts that a ViT's or a DeiT's folder gives the expected outputs."""
    weights = weight_folders.load(folder)
    config = dataclasses.replace(weights.config, pretrained=(".*",))
    if config.text is not None:
        config = start.tower_config(config)
    model = two_tower.build(config)
    start.start_from(model, weights, config)
    outputs = model.look(tf.constant(pixels.transpose(0, 2, 3, 1)))
    for name, value in expected.items():
        if name == "token":
            value = value / np.linalg.norm(value, axis=-1, keepdims=True)
        np.testing.assert_allclose(outputs[OUTPUTS[name]], value, atol=1e-5, err_msg=name)


@pytest.mark.parametrize(("name", "changes"), CLASSIFIERS)
def test_vits_and_deits_agree_with_transformers_both_ways(name, changes, tmp_path):
    import make_hugging_face as golden

    model = golden.build_classifier(name, **changes)
    pixels = golden.inputs("vit", image_size=changes.get("image_size", 12))["pixels"]
    expected = golden.classify(model, pixels)
    for folder, original in (("theirs", True), ("newer", False)):
        model.save_pretrained(tmp_path / folder, save_original_format=original)
        check_classifier(tmp_path / folder, pixels, expected)
    hugging_face_folders.save(tmp_path / "ours", weight_folders.load(tmp_path / "theirs"))
    options = {"add_pooling_layer": False} if name.endswith("Model") else {}
    again = type(model).from_pretrained(tmp_path / "ours", **options).eval()
    assert again.config.architectures == [name]
    for key, value in golden.classify(again, pixels).items():
        assert abs(value - expected[key]).max() < 1e-5, key


def _pictures():
    """Returns pictures of several aspects, smooth ones and noise, as files."""
    from PIL import Image

    rng = np.random.default_rng(0)
    for number, (width, height) in enumerate(((640, 480), (97, 413), (31, 30), (224, 224))):
        rough = Image.fromarray(rng.integers(0, 256, (height // 5, width // 5, 3), np.uint8))
        smooth = rough.resize((width, height), Image.Resampling.BICUBIC)
        picture = (
            Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8))
            if number % 2
            else smooth
        )
        for form, options in (("PNG", {}), ("JPEG", {"quality": 90})):
            buffer = io.BytesIO()
            picture.save(buffer, form, **options)
            yield buffer.getvalue()


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("siglip", {}),
        ("siglip", {"resample": 2}),
        ("siglip", {"resample": 1}),
        ("clip", {"size": {"shortest_edge": 224}}),
        ("clip", {"size": {"shortest_edge": 256}}),
        ("vit", {}),
        ("deit", {"size": 256, "image_mean": [0.485, 0.456, 0.406]}),
    ],
)
def test_pixels_of_files_agree_with_the_image_processor(kind, changes):
    import make_hugging_face as golden
    from PIL import Image

    side = {"height": 224, "width": 224}
    described = golden.described(kind, {"size": side, "crop_size": side} | changes)
    tower = ImageTowerConfig(size=224, patch=16, **processor.fields(described, kind, 224))
    for content in _pictures():
        expected = golden.processed(described, [Image.open(io.BytesIO(content))])[0]
        levels = preprocess.load_image(tf.constant(content), tower, max_pixels=1_000_000)
        found = preprocess.to_model_range(levels, tower).numpy()
        # A thousandth of a level: no level differs.
        assert np.abs(found - expected).max() < 1e-3 / 255 / min(tower.std)


def test_whole_models_agree_from_the_files_of_pictures(tmp_path):
    import make_hugging_face as golden
    import torch
    from PIL import Image
    from test_hugging_face import model_of

    for kind in KINDS:
        folder = tmp_path / kind
        model = golden.build(kind, image_size=golden.REMAINDER_SIZE)
        model.save_pretrained(folder)
        side = {"height": golden.REMAINDER_SIZE, "width": golden.REMAINDER_SIZE}
        sizes = {"size": side} if kind == "siglip" else {"size": {"shortest_edge": 14}}
        described = golden.described(kind, sizes | {"crop_size": side})
        (folder / "preprocessor_config.json").write_text(json.dumps(described))
        weights = weight_folders.load(folder)
        assert not weights.assumed
        tower = weights.config.image
        ours = model_of(weights)
        for content in _pictures():
            pixels = golden.processed(described, [Image.open(io.BytesIO(content))])
            with torch.no_grad():
                there = model.get_image_features(torch.from_numpy(pixels.transpose(0, 3, 1, 2)))
            there = getattr(there, "pooler_output", there).numpy()
            there /= np.linalg.norm(there, axis=-1, keepdims=True)
            levels = preprocess.load_image(tf.constant(content), tower, max_pixels=1_000_000)
            here = ours.embed_image(preprocess.to_model_range(levels[tf.newaxis], tower))
            np.testing.assert_allclose(here, there, atol=1e-5)


def test_tokens_agree_with_the_siglip_2_tokenizer():
    import make_hugging_face as golden
    import safetensors.numpy
    import transformers

    expected = safetensors.numpy.load_file(str(GOLDEN / "siglip2" / "expected.safetensors"))
    tokenizer = transformers.Siglip2Tokenizer.from_pretrained(GOLDEN / "siglip2")
    assert (golden.siglip_2_tokens(tokenizer) == expected["tokens"]).all()


def test_tokens_agree_with_the_clip_tokenizer(tmp_path):
    import make_hugging_face as golden
    import safetensors.numpy
    import transformers

    folder = GOLDEN / "byte_pairs"
    expected = safetensors.numpy.load_file(str(folder / "expected.safetensors"))
    tokenizer = transformers.CLIPTokenizer.from_pretrained(folder)
    assert (golden.clip_tokens(tokenizer) == expected["tokens"]).all()
    # CLIP's own class reads the written pairs, too.
    words, rules = tokenizer_import.read(folder)
    text = TextTowerConfig(**{"length": golden.LENGTH, "strip_punctuation": False} | rules)
    for name, content in tokenizer_files.files(words, text, {}, clip=True).items():
        (tmp_path / name).write_bytes(content)
    again = transformers.CLIPTokenizer.from_pretrained(tmp_path)
    assert (golden.clip_tokens(again) == expected["tokens"]).all()


def test_tokens_agree_with_the_siglip_tokenizer():
    import make_hugging_face as golden
    import safetensors.numpy

    expected = safetensors.numpy.load_file(str(GOLDEN / "siglip" / "expected.safetensors"))
    assert (golden.tokens(GOLDEN / "siglip" / "spiece.model") == expected["tokens"]).all()
