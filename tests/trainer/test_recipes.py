"""Every recipe, shrunk, trains, exports and answers: what a new recipe must do to be one."""

import pytest
import tensorflow as tf

from sigline.components.scenes import grammar
from sigline.trainer import config, export, loop, recipes


@pytest.mark.parametrize("name", recipes.names())
def test_recipe_trains_a_step_exports_and_answers(
    name, split_dir, vocabulary, scene_records, tmp_path
):
    tiny = config.override(config.tiny(config.load_recipe(name)), ["steps=1"])
    result = loop.train(
        tiny, split_dir=split_dir, vocabulary=vocabulary, checkpoint_dir=tmp_path / "checkpoints"
    )
    labels = grammar.label_set()
    directory = tmp_path / "model"
    export.export(directory, result.model, config=tiny, vocabulary=vocabulary, labels=labels)
    values = {
        "image_bytes": tf.constant([scene_records[0].image]),
        "text": tf.constant(["a red ring"]),
    }
    signatures = tf.saved_model.load(str(directory)).signatures
    assert len(signatures) == 6
    for signature in signatures.values():
        names = signature.structured_input_signature[1]
        outputs = signature(**{key: values[key] for key in names})
        assert all(output.shape[0] == 1 for output in outputs.values())
