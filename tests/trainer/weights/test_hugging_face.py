"""Weights of Hugging Face give its answers; the expected values are in `tests/golden`."""

import dataclasses
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import tensorflow as tf

from sigline.trainer import config
from sigline.trainer.inputs import preprocess
from sigline.trainer.models import two_tower
from sigline.trainer.weights import (
    hugging_face,
    hugging_face_folders,
    tokenizer_json,
    weight_folders,
)

GOLDEN = Path(__file__).resolve().parents[2] / "golden"
KINDS = ("siglip", "clip")


def model_of(weights):
    """Returns the model of weights."""
    model = two_tower.build(weights.config)
    variables = two_tower.named_variables(model)
    assert set(variables) == set(weights.parameters)
    for name, value in weights.parameters.items():
        variables[name].assign(value)
    return model


def check_answers(folder, given, expected):
    """Asserts that the weights of a folder give the expected embeddings and logits."""
    model = model_of(weight_folders.load(folder))
    image = model.embed_image(tf.constant(given["pixels"].transpose(0, 2, 3, 1)))
    text = model.embed_text(tf.constant(given["ids"], tf.int32))
    np.testing.assert_allclose(image, expected["image"], atol=1e-5)
    np.testing.assert_allclose(text, expected["text"], atol=1e-5)
    logits = tf.exp(model.log_temperature.value) * tf.matmul(image, text, transpose_b=True)
    logits += model.bias.value
    np.testing.assert_allclose(logits, expected["logits"], atol=1e-5 * np.exp(2.1))


@pytest.mark.parametrize("kind", KINDS)
def test_imported_weights_give_the_answers_of_transformers(kind):
    expected = safetensors.numpy.load_file(str(GOLDEN / kind / "expected.safetensors"))
    check_answers(GOLDEN / kind, expected, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_export_returns_the_very_tensors(kind, tmp_path):
    weights = weight_folders.load(GOLDEN / kind)
    hugging_face_folders.save(tmp_path / "out", weights)
    theirs = safetensors.numpy.load_file(str(GOLDEN / kind / "model.safetensors"))
    ours = safetensors.numpy.load_file(str(tmp_path / "out" / "model.safetensors"))
    assert set(ours) == set(theirs)
    moved = {"vision_model.embeddings.class_embedding"}
    moved |= {"vision_model.embeddings.position_embedding.weight"}
    for name, value in theirs.items():
        assert ours[name].shape == value.shape, name
        if kind == "siglip" or name not in moved:
            np.testing.assert_array_equal(ours[name], value, err_msg=name)
    # The class token and its position are one parameter here.
    again = weight_folders.load(tmp_path / "out")
    assert again.config == weights.config
    for name, value in weights.parameters.items():
        np.testing.assert_array_equal(again.parameters[name], value, err_msg=name)


def test_tokens_are_those_of_the_siglip_tokenizer():
    from make_texts import TEXTS

    weights = weight_folders.load(GOLDEN / "siglip")
    expected = safetensors.numpy.load_file(str(GOLDEN / "siglip" / "expected.safetensors"))
    tokenizer = preprocess.Tokenizer(weights.vocabulary, weights.config.text)
    np.testing.assert_array_equal(tokenizer(tf.constant(TEXTS)), expected["tokens"])


def test_tokens_are_those_of_the_siglip_2_tokenizer(siglip):
    from make_texts import TEXTS

    (siglip / "spiece.model").unlink()
    shutil.copytree(GOLDEN / "siglip2", siglip, dirs_exist_ok=True)
    weights = weight_folders.load(siglip)
    text = dataclasses.replace(weights.config.text, vocabulary_size=400)
    tokenizer = preprocess.Tokenizer(weights.vocabulary, text)
    expected = safetensors.numpy.load_file(str(GOLDEN / "siglip2" / "expected.safetensors"))
    np.testing.assert_array_equal(tokenizer(tf.constant(TEXTS)), expected["tokens"])
    # The last token, which is pooled, is the padding of a short text and the end of a long one.
    assert expected["tokens"][:, -1].tolist() == [0, 0, 1, 0, 0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"byte_fallback": False}, "must hold a BPE with byte fallback"),
        ({"type": "WordPiece"}, "Received: model.type='WordPiece'"),
        ({"merges": [["a", " b"]]}, "but do not merge"),
        ({"vocab": {"<unk>": 0, "<0x00>": 2}}, "without a gap"),
        ({"vocab": {"<unk>": 0, "a": 1}}, "and those of bytes"),
    ],
)
def test_vocabulary_of_another_kind_is_refused(change, message):
    described = json.loads((GOLDEN / "siglip2" / "tokenizer.json").read_text())
    if "merges" in change:
        described["model"]["merges"] = described["model"]["merges"][:-1]
    else:
        described["model"] |= change
    if "vocab" in change:
        described["added_tokens"] = []
    with pytest.raises(ValueError, match=message):
        tokenizer_json.from_tokenizer_json(json.dumps(described).encode())


@pytest.fixture
def siglip(tmp_path):
    """A copy of the golden folder that a test may spoil."""
    return Path(shutil.copytree(GOLDEN / "siglip", tmp_path / "siglip"))


def _change(folder, change):
    path = str(folder / "model.safetensors")
    tensors = safetensors.numpy.load_file(path)
    change(tensors)
    safetensors.numpy.save_file(tensors, path)


def test_missing_and_left_over_tensors_are_listed(siglip):
    def change(tensors):
        tensors["text_model.head.extra"] = tensors.pop("text_model.head.bias")
        del tensors["logit_bias"]

    _change(siglip, change)
    message = "Missing: logit_bias, text_model.head.bias. Left over: text_model.head.extra."
    with pytest.raises(ValueError, match=re.escape(message)):
        weight_folders.load(siglip)


def test_tensors_that_are_not_wanted_can_be_dropped(siglip):
    def change(tensors):
        tensors["classifier.weight"] = np.zeros((2, 3), np.float32)

    _change(siglip, change)
    with pytest.raises(ValueError, match=r"Left over: classifier\.weight"):
        weight_folders.load(siglip)
    assert weight_folders.load(siglip, drop=[r"classifier\..*"]).parameters


def test_quantised_weights_are_refused(siglip):
    def change(tensors):
        tensors["text_model.head.weight"] = tensors["text_model.head.weight"].astype(np.int8)

    _change(siglip, change)
    with pytest.raises(ValueError, match=r"not quantised.*text_model.head.weight int8"):
        weight_folders.load(siglip)


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_other_precisions_are_read_as_float32(siglip, dtype):
    before = weight_folders.load(siglip).parameters

    def change(tensors):
        for name in tensors:
            tensors[name] = tensors[name].astype(dtype)

    _change(siglip, change)
    for name, value in weight_folders.load(siglip).parameters.items():
        assert value.dtype == np.float32
        np.testing.assert_allclose(value, before[name], rtol=1e-3, atol=1e-3)


def test_bfloat16_is_read_as_float32(siglip):
    import ml_dtypes

    before = weight_folders.load(siglip).parameters
    path = siglip / "model.safetensors"
    tensors = safetensors.numpy.load_file(str(path))
    halves = {n: x.astype(ml_dtypes.bfloat16) for n, x in tensors.items()}
    safetensors.numpy.save_file(halves, str(path))
    for name, value in weight_folders.load(siglip).parameters.items():
        expected = before[name].astype(ml_dtypes.bfloat16).astype(np.float32)
        np.testing.assert_array_equal(value, expected, err_msg=name)


def test_sharded_checkpoints_are_read(siglip):
    tensors = safetensors.numpy.load_file(str(siglip / "model.safetensors"))
    names = sorted(tensors)
    halves = names[: len(names) // 2], names[len(names) // 2 :]
    files = [f"model-{i + 1:05d}-of-00002.safetensors" for i in range(2)]
    for file, half in zip(files, halves, strict=True):
        safetensors.numpy.save_file({n: tensors[n] for n in half}, str(siglip / file))
    index = {n: file for file, half in zip(files, halves, strict=True) for n in half}
    (siglip / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    (siglip / "model.safetensors").unlink()
    expected = weight_folders.load(GOLDEN / "siglip").parameters
    for name, value in weight_folders.load(siglip).parameters.items():
        np.testing.assert_array_equal(value, expected[name])


def test_index_that_leaves_the_folder_is_refused(siglip):
    index = {"weight_map": {"x": "../secret.safetensors"}}
    (siglip / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="must name files of its own folder"):
        weight_folders.load(siglip)


def test_half_a_file_is_refused(siglip):
    path = siglip / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="is no whole safetensors file"):
        weight_folders.load(siglip)


def test_pickled_weights_are_refused(siglip):
    (siglip / "model.safetensors").rename(siglip / "pytorch_model.bin")
    with pytest.raises(ValueError, match="Pickled weights"):
        weight_folders.load(siglip)


def test_folder_of_no_known_format_is_refused(tmp_path):
    message = r"parameters\.safetensors \(ours\), config\.json"
    with pytest.raises(ValueError, match=message):
        weight_folders.load(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "bert"}, "model_type siglip, clip, vit or deit can be read. .*'bert'"),
        ({"text_config": {"hidden_act": "relu"}}, "hidden_act must be one of"),
        ({"text_config": {"projection_size": 5}}, "projection_size must be vision_config.hidden"),
        ({"vision_config": {"vision_use_head": False}}, "vision_use_head must be true"),
        ({"vision_config": {"attention_dropout": 0.1}}, "attention_dropout must be 0"),
        ({"vision_config": {"num_channels": 1}}, "must be square with 3 channels"),
        ({"vision_config": {"image_size": [8, 12]}}, "must be square with 3 channels"),
        ({"vision_config": {"image_size": 3}}, "image_size must be at least patch_size"),
    ],
)
def test_model_that_the_towers_cannot_be_is_refused(change, message):
    content = json.loads((GOLDEN / "siglip" / "config.json").read_text())
    for key, value in change.items():
        content[key] = content[key] | value if isinstance(value, dict) else value
    with pytest.raises(ValueError, match=message):
        hugging_face.settings(content)


def test_config_that_is_silent_gets_the_published_defaults():
    # google/siglip-base-patch16-224 has a config.json that says little more than this.
    settings = hugging_face.settings({"model_type": "siglip"})
    assert (settings.image.width, settings.image.size, settings.image.patch) == (768, 224, 16)
    assert settings.text.vocabulary_size == 32_000
    clip = hugging_face.settings(
        {"model_type": "clip", "text_config": {"eos_token_id": 2}, "projection_dim": 512}
    )
    assert (clip.image.patch, clip.image.projection, clip.text.end_id) == (32, 512, 49_407)
    assert clip.text.block.norm_epsilon == clip.image.block.norm_epsilon == 1e-5


def test_pictures_have_the_published_size_whatever_the_patches():
    # google/siglip-so400m-patch14-384: 27 x 27 patches, and six pixels that fill none.
    tower = {"image_size": 384, "patch_size": 14, "hidden_size": 1152, "num_attention_heads": 16}
    settings = hugging_face.settings(
        {
            "model_type": "siglip",
            "vision_config": tower,
            "text_config": {"hidden_size": 1152, "num_attention_heads": 16},
        }
    )
    assert (settings.image.size, settings.image.grid) == (384, 27)
    described = hugging_face.config_json(settings)["vision_config"]
    assert (described["image_size"], described["patch_size"]) == (384, 14)


@pytest.mark.parametrize("kind", KINDS)
def test_pixels_that_fill_no_patch_are_dropped_as_there(kind, tmp_path):
    folder = shutil.copytree(GOLDEN / kind, tmp_path / kind)
    described = json.loads((folder / "config.json").read_text())
    described["vision_config"]["image_size"] = 14
    (folder / "config.json").write_text(json.dumps(described))
    expected = safetensors.numpy.load_file(str(GOLDEN / kind / "remainder.safetensors"))
    assert expected["pixels"].shape[2:] == (14, 14)
    check_answers(folder, expected, expected)
    hugging_face_folders.save(tmp_path / "out", weight_folders.load(folder))
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written["vision_config"]["image_size"] == 14


def test_tower_that_transformers_does_not_have_is_not_written(tmp_path):
    weights = weight_folders.load(GOLDEN / "siglip")
    image = dataclasses.replace(weights.config.image, num_registers=2)
    other = dataclasses.replace(weights, config=dataclasses.replace(weights.config, image=image))
    with pytest.raises(ValueError, match="Only SigLIP's and CLIP's own towers"):
        hugging_face_folders.save(tmp_path / "out", other)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("kind", "loss"), [("siglip", "softmax"), ("clip", "sigmoid")])
def test_model_of_the_other_loss_is_not_written(kind, loss, tmp_path):
    weights = weight_folders.load(GOLDEN / kind)
    changed = config.override(weights.config, [f"objectives.pairs.loss={loss}"])
    with pytest.raises(ValueError, match=f"loss. Received: loss='{loss}'"):
        hugging_face_folders.save(tmp_path / "out", dataclasses.replace(weights, config=changed))


def test_what_only_training_does_is_no_reason_not_to_write(tmp_path):
    weights = weight_folders.load(GOLDEN / "siglip")
    trained = [
        "image.token_dropout=0.5",
        "text.block.dropout=0.1",
        "image.block.stochastic_depth=0.1",
    ]
    changed = config.override(weights.config, trained)
    hugging_face_folders.save(tmp_path / "out", dataclasses.replace(weights, config=changed))
    assert weight_folders.load(tmp_path / "out").config.image == weights.config.image


def test_clip_gets_the_pixels_of_its_processor():
    image = weight_folders.load(GOLDEN / "clip").config.image
    assert (image.resize, image.interpolation, image.antialias) == ("crop", "bicubic", True)
    assert image.resampler == "pillow"
    white = preprocess.to_model_range(tf.fill((1, 1, 3), tf.constant(255, tf.uint8)), image)
    # White by the published mean and deviation: (1 - mean) / std.
    np.testing.assert_allclose(white[0, 0], [1.930336, 2.074884, 2.145897], rtol=1e-5)


def test_config_of_another_resolution_is_refused(siglip):
    path = siglip / "config.json"
    content = json.loads(path.read_text())
    content["vision_config"]["image_size"] = 16
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="positions of 9 patches, image_size and patch_size of 16"):
        weight_folders.load(siglip)
