"""Files beside a model for transformers; `make parity` shows what transformers makes of them."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import safetensors.numpy
import tensorflow as tf
from odd_texts import ODD_TEXTS
from test_hugging_face import GOLDEN

from sigline.trainer import sources
from sigline.trainer.config import ImageTowerConfig, TextTowerConfig
from sigline.trainer.inputs import preprocess
from sigline.trainer.run import Job
from sigline.trainer.training import start
from sigline.trainer.weights import (
    hugging_face_folders,
    processor,
    processor_files,
    tokenizer_files,
    tokenizer_import,
    tokenizer_json,
    weight_folders,
)

TEXTS = tf.constant([text for texts in ODD_TEXTS.values() for text in texts])


def _siglip(vocabulary, **text):
    """Returns the golden SigLIP with a vocabulary, and other rules of its texts."""
    weights = weight_folders.load(GOLDEN / "siglip")
    tower = dataclasses.replace(weights.config.text_tower, **text)
    settings = dataclasses.replace(weights.config, text=tower)
    return dataclasses.replace(weights, config=settings, vocabulary=vocabulary)


@pytest.fixture
def siglip_2(tmp_path):
    """A folder of SigLIP 2, as Hugging Face publishes it."""
    folder = tmp_path / "theirs"
    shutil.copytree(GOLDEN / "siglip", folder)
    (folder / "spiece.model").unlink()
    shutil.copytree(GOLDEN / "siglip2", folder, dirs_exist_ok=True)
    content = json.loads((folder / "config.json").read_text())
    content["text_config"]["vocab_size"] = 400
    (folder / "config.json").write_text(json.dumps(content))
    path = str(folder / "model.safetensors")
    tensors = safetensors.numpy.load_file(path)
    name = "text_model.embeddings.token_embedding.weight"
    tensors[name] = np.ones((400, tensors[name].shape[1]), np.float32)
    safetensors.numpy.save_file(tensors, path)
    return folder


def _read(folder, name):
    return json.loads((folder / name).read_text())


def test_siglip_gets_its_own_class_with_the_length_and_no_mask(vocabulary, tmp_path):
    hugging_face_folders.save(tmp_path / "out", _siglip(vocabulary))
    described = _read(tmp_path / "out", "tokenizer_config.json")
    expected = {
        "tokenizer_class": "SiglipTokenizer",
        "model_max_length": 16,
        "do_lower_case": True,
        "padding_side": "right",
        "truncation_side": "right",
        "model_input_names": ["input_ids"],
        "split_special_tokens": True,
        "eos_token": "</s>",
        "pad_token": "</s>",
        "unk_token": "<unk>",
    }
    assert expected.items() <= described.items()
    special = {"eos_token": "</s>", "pad_token": "</s>", "unk_token": "<unk>"}
    assert _read(tmp_path / "out", "special_tokens_map.json") == special
    assert (tmp_path / "out" / "spiece.model").read_bytes() == vocabulary
    assert not (tmp_path / "out" / "tokenizer.json").exists()
    ids = {"bos_token_id": None, "eos_token_id": 1, "pad_token_id": 1}
    assert ids.items() <= _read(tmp_path / "out", "config.json")["text_config"].items()


@pytest.mark.parametrize(
    "rules",
    [
        {"strip_punctuation": False},
        {"squeeze_whitespace": False},
        {"start_piece": "<pad>"},
        {"lowercase": False, "strip_punctuation": False},
    ],
)
def test_rules_that_siglips_class_does_not_have_are_written_out(rules, vocabulary, tmp_path):
    weights = _siglip(vocabulary, **rules)
    hugging_face_folders.save(tmp_path / "out", weights)
    described = _read(tmp_path / "out", "tokenizer_config.json")
    assert described["tokenizer_class"] == "PreTrainedTokenizerFast"
    written = _read(tmp_path / "out", "tokenizer.json")
    kinds = [step["type"] for step in written["normalizer"]["normalizers"]]
    assert ("Lowercase" in kinds) == weights.config.text_tower.lowercase
    assert len(written["model"]["vocab"]) == len(tokenizer_json.read_model(vocabulary).pieces)
    # An import reads texts by the same rules again.
    again = weight_folders.load(tmp_path / "out")
    assert again.config.text == weights.config.text
    assert again.vocabulary == vocabulary


def test_siglip_2_keeps_its_tokenizer_byte_for_byte(siglip_2, tmp_path):
    expected = (siglip_2 / "tokenizer.json").read_bytes()
    weights = weight_folders.load(siglip_2)
    # By folders of weights, descriptions beside checkpoints, runs and SavedModels.
    weight_folders.save(tmp_path / "weights", weights)
    weight_folders.save_description(tmp_path / "description", weights)
    recipe = dataclasses.replace(weights.config, pretrained=(".*",))
    start.export_weights(tmp_path / "model", weights)
    for kept in (
        weight_folders.load(tmp_path / "weights").tokenizer,
        weight_folders.load_description(tmp_path / "description").tokenizer,
        Job(recipe, "data", None, "code", weights=weights).tokenizer,
        sources.load(tmp_path / "model").tokenizer,
    ):
        assert kept["tokenizer.json"] == expected
    hugging_face_folders.save(tmp_path / "out", sources.load(tmp_path / "model"))
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == expected
    described = _read(tmp_path / "out", "tokenizer_config.json")
    assert described["tokenizer_class"] == "Siglip2Tokenizer"
    assert (described["padding_side"], described["model_max_length"]) == ("right", 16)
    again = weight_folders.load(tmp_path / "out")
    assert again.vocabulary == weights.vocabulary
    assert again.config.text == weights.config.text
    np.testing.assert_array_equal(
        preprocess.Tokenizer(again.vocabulary, again.config.text)(TEXTS),
        preprocess.Tokenizer(weights.vocabulary, weights.config.text)(TEXTS),
    )


def test_run_that_trains_its_own_token_table_keeps_no_tokenizer(siglip_2, vocabulary):
    weights = weight_folders.load(siglip_2)
    recipe = dataclasses.replace(weights.config, pretrained=("image/.*",))
    assert Job(recipe, "data", vocabulary, "code", weights=weights).tokenizer == {}


def test_tokenizer_that_is_kept_changes_no_digest(siglip_2):
    weights = weight_folders.load(siglip_2)
    assert weights.tokenizer
    assert dataclasses.replace(weights, tokenizer={}).digest() == weights.digest()


def test_clip_gets_its_length_and_the_pairs_it_came_with(tmp_path):
    weights = weight_folders.load(GOLDEN / "clip")
    words, rules = tokenizer_import.read(GOLDEN / "byte_pairs")
    text = dataclasses.replace(
        weights.config.text, vocabulary_size=624, length=20, end_id=623, **rules
    )
    files = tokenizer_files.files(words, text, {}, clip=True)
    described = json.loads(files["tokenizer_config.json"])
    assert described["model_max_length"] == 20
    assert described["model_input_names"] == ["input_ids", "attention_mask"]
    theirs = json.loads((GOLDEN / "byte_pairs" / "tokenizer.json").read_text())["model"]
    assert json.loads(files["vocab.json"]) == theirs["vocab"]
    merges = [" ".join(pair) for pair in theirs["merges"]]
    assert files["merges.txt"].decode().splitlines()[1:] == merges
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    again, own = tokenizer_import.read(tmp_path)
    assert tokenizer_json.same(again, words)
    assert own == {name: getattr(text, name) for name in tokenizer_files.RULES}


def test_rules_that_are_none_are_refused():
    assert tokenizer_files.rules({}) == {}
    own = {name: getattr(TextTowerConfig(), name) for name in tokenizer_files.RULES}
    assert tokenizer_files.rules({"sigline_text": own}) == own
    for wrong in ({"lowercase": True}, own | {"lowercase": 1}, own | {"more": 1}, ["lowercase"]):
        with pytest.raises(ValueError, match="lowercase"):
            tokenizer_files.rules({"sigline_text": wrong})


@pytest.mark.parametrize("name", ["siglip", "clip"])
def test_processor_of_an_import_is_written_as_its_class_has_it(name):
    image = weight_folders.load(GOLDEN / name).config.image
    written = processor_files.described(image, name)
    side = image.size
    if name == "siglip":
        assert written["image_processor_type"] == "SiglipImageProcessor"
        assert written["size"] == {"height": side, "width": side}
        assert written["image_mean"] == written["image_std"] == [0.5, 0.5, 0.5]
        assert not written["do_center_crop"]
    else:
        assert written["image_processor_type"] == "CLIPImageProcessor"
        assert written["size"] == {"shortest_edge": side}
        assert written["crop_size"] == {"height": side, "width": side}
        assert written["image_mean"] == [0.48145466, 0.4578275, 0.40821073]
    # Bicubic, as both are published.
    assert written["resample"] == 3


@pytest.mark.parametrize(
    "image",
    [
        ImageTowerConfig(),
        ImageTowerConfig(resize="crop", interpolation="bicubic", antialias=True),
        ImageTowerConfig(resize="crop", resize_side=256, antialias=True, resampler="pillow"),
        ImageTowerConfig(
            resize_side=256, interpolation="lanczos", antialias=True, resampler="pillow"
        ),
        ImageTowerConfig(
            size=384, patch=14, drop_remainder=True, mean=(0.1, 0.2, 0.3), std=(1.0, 0.9, 0.8)
        ),
    ],
)
def test_processor_that_is_written_is_read_again(image):
    for kind in ("siglip", "clip", "vit", "deit"):
        written = processor_files.described(image, kind)
        assert ("processor_class" in written) == (kind in ("siglip", "clip"))
        found = dataclasses.replace(image, **processor.fields(written, kind, image.size))
        # TensorFlow's antialiasing kernels have no name there; Pillow's are the nearest.
        if image.antialias and image.resampler == "tensorflow":
            found = dataclasses.replace(found, resampler="tensorflow")
        assert found == image


@pytest.mark.parametrize("changes", [{"resize": "crop_rounded"}, {"interpolation": "area"}])
def test_processor_that_there_is_not_is_refused(changes):
    with pytest.raises(ValueError, match=r"has no processor that rounds sides or takes means"):
        processor_files.described(ImageTowerConfig(**changes), "siglip")


def test_lengths_other_than_the_pipelines_are_noted(vocabulary, tmp_path):
    (note,) = hugging_face_folders.save(tmp_path / "a", _siglip(vocabulary))
    assert "to 64 tokens whatever the tokenizer says, and this model takes 16" in note
    bare = dataclasses.replace(_siglip(vocabulary, length=16), vocabulary=None)
    notes = hugging_face_folders.save(tmp_path / "b", bare)
    assert any("no vocabulary, so no tokenizer was written" in note for note in notes)
