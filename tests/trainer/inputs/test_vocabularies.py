import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import tensorflow as tf
from make_texts import BYTE_PAIR_TEXTS

from sigline.trainer import config
from sigline.trainer.config import TextTowerConfig
from sigline.trainer.export import saved_model
from sigline.trainer.inputs import preprocess, vocabularies
from sigline.trainer.models import two_tower
from sigline.trainer.weights import tokenizer_import

GOLDEN = Path(__file__).resolve().parents[2] / "golden" / "byte_pairs"
CLIP = TextTowerConfig(
    vocabulary_size=1000,
    length=16,
    strip_punctuation=False,
    start_piece="<|startoftext|>",
    end_piece="<|endoftext|>",
    pad_piece="<|endoftext|>",
)


@pytest.fixture(scope="module")
def byte_pairs():
    return tokenizer_import.read(GOLDEN)[0]


@pytest.fixture(scope="module")
def tokenizer(byte_pairs):
    return preprocess.Tokenizer(byte_pairs, CLIP)


def test_tokens_are_those_of_the_clip_tokenizer(tokenizer):
    expected = safetensors.numpy.load_file(str(GOLDEN / "expected.safetensors"))["tokens"]
    np.testing.assert_array_equal(tokenizer(tf.constant(BYTE_PAIR_TEXTS)), expected)
    compiled = tf.function(
        tokenizer, input_signature=[tf.TensorSpec((None,), tf.string)], autograph=False
    )
    np.testing.assert_array_equal(compiled(tf.constant(BYTE_PAIR_TEXTS)), expected)
    for number, text in enumerate(BYTE_PAIR_TEXTS):
        np.testing.assert_array_equal(tokenizer(tf.constant([text]))[0], expected[number])


def test_no_text_and_no_bytes_that_are_no_text_fail(tokenizer):
    assert tokenizer(tf.constant([], tf.string)).shape == (0, 16)
    ids = tokenizer(tf.constant(["", b"\xff\xfe", " \n"])).numpy()
    assert (ids[0, 1:] == tokenizer.end_id).all()
    assert ids[1, 1] != tokenizer.end_id
    np.testing.assert_array_equal(ids[0], ids[2])


def test_endless_word_is_cut(tokenizer):
    found = tokenizer(tf.constant(["a" * 1_000_000]))
    np.testing.assert_array_equal(found, tokenizer(tf.constant(["a" * vocabularies._LONGEST_WORD])))


def test_many_words_and_a_long_one_cost_no_memory(tokenizer):
    texts = ["a " * 500_000 + "b" * 600, "c" * 600 + " d" * 500_000]
    found = tokenizer(tf.constant(texts)).numpy()
    np.testing.assert_array_equal(found[0], tokenizer(tf.constant(["a " * 20])).numpy()[0])
    assert found.shape == (2, 16)


def test_exported_model_reads_byte_pairs_in_the_servers_loader(byte_pairs, tmp_path):
    tiny = config.tiny(config.load_recipe("clip_b16"))
    tiny = config.override(tiny, ["image.depth=1", "text.depth=1"])
    words = {name: getattr(CLIP, name) for name in ("start_piece", "end_piece", "pad_piece")}
    text = dataclasses.replace(tiny.text, vocabulary_size=1000, **words)
    settings = dataclasses.replace(tiny, text=text)
    model = two_tower.build(settings)
    directory = tmp_path / "model"
    saved_model.export(directory, model, config=settings, vocabulary=byte_pairs)
    texts = ["it's a caf\u00e9, isn't it?", ""]
    tokens = preprocess.Tokenizer(byte_pairs, text)(tf.constant(texts))
    answers = tf.saved_model.load(str(directory)).signatures["embed_text"](tf.constant(texts))
    np.testing.assert_allclose(answers["embedding"], model.embed_text(tokens), atol=1e-5)
    # Runs every signature in TF Serving's C++ loader.
    command = [sys.executable, "-m", "sigline.serving.checks.loader_check", str(directory)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "embed_text" in json.loads(done.stdout.splitlines()[-1])


def test_tokens_are_turned_back_into_texts(tokenizer):
    ids = tokenizer(tf.constant(["A red ring!", "caf\u00e9 \u65e5"]))
    assert tokenizer.texts_of(ids) == ["a red ring !", "caf\u00e9 \u65e5"]


def test_vocabulary_that_is_none_is_refused(byte_pairs):
    with pytest.raises(ValueError, match="must have pieces and merges"):
        vocabularies.load(b"{}")
    content = json.loads(byte_pairs)
    with pytest.raises(ValueError, match="must have the piece"):
        vocabularies.load(json.dumps(content | {"pieces": content["pieces"][:40]}).encode())
    with pytest.raises(ValueError, match="without a gap"):
        vocabularies.serialized({"a": 0, "b": 2}, [])
