"""The pipeline's training in an interpreter of its own."""

import dataclasses
import json
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest
from forked import Forked

from sigline.schemas import artifacts, signatures
from sigline.trainer import config, run_file

pytestmark = [pytest.mark.tfx, pytest.mark.slow]


TINY = config.override(
    config.tiny(config.load_recipe("siglip_demo")), ["image.depth=1", "text.depth=1"]
)


@pytest.fixture(scope="module")
def given(tmp_path_factory, scene_records, vocabulary):
    """Makes a task whose results go below a folder."""
    from sigline.schemas import tf_example

    inputs = tmp_path_factory.mktemp("inputs")
    path, split_dir = inputs / "vocabulary.model", inputs / "Split-train"
    path.write_bytes(vocabulary)
    split_dir.mkdir()
    encoded = [tf_example.encode(item) for item in scene_records[:16]]
    tf_example.write_shard(str(split_dir / "data_tfrecord-00000-of-00001.gz"), encoded)

    def make(folder: Path) -> run_file.Task:
        return run_file.Task(
            config=TINY.to_json(),
            folders=[str(split_dir)],
            vocabulary=str(path),
            checkpoint_root=str(folder / "checkpoints"),
            model_dir=str(folder / "model"),
            run_dir=str(folder / "run"),
            code_digest="0",
            parity_split=str(split_dir),
        )

    return make


@pytest.fixture(scope="module")
def done(given, tmp_path_factory):
    """The folder of a task that has been run."""
    folder = tmp_path_factory.mktemp("done")
    run_file.run(given(folder))
    return folder


def test_other_interpreter_trains_the_same_model(given, done, tmp_path):
    from sigline.components.train import component

    component._run_by(sys.executable, given(tmp_path))
    digests = []
    for folder in (done, tmp_path):
        metadata = folder / "model" / signatures.ASSETS_DIR / signatures.METADATA_FILE
        digests.append(json.loads(metadata.read_text())["model_digest"])
        assert (folder / "run" / artifacts.TRAINING_FILE).is_file()
        assert (folder / "run" / artifacts.PARITY_FILE).is_file()
    assert digests[0] == digests[1]


def test_run_that_is_done_gives_the_same_files_again(given, done, tmp_path):
    shutil.copytree(done / "checkpoints", tmp_path / "checkpoints")
    run_file.run(given(tmp_path))
    both = [done / "model", tmp_path / "model"]
    names = [sorted(str(x.relative_to(top)) for x in top.rglob("*")) for top in both]
    assert names[0] == names[1]
    for name in names[0]:
        if (both[0] / name).is_file():
            assert (both[0] / name).read_bytes() == (both[1] / name).read_bytes(), name
    training = json.loads((tmp_path / "run" / artifacts.TRAINING_FILE).read_text())
    assert training["first_step"] == training["steps"]


def test_second_process_does_not_train_the_same(tmp_path):
    with (
        run_file._alone(str(tmp_path)),
        pytest.raises(ValueError, match="Another process is training the same"),
        run_file._alone(str(tmp_path)),
    ):
        pass
    with run_file._alone(str(tmp_path)):
        pass


def test_reason_of_a_failure_is_handed_on(given, tmp_path, capfd):
    from sigline.components.train import component

    wrong = dataclasses.replace(given(tmp_path), folders=["/nowhere"])
    with pytest.raises(RuntimeError, match=r"ended with 1: .*/nowhere"):
        component._run_by(sys.executable, wrong)
    assert "/nowhere" in capfd.readouterr().err


# What a task of the pipeline is, for whoever kills it.
_PARENT = """
import json, sys
from sigline.components.train import component
from sigline.trainer.run_file import Task
component._run_by(sys.executable, Task(**json.loads(sys.argv[1])))
"""


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGKILL])
def test_trainer_saves_and_ends_with_who_started_it(given, tmp_path, sent):
    long = config.override(TINY, ["steps=100000", "run.checkpoint_steps=100000", "run.log_steps=5"])
    asked = dataclasses.replace(given(tmp_path / "killed"), config=long.to_json())
    parent = Forked(["-c", _PARENT, asked.to_json()], tmp_path)
    root = Path(asked.checkpoint_root)
    _until(lambda: any(x.stat().st_size > 1000 for x in root.rglob("*tfevents*")), parent)
    assert not list(root.rglob("*.index"))
    parent.send_signal(sent)
    _, errors = parent.communicate(timeout=120)
    (work_dir,) = root.iterdir()
    # Killed, it cannot tell the trainer, which sees that its input has ended.
    _until(lambda: _is_free(work_dir))
    assert list(root.rglob("*.index"))
    if sent == signal.SIGTERM:
        assert "Stopped by SIGTERM" in errors


def _until(holds, process: Forked | None = None) -> None:
    end = time.monotonic() + 120
    while not holds():
        assert time.monotonic() < end
        assert process is None or process.poll() is None
        time.sleep(0.1)


def _is_free(work_dir: Path) -> bool:
    try:
        with run_file._alone(str(work_dir)):
            return True
    except ValueError:
        return False


def test_stream_goes_on_when_its_reader_has_gone():
    import os

    read, write = os.pipe()
    os.close(read)
    with open(write, "w", buffering=1) as stream:
        unbroken = run_file._Unbroken(stream)
        assert unbroken.write("a line\n") == 7
        unbroken.flush()
        assert unbroken.fileno() == write
        # What is left in the stream's own buffer has no reader either.
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), write)
