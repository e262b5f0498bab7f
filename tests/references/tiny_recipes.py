"""Trains recipes that are shrunk to a few parameters, resumes them and exports them."""

import dataclasses
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from sigline.components.scenes import grammar
from sigline.schemas import signatures, tf_example
from sigline.trainer import config, recipes
from sigline.trainer.export import saved_model
from sigline.trainer.inputs import preprocess
from sigline.trainer.models import two_tower
from sigline.trainer.training import loop, start
from sigline.trainer.weights.model_weights import Weights

PRECOMPUTED = "+precomputed"
# Recipes that are trained, and one whose frozen tower may have embedded the images before. Those of
# AugReg are `vit_s16` with other values, and `semantic_21k_b16` has another loss and a tree of
# classes; `test_augreg.py` and `test_semantic.py` have what sets them apart.
_TRAINED = [name for name in recipes.names() if not name.startswith(("augreg_", "semantic_"))]
NAMES = (*_TRAINED, f"lit_b16{PRECOMPUTED}")


class Outcome(NamedTuple):
    """What training left.

    Attributes:
        parameters: By name.
        answers: Of the exported model: a signature's outputs by their names.
        embedding: Of the trained model: the embedding of the same picture, loaded as in training.
    """

    parameters: dict[str, np.ndarray]
    answers: dict[str, dict[str, np.ndarray]]
    embedding: np.ndarray


def recipe(name: str) -> config.TrainConfig:
    """Returns a recipe with one block a tower, which still is at its own patches and size."""
    tiny = config.override(config.tiny(config.load_recipe(name)), ["image.depth=1"])
    if tiny.text is not None:
        tiny = config.override(tiny, ["text.depth=1"])
    if tiny.image.classes is not None:
        tiny = config.override(tiny, [f"image.classes={len(grammar.label_set().names)}"])
    if any(item.kind == "classify" for item in tiny.objectives):
        # Some scenes have no label.
        tiny = config.override(tiny, ["objectives.classify.unlabelled=skip", "data.mixup=0"])
    return tiny


def common(tiny: config.TrainConfig) -> config.TrainConfig:
    """Returns a configuration without what sets apart recipes that differ in sizes alone."""
    values = ["image.patch=4", "image.size=8", "similarity.bias_init=none", "run.strategy=auto"]
    if tiny.image.grids:
        # Augmentation, by which they differ, too, is that of recipes of one grid.
        values += ["data.crop_min_area=none", "data.flip=false", "data.randaugment=none"]
        values += ["data.mixup=0", "image.head_bias_init=0"]
    if tiny.name == "hashtags_b16":
        # Augmentation and the number of labels apart, it is `vit_s16` of another width.
        values += ["data.crop_min_area=0.05", 'data.randaugment={"layers": 2, "magnitude": 10}']
        values += ["objectives.classify.labels_per_image=8"]
    return config.override(tiny, ["name=tiny", "optimizer.learning_rate=1e-3", *values])


def train(
    tiny: config.TrainConfig,
    folder: Path,
    *,
    split_dir: Path,
    vocabulary: bytes,
    image: bytes,
    precomputed: bool,
) -> Outcome:
    """Trains a step, resumes for another one, exports, and asks every signature.

    Args:
        tiny: The configuration.
        folder: Where checkpoints and the model go.
        split_dir: The training shards.
        vocabulary: A SentencePiece model.
        image: The picture that the model is asked about.
        precomputed: Whether the frozen tower embeds the images before.
    """
    pieces = vocabulary if tiny.text is not None else None
    weights = _weights(tiny)
    split = _embedded(tiny, weights, split_dir, folder) if precomputed else split_dir
    options = {
        "split_dir": split,
        "vocabulary": pieces,
        "checkpoint_dir": folder / "checkpoints",
        "weights": weights,
        "teachers": _teachers(tiny, pieces),
    }
    loop.train(config.override(tiny, ["steps=1"]), **options)
    settings = config.override(tiny, ["steps=2"])
    result = loop.train(settings, **options)
    assert result.first_step == 1
    labels = grammar.label_set()
    saved_model.export(
        folder / "model", result.model, config=settings, vocabulary=pieces, labels=labels
    )
    values = {"image_bytes": tf.constant([image]), "text": tf.constant(["a red ring"])}
    answers = {}
    for name, signature in tf.saved_model.load(str(folder / "model")).signatures.items():
        if signatures.split_grid(name)[1] is not None:
            # Those of a grid are tested where they are made, and each takes as long as these.
            continue
        inputs = {key: values[key] for key in signature.structured_input_signature[1]}
        answers[name] = {key: value.numpy() for key, value in signature(**inputs).items()}
    variables = two_tower.named_variables(result.model)
    pixels = preprocess.load_image(image, settings.image, max_pixels=10**6)
    embedding = result.model.embed_image(
        preprocess.to_model_range(pixels[tf.newaxis], settings.image)
    )
    parameters = {name: value.numpy() for name, value in variables.items()}
    return Outcome(parameters, answers, embedding.numpy())


def _weights(settings):
    """Returns weights for a recipe that starts from some."""
    if not settings.pretrained:
        return None
    model = two_tower.build(dataclasses.replace(settings, seed=1))
    variables = two_tower.named_variables(model)
    return Weights(settings, {name: value.numpy() for name, value in variables.items()})


def _teachers(settings, vocabulary):
    """Returns weights for the teachers that a recipe names."""
    teachers = {}
    for name in settings.teachers:
        model = two_tower.build(dataclasses.replace(settings, seed=2))
        variables = two_tower.named_variables(model)
        values = {key: value.numpy() for key, value in variables.items()}
        teachers[name] = Weights(settings, values, vocabulary)
    return teachers


def _embedded(settings, weights, split_dir, folder):
    """Writes a split whose images the frozen tower of the weights has embedded."""
    model = start.frozen_tower(settings, weights)
    digest = saved_model.image_digest(model)
    embeddings = {"dim": settings.image.output_dim, "image_digest": digest}
    (folder / "Split-train").mkdir(parents=True)
    shards = {}
    for path in sorted(split_dir.iterdir()):
        records = list(tf_example.read_shard(str(path)))
        pixels = [
            preprocess.load_image(tf_example.decode(item).image, settings.image, max_pixels=10**6)
            for item in records
        ]
        vectors = model.embed_image(preprocess.to_model_range(tf.stack(pixels), settings.image))
        pairs = zip(records, vectors.numpy(), strict=True)
        target = folder / "Split-train" / path.name
        tf_example.write_shard(str(target), (tf_example.with_embedding(*pair) for pair in pairs))
        shards[path.name] = {"records": len(records)}
    manifest = {"embeddings": embeddings, "splits": {"train": {"shards": shards}}}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder / "Split-train"
