"""The pipeline's training in an interpreter of its own."""

import dataclasses
import json
import sys

import pytest

from sigline.schemas import artifacts, signatures
from sigline.trainer import config, task

pytestmark = [pytest.mark.tfx, pytest.mark.slow]


@pytest.fixture
def given(tmp_path, split_dir, vocabulary):
    """A task, and where its results go."""
    (tmp_path / "vocabulary.model").write_bytes(vocabulary)
    tiny = config.tiny(config.load_recipe("siglip_demo"))

    def make(name: str) -> task.Task:
        return task.Task(
            config=tiny.to_json(),
            folders=[str(split_dir)],
            vocabulary=str(tmp_path / "vocabulary.model"),
            checkpoint_root=str(tmp_path / name / "checkpoints"),
            model_dir=str(tmp_path / name / "model"),
            run_dir=str(tmp_path / name / "run"),
            code_digest="0",
            parity_split=str(split_dir),
        )

    return make


def test_other_interpreter_trains_the_same_model(given, tmp_path):
    from sigline.pipeline import tfx_trainer

    task.run(given("here"))
    tfx_trainer._run_by(sys.executable, given("there"))
    digests = []
    for name in ("here", "there"):
        metadata = tmp_path / name / "model" / signatures.ASSETS_DIR / signatures.METADATA_FILE
        digests.append(json.loads(metadata.read_text())["model_digest"])
        assert (tmp_path / name / "run" / artifacts.TRAINING_FILE).is_file()
        assert (tmp_path / name / "run" / artifacts.PARITY_FILE).is_file()
    assert digests[0] == digests[1]


def test_reason_of_a_failure_is_handed_on(given, capfd):
    from sigline.pipeline import tfx_trainer

    wrong = dataclasses.replace(given("there"), folders=["/nowhere"])
    with pytest.raises(RuntimeError, match=r"ended with 1: .*/nowhere"):
        tfx_trainer._run_by(sys.executable, wrong)
    assert "/nowhere" in capfd.readouterr().err
