"""Models of Hugging Face through sigline on real pictures, and back (`make parity`)."""

import importlib.util
import io
import json
import os
import subprocess
import tarfile
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import tensorflow as tf
import yaml
from PIL import Image

ROOT = Path(__file__).resolve().parents[3]
# The pipeline's own environment; transformers' does not have TFX.
SIGLINE = ROOT / ".venv" / "bin" / "sigline"
NAMES = ("transformers", "torch")

pytestmark = [
    pytest.mark.skipif(
        not all(importlib.util.find_spec(name) for name in NAMES),
        reason="transformers and torch are not installed; `make parity` runs this where they are",
    ),
    pytest.mark.skipif(not SIGLINE.exists(), reason="there is no pipeline; run `make setup`"),
]
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
TEXTS = ["smiling face", "A Red Heart!", "dog", "flag: Japan", "1️⃣  keycap", "日本語", ""]
CLASSES = ["smiling face", "red heart", "dog", "flag", "keycap"]
# What so few steps do not reach.
GATE = {"above_chance": {"image_to_text_recall@10": None, "text_to_image_recall@10": None}}


def _names(noto_emoji: Path) -> tuple[list[bytes], list[str]]:
    """Returns the pictures and the names of a shard."""
    pictures, names = [], []
    with tarfile.open(sorted(noto_emoji.glob("*.tar"))[0]) as shard:
        for member in shard:
            handle = shard.extractfile(member)
            if handle is not None and member.name.endswith(".png"):
                pictures.append(handle.read())
            elif handle is not None and member.name.endswith(".txt"):
                names.append(handle.read().decode())
    return pictures, names


def _write_siglip(folder: Path, names: list[str]) -> None:
    """Writes a small random SigLIP as Hugging Face publishes one."""
    import sentencepiece
    import torch
    import transformers

    torch.manual_seed(0)
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(names),
        model_writer=model,
        model_type="unigram",
        vocab_size=300,
        hard_vocab_limit=False,
        **{"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1},
        num_threads=1,
        minloglevel=2,
    )
    text = {**SIZES, "vocab_size": 512, "max_position_embeddings": 64}
    vision = {**SIZES, "image_size": 32, "patch_size": 8}
    config = transformers.SiglipConfig(text_config=text, vision_config=vision)
    transformers.SiglipModel(config).save_pretrained(folder)
    (folder / "spiece.model").write_bytes(model.getvalue())
    size = {"height": 32, "width": 32}
    processor = {
        "image_processor_type": "SiglipImageProcessor",
        "size": size,
        "resample": 3,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))


def _sigline(*arguments: str | Path) -> str:
    # TensorFlow as it is for a user, without what tests set.
    done = subprocess.run(
        [SIGLINE, *arguments], capture_output=True, text=True, check=False, env=dict(os.environ)
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def folder(tmp_path_factory, noto_emoji):
    """A folder with the model in Hugging Face's form, as the pipeline published it, and back."""
    folder = tmp_path_factory.mktemp("round_trip")
    _, names = _names(noto_emoji)
    _write_siglip(folder / "theirs", names)
    _sigline("weights", "import", folder / "theirs", "--output", folder / "weights")
    environment = {
        "pipeline_name": "round_trip",
        "root": str(folder / "root"),
        "input_base": str(noto_emoji),
        "recipe": "siglip_small",
        "weights": str(folder / "weights"),
        # Towers and vocabulary come from the weights; another resolution would be the recipe's.
        "overrides": [
            'pretrained=[".*"]',
            "image.size=32",
            "steps=20",
            "global_batch_size=64",
        ],
        "gate": GATE,
    }
    (folder / "environment.yaml").write_text(yaml.safe_dump(environment))
    printed = _sigline("run", "--environment", folder / "environment.yaml")
    assert "From the weights: text.length=64 (the recipe: 16)" in printed
    published = folder / "root" / "serving" / "1"
    _sigline("weights", "export", published, "--output", folder / "back")
    return folder


def test_pipeline_hands_on_the_vocabulary_of_the_weights(folder):
    expected = (folder / "theirs" / "spiece.model").read_bytes()
    (artifact,) = (folder / "root" / "artifacts" / "TrainVocabulary").glob("vocabulary/*/*.model")
    assert artifact.read_bytes() == expected
    assert (folder / "back" / "spiece.model").read_bytes() == expected


def test_training_moved_the_weights(folder):
    before, after = (
        safetensors.numpy.load_file(str(folder / name / "model.safetensors"))
        for name in ("theirs", "back")
    )
    assert set(before) == set(after)
    assert all(before[name].shape == value.shape for name, value in after.items())
    name = "text_model.embeddings.token_embedding.weight"
    assert np.abs(after[name] - before[name]).max() > 1e-4


def test_zero_shot_pipeline_of_transformers_agrees_with_the_published_model(folder, noto_emoji):
    import transformers

    from sigline.trainer import sources
    from sigline.trainer.inputs import preprocess

    published = folder / "root" / "serving" / "1"
    weights = sources.load(published)
    similarity = tf.saved_model.load(str(published)).signatures["similarity"]
    pipe = transformers.pipeline("zero-shot-image-classification", model=str(folder / "back"))
    ids = pipe.tokenizer(TEXTS, padding="max_length", max_length=64, truncation=True)["input_ids"]
    ours = preprocess.Tokenizer(weights.vocabulary, weights.config.text)(tf.constant(TEXTS))
    np.testing.assert_array_equal(ids, ours)
    pictures, _ = _names(noto_emoji)
    for encoded in pictures[::60]:
        answer = similarity(image_bytes=tf.constant([encoded]), text=tf.constant(TEXTS))
        # Emoji are transparent, which transformers does not compose.
        picture = Image.open(io.BytesIO(encoded)).convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        opaque = Image.alpha_composite(white, picture).convert("RGB")
        inputs = pipe.preprocess(opaque, candidate_labels=TEXTS, hypothesis_template="{}")
        logits = pipe.forward(inputs)["logits"].numpy()
        np.testing.assert_allclose(logits, answer["logits"], atol=1e-3)
        found = pipe(opaque, candidate_labels=TEXTS, hypothesis_template="{}")
        scores = {item["label"]: item["score"] for item in found}
        expected = answer["probabilities"].numpy()[0]
        np.testing.assert_allclose([scores[text] for text in TEXTS], expected, atol=1e-4)


@pytest.mark.parametrize(
    "name", ["ViTForImageClassification", "DeiTForImageClassificationWithTeacher"]
)
def test_classification_pipeline_of_transformers_agrees_with_the_served_model(
    name, noto_emoji, tmp_path
):
    import make_hugging_face as golden
    import transformers

    named = {
        "id2label": dict(enumerate(CLASSES)),
        "label2id": {x: i for i, x in enumerate(CLASSES)},
    }
    model = golden.build_classifier(name, image_size=32, **named)
    model.save_pretrained(tmp_path / "theirs")
    processor = {
        "image_processor_type": f"{name.partition('For')[0]}ImageProcessor",
        "size": {"height": 36, "width": 36},
        "crop_size": {"height": 32, "width": 32},
        "do_center_crop": True,
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
    }
    (tmp_path / "theirs" / "preprocessor_config.json").write_text(json.dumps(processor))
    _sigline("weights", "import", tmp_path / "theirs", "--output", tmp_path / "weights")
    _sigline("export", "--weights", tmp_path / "weights", "--output", tmp_path / "model")
    _sigline("weights", "export", tmp_path / "model", "--output", tmp_path / "back")
    served = tf.saved_model.load(str(tmp_path / "model")).signatures["classify"]
    pictures, _ = _names(noto_emoji)
    for folder in ("theirs", "back"):
        pipe = transformers.pipeline("image-classification", model=str(tmp_path / folder))
        for encoded in pictures[::120]:
            answer = served(image_bytes=tf.constant([encoded]))
            picture = Image.open(io.BytesIO(encoded)).convert("RGBA")
            white = Image.new("RGBA", picture.size, "white")
            opaque = Image.alpha_composite(white, picture).convert("RGB")
            scores = {item["label"]: item["score"] for item in pipe(opaque, top_k=5)}
            ours = dict(zip(answer["classes"].numpy()[0], answer["scores"].numpy()[0], strict=True))
            assert {key.decode() for key in ours} == set(CLASSES)
            for key, value in ours.items():
                np.testing.assert_allclose(scores[key.decode()], value, atol=1e-4)
