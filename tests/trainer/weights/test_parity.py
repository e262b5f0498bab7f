"""The same comparisons with models of transformers that are made on the spot (`make parity`)."""

import importlib.util

import pytest
from test_hugging_face import GOLDEN, KINDS, check_answers

from sigline.trainer.weights import checkpoint

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
    checkpoint.save_hugging_face(tmp_path / "ours", checkpoint.load(tmp_path / "theirs"))
    again = type(model).from_pretrained(tmp_path / "ours").eval()
    for name, value in golden.answers(again, given).items():
        assert abs(value - expected[name]).max() < 1e-6, name


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
    # What is written is read there.
    checkpoint._write_their_vocabulary(tmp_path, checkpoint._clip_vocabulary(folder))
    again = transformers.CLIPTokenizer.from_pretrained(tmp_path)
    assert (golden.clip_tokens(again) == expected["tokens"]).all()


def test_tokens_agree_with_the_siglip_tokenizer():
    import make_hugging_face as golden
    import safetensors.numpy

    expected = safetensors.numpy.load_file(str(GOLDEN / "siglip" / "expected.safetensors"))
    assert (golden.tokens(GOLDEN / "siglip" / "spiece.model") == expected["tokens"]).all()
