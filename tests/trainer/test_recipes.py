"""Every recipe, shrunk, trains, resumes, exports and answers; and has a run card."""

import dataclasses

import pytest
import tensorflow as tf

from sigline.components.scenes import grammar
from sigline.trainer import config, export, loop, recipes, two_tower
from sigline.trainer.weights.checkpoint import Weights


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


@pytest.mark.parametrize("name", recipes.names())
def test_recipe_trains_resumes_exports_and_answers(
    name, split_dir, vocabulary, scene_records, tmp_path
):
    labels = grammar.label_set()
    tiny = config.override(config.tiny(config.load_recipe(name)), ["image.depth=1"])
    if tiny.text is not None:
        tiny = config.override(tiny, ["text.depth=1"])
    if tiny.image.classes is not None:
        tiny = config.override(tiny, [f"image.classes={len(labels.names)}"])
    vocabulary = vocabulary if tiny.text is not None else None
    options = {
        "split_dir": split_dir,
        "vocabulary": vocabulary,
        "checkpoint_dir": tmp_path / "checkpoints",
        "weights": _weights(tiny),
        "teachers": _teachers(tiny, vocabulary),
    }
    loop.train(config.override(tiny, ["steps=1"]), **options)
    settings = config.override(tiny, ["steps=2"])
    result = loop.train(settings, **options)
    assert result.first_step == 1
    directory = tmp_path / "model"
    export.export(directory, result.model, config=settings, vocabulary=vocabulary, labels=labels)
    values = {
        "image_bytes": tf.constant([scene_records[0].image]),
        "text": tf.constant(["a red ring"]),
    }
    signatures = tf.saved_model.load(str(directory)).signatures
    # Those of texts need a text tower.
    assert len(signatures) == (4 if tiny.text is None else 6)
    for signature in signatures.values():
        names = signature.structured_input_signature[1]
        outputs = signature(**{key: values[key] for key in names})
        assert all(output.shape[0] == 1 for output in outputs.values())


@pytest.mark.parametrize("name", recipes.names())
def test_recipe_has_a_run_card(name):
    card = " ".join(str(config.recipe_module(name).__doc__).split())
    assert "arXiv" in card
    assert "Command: `" in card
    assert "Expected result: " in card
