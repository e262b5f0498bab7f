"""Every recipe, shrunk, trains, resumes, exports and answers as before; and has a run card."""

import functools
import json
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
import tiny_recipes

from sigline.trainer import config, recipes
from sigline.trainer.inputs import preprocess
from sigline.trainer.models import two_tower

# What `tests/golden/make_outcomes.py` wrote: other processors round otherwise, so no digests.
GOLDEN = Path(__file__).parents[2] / "golden" / "outcomes.json"


@pytest.fixture(scope="module")
def outcomes(split_dir, vocabulary, scene_records, tmp_path_factory):
    """Returns the outcome of a recipe; one training for all that are alike."""

    @functools.cache
    def _outcome(tiny, precomputed):
        return tiny_recipes.train(
            tiny,
            tmp_path_factory.mktemp("recipe"),
            split_dir=split_dir,
            vocabulary=vocabulary,
            image=scene_records[0].image,
            precomputed=precomputed,
        )

    return _outcome


@pytest.mark.parametrize("name", tiny_recipes.NAMES)
def test_recipe_trains_resumes_exports_and_answers_as_before(name, outcomes, scene_records):
    short = name.removesuffix(tiny_recipes.PRECOMPUTED)
    tiny = tiny_recipes.recipe(short)
    outcome = outcomes(tiny_recipes.common(tiny), name != short)
    # Those of texts need a text tower.
    expected = {"serving_default", "embed_image", "embed_image_safe", "classify"}
    expected |= set() if tiny.text is None else {"embed_text", "similarity"}
    expected |= set() if tiny.image.classes is None else {"class_logits"}
    assert set(outcome.answers) == expected
    for outputs in outcome.answers.values():
        assert all(output.shape[0] == 1 for output in outputs.values())
    golden = json.loads(GOLDEN.read_text())[name]
    norms = {key: float(np.linalg.norm(x)) for key, x in outcome.parameters.items()}
    assert norms == pytest.approx(golden["norms"], rel=1e-4, abs=1e-6)
    embedding = outcome.answers["embed_image"]["embedding"][0]
    np.testing.assert_allclose(embedding, golden["embedding"], atol=2e-3)
    # What was trained in bfloat16 is served in float32.
    exact = tiny.precision == "float32"
    np.testing.assert_allclose(embedding, outcome.embedding[0], atol=1e-5 if exact else 1e-2)
    # At the patches, the size and the initial bias of its own.
    model = two_tower.build(tiny)
    pixels = preprocess.load_image(scene_records[0].image, tiny.image, max_pixels=10**6)
    image = model.embed_image(preprocess.to_model_range(pixels[tf.newaxis], tiny.image))
    assert image.shape == outcome.answers["embed_image"]["embedding"].shape


@pytest.mark.parametrize("name", recipes.names())
def test_recipe_has_a_run_card(name):
    card = " ".join(str(config.recipe_module(name).__doc__).split())
    assert "arXiv" in card
    assert "Command: `" in card
    assert "Expected result: " in card
