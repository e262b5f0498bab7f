"""What is exported answers in transformers as it does here (`make parity`).

Through AutoProcessor, AutoTokenizer and the zero-shot pipeline, with nothing but the folder.
"""

import dataclasses
import importlib.util
import io

import numpy as np
import pytest
import tensorflow as tf
from odd_texts import ODD_TEXTS
from PIL import Image
from test_hugging_face import GOLDEN

from sigline.trainer import config
from sigline.trainer.inputs import preprocess
from sigline.trainer.models import two_tower
from sigline.trainer.weights import (
    hugging_face,
    hugging_face_folders,
    tokenizer_import,
    weight_folders,
)
from sigline.trainer.weights.model_weights import Weights

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("transformers") is None or importlib.util.find_spec("torch") is None,
    reason="transformers and torch are not installed; `make parity` runs this where they are",
)
SIZES = {"width": 32, "depth": 2, "mlp_dim": 64, "num_heads": 2}
PIPELINE_LENGTH = 64
KINDS = ("siglip", "siglip2", "clip")
TEXTS = [text for texts in ODD_TEXTS.values() for text in texts]


def _tower(kind: str, vocabulary: bytes) -> tuple[bytes, dict, dict]:
    """Returns a vocabulary, the rules of its texts, and files of its tokenizer to keep."""
    if kind == "siglip":
        return vocabulary, {}, {}
    folder = GOLDEN / {"siglip2": "siglip2", "clip": "byte_pairs"}[kind]
    words, rules = tokenizer_import.read(folder)
    assert words is not None
    return words, rules, tokenizer_import.kept(folder)


def _weights(kind: str, vocabulary: bytes, *, length: int, size: int) -> Weights:
    """Returns random weights of a small model of a kind."""
    words, rules, kept = _tower(kind, vocabulary)
    settings = hugging_face.settings(
        {"model_type": "clip" if kind == "clip" else "siglip", "projection_dim": 24}
    )
    assert settings.text is not None
    image = dataclasses.replace(settings.image, size=size, patch=size // 4, **SIZES)
    if kind == "clip":
        image = dataclasses.replace(image, projection=24)
    ends = {"end_id": 623} if kind == "clip" else {}
    text = dataclasses.replace(
        settings.text, vocabulary_size=700, length=length, **SIZES, **rules, **ends
    )
    settings = dataclasses.replace(settings, image=image, text=text, seed=length + size)
    variables = two_tower.named_variables(two_tower.build(settings))
    rng = np.random.default_rng(0)
    values = {n: np.asarray(v) + rng.normal(0, 0.1, v.shape) for n, v in variables.items()}
    values = {n: np.asarray(x, np.float32) for n, x in values.items()}
    if kind == "clip":
        values["bias"] = np.zeros((), np.float32)
    return Weights(settings, values, words, tokenizer=kept)


def _picture(size: tuple[int, int], mode: str = "RGB") -> Image.Image:
    """Returns blurred noise, as a photograph is smooth."""
    channels = len(mode)
    noise = np.random.default_rng(1).integers(0, 256, (12, 16, channels), np.uint8)
    return Image.fromarray(noise, mode).resize(size, Image.Resampling.BICUBIC)


def _logits(weights: Weights, picture: Image.Image, texts: list[str]) -> np.ndarray:
    """Returns what sigline's own model answers to a PNG file and texts, shape `(texts,)`."""
    model = two_tower.build(weights.config)
    for name, variable in two_tower.named_variables(model).items():
        variable.assign(weights.parameters[name])
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    tower, text = weights.config.image, weights.config.text
    assert weights.vocabulary is not None
    assert text is not None
    pixels = preprocess.load_image(tf.constant(buffer.getvalue()), tower, max_pixels=1 << 24)
    image = model.embed_image(preprocess.to_model_range(pixels, tower)[None])
    units = model.embed_text(preprocess.Tokenizer(weights.vocabulary, text)(tf.constant(texts)))
    scores = tf.exp(model.log_temperature.value) * tf.matmul(image, units, transpose_b=True)
    return (scores + model.bias.value).numpy()[0]


def _pipeline_logits(folder, picture: Image.Image, texts: list[str], length: int) -> np.ndarray:
    """Returns the logits of the zero-shot pipeline, whose own length of SigLIP's texts is 64."""
    import transformers

    pipe = transformers.pipeline("zero-shot-image-classification", model=str(folder))
    options = {"padding": "max_length", "max_length": length, "truncation": True}
    inputs = pipe.preprocess(
        picture,
        candidate_labels=texts,
        hypothesis_template="{}",
        tokenizer_kwargs=options,
    )
    return pipe.forward(inputs)["logits"].numpy()[0]


@pytest.mark.parametrize("length", [16, 64, 128])
@pytest.mark.parametrize("kind", KINDS)
def test_tokens_of_odd_texts_are_equal(kind, length, vocabulary, tmp_path):
    import transformers

    weights = _weights(kind, vocabulary, length=length, size=32)
    hugging_face_folders.save(tmp_path / "out", weights)
    expected = preprocess.Tokenizer(weights.vocabulary, weights.config.text)(tf.constant(TEXTS))
    processor = transformers.AutoProcessor.from_pretrained(tmp_path / "out")
    for tokenizer in (
        transformers.AutoTokenizer.from_pretrained(tmp_path / "out"),
        processor.tokenizer,
    ):
        assert tokenizer.model_max_length == length
        found = tokenizer(TEXTS, padding="max_length", truncation=True)["input_ids"]
        for text, ours, theirs in zip(TEXTS, expected.numpy(), np.array(found), strict=True):
            np.testing.assert_array_equal(theirs, ours, err_msg=repr(text[:60]))


@pytest.mark.parametrize("size", [32, 64, 128, 256])
@pytest.mark.parametrize("kind", KINDS)
def test_pipeline_gives_the_logits_of_the_model(kind, size, vocabulary, tmp_path):
    length = {32: 16, 64: 64, 128: 128, 256: 64}[size]
    weights = _weights(kind, vocabulary, length=length, size=size)
    hugging_face_folders.save(tmp_path / "out", weights)
    for picture in (_picture((size, size)), _picture((300, 200)), _picture((40, 90))):
        ours = _logits(weights, picture, TEXTS)
        theirs = _pipeline_logits(tmp_path / "out", picture, TEXTS, length)
        np.testing.assert_allclose(theirs, ours, atol=1e-3)


def test_pipeline_as_it_stands_orders_texts_as_the_model_does(vocabulary, tmp_path):
    import transformers

    weights = _weights("siglip", vocabulary, length=PIPELINE_LENGTH, size=64)
    hugging_face_folders.save(tmp_path / "out", weights)
    pipe = transformers.pipeline("zero-shot-image-classification", model=str(tmp_path / "out"))
    texts = ["a red ring", "A Large, BLUE star!", "two  green squares"]
    picture = _picture((64, 64))
    found = pipe(picture, candidate_labels=texts, hypothesis_template="{}")
    expected = 1 / (1 + np.exp(-_logits(weights, picture, texts)))
    for text, probability in zip(texts, expected, strict=True):
        (score,) = [item["score"] for item in found if item["label"] == text]
        assert score == pytest.approx(probability, abs=1e-4)


@pytest.mark.parametrize(
    "changes",
    [
        {"strip_punctuation": False},
        {"lowercase": False},
        {"squeeze_whitespace": False, "pad_piece": "<pad>"},
        {"lowercase": False, "strip_punctuation": False, "squeeze_whitespace": False},
    ],
)
def test_tokens_of_other_rules_are_equal(changes, vocabulary, tmp_path):
    import transformers

    weights = _weights("siglip", vocabulary, length=64, size=32)
    text = dataclasses.replace(weights.config.text_tower, **changes)
    weights = dataclasses.replace(weights, config=dataclasses.replace(weights.config, text=text))
    hugging_face_folders.save(tmp_path / "out", weights)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    expected = preprocess.Tokenizer(vocabulary, text)(tf.constant(TEXTS)).numpy()
    found = tokenizer(TEXTS, padding="max_length", truncation=True)["input_ids"]
    np.testing.assert_array_equal(found, expected)
    again = weight_folders.load(tmp_path / "out")
    assert again.config.text == text
    assert again.vocabulary == vocabulary


def test_transparent_pictures_differ_by_their_background(vocabulary, tmp_path):
    # transformers drops the alpha channel and keeps the colours below it; here pictures lie on
    # white. Composed beforehand, they are equal.
    weights = _weights("siglip", vocabulary, length=64, size=64)
    hugging_face_folders.save(tmp_path / "out", weights)
    picture, texts = _picture((64, 64), "RGBA"), ["a red ring", "a blue star"]
    white = Image.new("RGBA", picture.size, "white")
    composed = Image.alpha_composite(white, picture).convert("RGB")
    ours = _logits(weights, picture, texts)
    found = _pipeline_logits(tmp_path / "out", composed, texts, 64)
    np.testing.assert_allclose(found, ours, atol=0.02)
    dropped = _pipeline_logits(tmp_path / "out", picture, texts, 64)
    opaque = _logits(weights, picture.convert("RGB"), texts)
    np.testing.assert_allclose(dropped, opaque, atol=1e-3)
    assert abs(dropped - ours).max() > 0.02
    # Its processors alone compose as sigline does.
    import transformers

    processor = transformers.AutoProcessor.from_pretrained(tmp_path / "out")
    pixels, white = (
        np.asarray(processor(images=x, return_tensors="np")["pixel_values"])
        for x in (picture, composed)
    )
    np.testing.assert_allclose(pixels, white, atol=1.01 / 127.5)


def test_default_model_of_sigline_has_its_tokens_and_its_pixels_at_its_own_size(
    vocabulary, tmp_path
):
    # Resized without antialiasing, which Pillow cannot; nothing is resized here.
    settings = config.override(config.tiny(config.load_recipe("siglip_demo")), ["text.length=64"])
    variables = two_tower.named_variables(two_tower.build(settings))
    weights = Weights(settings, {n: v.numpy() for n, v in variables.items()}, vocabulary)
    notes = hugging_face_folders.save(tmp_path / "out", weights)
    assert any("antialias" in note for note in notes)
    picture = _picture((settings.image.size,) * 2)
    ours = _logits(weights, picture, TEXTS)
    theirs = _pipeline_logits(tmp_path / "out", picture, TEXTS, 64)
    np.testing.assert_allclose(theirs, ours, atol=1e-3)
