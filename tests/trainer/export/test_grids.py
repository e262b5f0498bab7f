"""A FlexiViT is exported once, with the signatures of all its grids."""

import numpy as np
import pytest
import tensorflow as tf

from sigline.components.scenes import grammar
from sigline.schemas import signatures
from sigline.serving.checks import probes
from sigline.trainer import config
from sigline.trainer.export import capabilities
from sigline.trainer.export.served import Served
from sigline.trainer.inputs import preprocess
from sigline.trainer.models import two_tower

AT_GRIDS = {"embed_image", "embed_image_safe", "similarity", "classify"}


@pytest.fixture(scope="module")
def settings(contract_config):
    grids = ["image.grids=[1, 2, 4]", "image.default_grid=2", "image.position_grid=3"]
    return config.override(contract_config, [*grids, "image.pool=gap"])


@pytest.fixture(scope="module")
def model(settings):
    return two_tower.build(settings)


@pytest.fixture(scope="module")
def served(model, settings, vocabulary):
    tokenizer = preprocess.Tokenizer(vocabulary, settings.text)
    return Served(model, settings, tokenizer=tokenizer, labels=grammar.label_set())


@pytest.fixture(scope="module")
def functions(served):
    return capabilities.signatures_of(served)


@pytest.fixture(scope="module")
def images(scene_records):
    return [item.image for item in scene_records[:3]]


def _call(functions):
    def call(signature, inputs):
        # Without a graph, which TensorFlow would optimize for each of them before its first call.
        compute = functions[signature].python_function
        answer = compute(*(tf.constant(x) for x in inputs.values()))
        return {name: value.numpy() for name, value in answer.items()}

    return call


def test_every_signature_of_images_has_one_for_each_grid(functions):
    expected = {f"{name}_g{grid}" for name in AT_GRIDS for grid in (1, 2, 4)}
    assert set(functions) == AT_GRIDS | {"embed_text"} | expected
    # Those of the default grid are the plain ones under another name.
    assert all(functions[f"{name}_g2"] is functions[name] for name in AT_GRIDS)


def test_answers_at_a_grid_are_the_trainers(functions, model, settings, images):
    pixels = [preprocess.load_image(x, settings.image, max_pixels=10**6) for x in images]
    pixels = preprocess.to_model_range(tf.stack(pixels), settings.image)
    call, asked = _call(functions), {"image_bytes": images}
    scores = {}
    for grid in (1, 2, 4):
        expected = model.look(pixels, variant=grid)["embedding"].numpy()
        found = call(f"embed_image_g{grid}", asked)["embedding"]
        np.testing.assert_allclose(found, expected, atol=1e-6)
        scores[grid] = call(f"classify_g{grid}", asked)["scores"]
    assert np.abs(scores[1] - scores[4]).max() > 1e-6


def test_probes_ask_every_grid(functions, images):
    asked = []

    def call(signature, inputs):
        asked.append(signature)
        answer = _call(functions)(signature, inputs)
        if signature == "similarity_g4":
            answer["probabilities"] += 2.0
        return answer

    names = [name for name in functions if not name.startswith("embed_image")]
    with pytest.raises(probes.WrongAnswer, match="at 4 x 4 patches: similarity"):
        probes.probe_all(call, probes.ProbeInputs(images, ["a red ring"], None), names)
    assert asked == ["embed_text", "similarity", "similarity_g1", "similarity_g2", "similarity_g4"]


def test_what_all_grids_share_is_stored_once(served, functions):
    assert functions
    variables = [x.name for x in served.variables]
    assert len(variables) == len(served.variables_to_save) + 1
    assert served.class_embeddings.shape[0] == len(grammar.label_set().names)
    # For Google's TPU converter.
    encoders = {"image_encoder", "image_encoder_g1", "image_encoder_g4", "text_encoder"}
    assert set(served.encoders()) == encoders


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("embed_image_g7", ("embed_image", 7)),
        ("embed_image_safe_g16", ("embed_image_safe", 16)),
        ("embed_image", ("embed_image", None)),
        ("serving_default", ("serving_default", None)),
        ("my_g", ("my_g", None)),
    ],
)
def test_names_are_made_and_split(name, parts):
    assert signatures.split_grid(name) == parts
    assert signatures.at_grid(*parts) == name
