"""The training component: from records, and a vocabulary for texts, to an exported model."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator

from tfx.dsl.component.experimental.annotations import InputArtifact, OutputArtifact, Parameter
from tfx.dsl.component.experimental.decorators import component
from tfx.types import artifact_utils
from tfx.types.standard_artifacts import Examples, Model, ModelRun
from tfx.utils import path_utils

from sigline.components.shared.artifact_types import Vocabulary
from sigline.schemas import artifacts, record
from sigline.trainer import run_file
from sigline.trainer.run_file import Task


@component
def TrainModel(
    examples: InputArtifact[list[Examples]],
    model: OutputArtifact[Model],
    model_run: OutputArtifact[ModelRun],
    config: Parameter[str],
    weights: Parameter[str],
    weights_digest: Parameter[str],
    teachers: Parameter[str],
    teacher_digests: Parameter[str],
    checkpoint_root: Parameter[str],
    code_digest: Parameter[str],
    python: Parameter[str] = "",
    vocabulary: InputArtifact[Vocabulary] = None,
):
    """Trains and exports, in the interpreter `python` if one is named; see `trainer.run_file`.

    A model of images alone gets no vocabulary.
    """
    from sigline.trainer.inputs import shards

    # For the cache only: the digests are those of what is read.
    del weights_digest, teacher_digests
    # TFX keeps no order of artifacts.
    ordered = sorted(examples, key=lambda item: item.span)
    newest = ordered[-1]
    train_splits = [_split(item, record.TRAIN_SPLIT) for item in ordered]
    embedded = shards.embeddings(train_splits[-1]) is not None
    task = Task(
        config=config,
        # Several spans are weighted by their records.
        folders=train_splits,
        vocabulary=os.path.join(vocabulary.uri, artifacts.VOCABULARY_FILE) if vocabulary else "",
        weights=weights,
        teachers=json.loads(teachers),
        labels=_labels(newest.uri),
        code_digest=code_digest,
        checkpoint_root=checkpoint_root,
        model_dir=path_utils.serving_model_dir(model.uri),
        run_dir=model_run.uri,
        parity_split="" if embedded else _split(newest, record.EVAL_SPLIT),
    )
    if python:
        _run_by(python, task)
    else:
        run_file.run(task)


def _run_by(python: str, task: Task) -> None:
    """Runs a task in another interpreter; raises RuntimeError with the last line that it prints."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "task.json")
        with open(path, "w") as handle:
            handle.write(task.to_json())
        command, last = [python, "-m", run_file.__name__, path], ""
        # It stops when its input ends, which this process's end does.
        pipes = {"stdin": subprocess.PIPE, "stderr": subprocess.PIPE}
        with (
            subprocess.Popen(command, **pipes, text=True, errors="replace") as child,
            _handing_on_sigterm(child),
        ):
            assert child.stderr is not None
            for line in child.stderr:
                sys.stderr.write(line)
                last = line.strip() or last
    if child.returncode:
        raise RuntimeError(f"{python} ended with {child.returncode}: {last}")


@contextlib.contextmanager
def _handing_on_sigterm(child: subprocess.Popen) -> Iterator[None]:
    """Sends SIGTERM on to a process, which saves a checkpoint before it ends."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda number, _: child.send_signal(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _split(examples: Examples, name: str) -> str:
    return artifact_utils.get_split_uri([examples], name)


def _labels(examples_dir: str) -> str:
    path = os.path.join(examples_dir, record.CLASSES_FILE)
    if not os.path.exists(path):
        return ""
    with open(path) as handle:
        return handle.read()
