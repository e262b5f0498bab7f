import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import tensorflow as tf
from make_texts import BYTE_PAIR_TEXTS

from sigline.trainer import pieces, preprocess
from sigline.trainer.config import TextTowerConfig
from sigline.trainer.weights import checkpoint

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "byte_pairs"
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
    return checkpoint._clip_vocabulary(GOLDEN)


@pytest.fixture(scope="module")
def tokenizer(byte_pairs):
    return preprocess.Tokenizer(byte_pairs, CLIP)


def test_tokens_are_those_of_the_clip_tokenizer(tokenizer):
    expected = safetensors.numpy.load_file(str(GOLDEN / "expected.safetensors"))["tokens"]
    np.testing.assert_array_equal(tokenizer(tf.constant(BYTE_PAIR_TEXTS)), expected)
    compiled = tf.function(tokenizer, input_signature=[tf.TensorSpec((None,), tf.string)])
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
    np.testing.assert_array_equal(found, tokenizer(tf.constant(["a" * pieces._LONGEST_WORD])))


def test_tokens_are_turned_back_into_texts(tokenizer):
    ids = tokenizer(tf.constant(["A red ring!", "caf\u00e9 \u65e5"]))
    assert tokenizer.texts_of(ids) == ["a red ring !", "caf\u00e9 \u65e5"]


def test_vocabulary_that_is_none_is_refused(byte_pairs):
    with pytest.raises(ValueError, match="must have pieces and merges"):
        pieces.load(b"{}")
    content = json.loads(byte_pairs)
    with pytest.raises(ValueError, match="must have the piece"):
        pieces.load(json.dumps(content | {"pieces": content["pieces"][:40]}).encode())
    with pytest.raises(ValueError, match="without a gap"):
        pieces.serialized({"a": 0, "b": 2}, [])
