"""Weights are read from whatever a run leaves."""

import dataclasses
import json
import shutil

import numpy as np
import pytest

from sigline import cli
from sigline.schemas import signatures
from sigline.trainer import config, sources
from sigline.trainer.models import two_tower
from sigline.trainer.training import start
from sigline.trainer.weights import weight_folders
from sigline.trainer.weights.model_weights import Weights


@pytest.fixture(scope="module")
def weights(vocabulary):
    tiny = config.tiny(config.load_recipe("siglip_demo"))
    settings = config.override(tiny, ["image.depth=1", "text.depth=1"])
    variables = two_tower.named_variables(two_tower.build(settings))
    values = {name: variable.numpy() for name, variable in variables.items()}
    kept = {"tokenizer.json": b"{}", "tokenizer_config.json": b"[]"}
    return Weights(settings, values, vocabulary, "origin", kept)


@pytest.fixture(scope="module")
def left(tmp_path_factory, weights):
    """What a run of the pipeline leaves: versions of a model."""
    folder = tmp_path_factory.mktemp("run")
    start.export_weights(folder / "serving" / "2", weights)
    (folder / "serving" / "1").mkdir()
    return folder


def _check(found, weights, *, initial_digest="origin"):
    assert found.config == weights.config
    assert found.vocabulary == weights.vocabulary
    assert found.tokenizer == weights.tokenizer
    assert found.initial_digest == initial_digest
    assert set(found.parameters) == set(weights.parameters)
    for name, value in weights.parameters.items():
        assert found.parameters[name].dtype == value.dtype
        np.testing.assert_array_equal(found.parameters[name], value, err_msg=name)


def test_published_version_returns_the_weights_it_was_made_of(left, weights):
    # The serving folder stands for its newest version.
    for path in (left / "serving" / "2", left / "serving"):
        _check(sources.load(path), weights)


def test_model_artifact_of_tfx_is_a_saved_model(left, weights, tmp_path):
    shutil.copytree(left / "serving" / "2", tmp_path / "model" / "7" / "Format-Serving")
    _check(sources.load(tmp_path / "model" / "7"), weights)


@pytest.mark.parametrize("damage", ["config", "vocabulary", "parameters"])
def test_saved_model_that_was_changed_is_refused(damage, left, weights, tmp_path):
    folder = shutil.copytree(left / "serving" / "2", tmp_path / "1")
    assets = folder / signatures.ASSETS_DIR
    if damage == "config":
        path = assets / signatures.CONFIG_FILE
        content = json.loads(path.read_text())
        content["text"]["lowercase"] = False
        path.write_text(json.dumps(content))
    elif damage == "vocabulary":
        (assets / signatures.VOCABULARY_FILE).write_bytes(b"x")
    else:
        (path,) = (folder / "variables").glob("*.data-*")
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 0x40
        path.write_bytes(bytes(content))
    with pytest.raises(ValueError, match="is damaged"):
        sources.load(folder)


def test_saved_model_of_others_is_refused(tmp_path):
    (tmp_path / "saved_model.pb").write_bytes(b"x")
    with pytest.raises(ValueError, match="must be one that sigline exported"):
        sources.load(tmp_path)


def test_weights_of_a_training_are_preferred_to_its_checkpoints(weights, tmp_path):
    weight_folders.save(tmp_path / "run" / "weights", weights)
    weight_folders.save_description(tmp_path / "run" / "checkpoints" / "description", weights)
    _check(sources.load(tmp_path / "run"), weights)


def test_folder_of_several_runs_leaves_a_choice(weights, tmp_path):
    for key in ("a", "b"):
        described = tmp_path / key / "checkpoints" / "description"
        weight_folders.save_description(described, dataclasses.replace(weights, parameters={}))
    with pytest.raises(ValueError, match=r"several runs.*a/checkpoints, .*b/checkpoints"):
        sources.load(tmp_path)
    with pytest.raises(ValueError, match="must have a checkpoint"):
        sources.load(tmp_path / "a")
    with pytest.raises(ValueError, match=r"a folder of checkpoints.*Received: .*nothing"):
        sources.load(tmp_path / "nothing")


def test_command_exports_versions_and_writes_over_nothing(left, tmp_path, capsys):
    arguments = ["weights", "export", str(left / "serving"), "--output", str(tmp_path / "out")]
    assert cli.main(arguments) == 0
    assert (
        "Note: transformers' zero-shot pipeline fills texts for SigLIP to 64 tokens"
        in capsys.readouterr().out
    )
    written = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    assert {"config.json", "model.safetensors", "preprocessor_config.json"} <= set(written)
    assert cli.main(arguments) == 2
    assert "--output must not exist yet" in capsys.readouterr().err
    assert {p.name: p.stat().st_mtime_ns for p in (tmp_path / "out").iterdir()} == written
