"""Every recipe, shrunk, trains, resumes, exports and answers; and has a run card."""

import dataclasses
import functools
import json

import pytest
import tensorflow as tf

from sigline.components.scenes import grammar
from sigline.schemas import tf_example
from sigline.trainer import config, export, loop, preprocess, recipes, start, two_tower
from sigline.trainer.weights.checkpoint import Weights

PRECOMPUTED = "+precomputed"


def _weights(settings):
    """Returns weights for a recipe that starts from some."""
    if not settings.pretrained:
        return None
    model = two_tower.build(dataclasses.replace(settings, seed=1))
    variables = two_tower.named_variables(model)
    return Weights(settings, {name: value.numpy() for name, value in variables.items()})


def _teachers(settings, vocabulary):
    """Returns weights for the teachers that a recipe names."""
    found = {}
    for name in settings.teachers:
        model = two_tower.build(dataclasses.replace(settings, seed=2))
        variables = two_tower.named_variables(model)
        values = {key: value.numpy() for key, value in variables.items()}
        found[name] = Weights(settings, values, vocabulary)
    return found


def _embedded(settings, weights, split_dir, folder):
    """Writes a split whose images the frozen tower of the weights has embedded."""
    model = start.frozen_tower(settings, weights)
    digest = export.image_digest(model)
    embeddings = {"dim": settings.image.output_dim, "image_digest": digest}
    (folder / "Split-train").mkdir(parents=True)
    shards = {}
    for path in sorted(split_dir.iterdir()):
        records = list(tf_example.read_shard(str(path)))
        pixels = [
            preprocess.load_image(tf_example.decode(item).image, settings.image, max_pixels=10**6)
            for item in records
        ]
        found = model.embed_image(preprocess.to_model_range(tf.stack(pixels), settings.image))
        pairs = zip(records, found.numpy(), strict=True)
        target = folder / "Split-train" / path.name
        tf_example.write_shard(str(target), (tf_example.with_embedding(*pair) for pair in pairs))
        shards[path.name] = {"records": len(records)}
    manifest = {"embeddings": embeddings, "splits": {"train": {"shards": shards}}}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder / "Split-train"


def _tiny(name):
    tiny = config.override(config.tiny(config.load_recipe(name)), ["image.depth=1"])
    if tiny.text is not None:
        tiny = config.override(tiny, ["text.depth=1"])
    if tiny.image.classes is not None:
        tiny = config.override(tiny, [f"image.classes={len(grammar.label_set().names)}"])
    return tiny


def _common(tiny):
    """Returns a configuration with what sets apart recipes that are the same at other sizes."""
    values = ["image.patch=4", "image.size=8", "loss.bias_init=none", "strategy=auto"]
    return config.override(tiny, ["name=tiny", "optimizer.learning_rate=1e-3", *values])


@pytest.fixture(scope="module")
def answers(split_dir, vocabulary, scene_records, tmp_path_factory):
    """Trains, resumes and exports a recipe, and returns what it answers; once for all alike."""

    @functools.cache
    def _answers(tiny, precomputed):
        folder = tmp_path_factory.mktemp("recipe")
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
        export.export(
            folder / "model",
            result.model,
            config=settings,
            vocabulary=pieces,
            labels=grammar.label_set(),
        )
        values = {
            "image_bytes": tf.constant([scene_records[0].image]),
            "text": tf.constant(["a red ring"]),
        }
        signatures = tf.saved_model.load(str(folder / "model")).signatures
        return {
            name: signature(**{key: values[key] for key in signature.structured_input_signature[1]})
            for name, signature in signatures.items()
        }

    return _answers


@pytest.mark.parametrize("name", [*recipes.names(), f"lit_b16{PRECOMPUTED}"])
def test_recipe_trains_resumes_exports_and_answers(name, answers, scene_records):
    precomputed, name = name.endswith(PRECOMPUTED), name.removesuffix(PRECOMPUTED)
    tiny = _tiny(name)
    found = answers(_common(tiny), precomputed)
    # Those of texts need a text tower.
    assert len(found) == (4 if tiny.text is None else 6)
    for outputs in found.values():
        assert all(output.shape[0] == 1 for output in outputs.values())
    # At the patches, the size and the initial bias of its own.
    model = two_tower.build(tiny)
    pixels = preprocess.load_image(scene_records[0].image, tiny.image, max_pixels=10**6)
    image = model.embed_image(preprocess.to_model_range(pixels[tf.newaxis], tiny.image))
    assert image.shape == found["embed_image"]["embedding"].shape


@pytest.mark.parametrize("name", recipes.names())
def test_recipe_has_a_run_card(name):
    card = " ".join(str(config.recipe_module(name).__doc__).split())
    assert "arXiv" in card
    assert "Command: `" in card
    assert "Expected result: " in card
