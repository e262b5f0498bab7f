"""The pipeline's training as a task in a file, for an interpreter of its own.

TFX and `tensorflow-tpu` do not install together: on a TPU the pipeline's trainer runs this module,
`python -m sigline.trainer.run_file FILE`, in an environment that has the trainer alone.
"""

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO, cast

import sigline.quiet
from sigline.schemas import artifacts, atomic, full_disk, progress, strict, versions
from sigline.schemas.labels import LabelSet

# Prefix of the trained model's folder among a run's checkpoints.
_MODEL = "model"


@dataclass(frozen=True)
class Task:
    """What is to be trained from what, and where results go.

    Attributes:
        config: The `TrainConfig`, as JSON.
        folders: Folders with the training shards; several are mixed.
        vocabulary: File of the SentencePiece model; empty for a model of images alone.
        weights: Folder of weights that training starts from; empty for none.
        teachers: Folders of the teachers' weights by name.
        labels: The label set as JSON; empty for none.
        code_digest: Of the code that trains.
        checkpoint_root: Folder of all runs' checkpoints.
        model_dir: Where the SavedModel goes.
        run_dir: Where logs and figures go.
        parity_split: Folder of records whose embeddings are left for later checks; empty for none.
    """

    config: str
    folders: tuple[str, ...]
    vocabulary: str
    checkpoint_root: str
    model_dir: str
    run_dir: str
    code_digest: str
    weights: str = ""
    teachers: Mapping[str, str] = field(default_factory=dict)
    labels: str = ""
    parity_split: str = ""

    def to_json(self) -> str:
        """Returns the task as JSON text."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True)


def run(task: Task) -> None:
    """Trains and exports.

    A killed task starts again with other folders for its results, so checkpoints live below
    `checkpoint_root` in a folder that configuration, data, vocabulary and code name: the same run
    finds its own checkpoints, and no other run's, also if it is to go on for more steps. A run that
    is done already gives the very files that it gave first, by which publishers know it again:
    TensorFlow writes the same model in other bytes each time.

    Raises:
        ValueError: As `trainer.training.loop.train`.
    """
    import tensorflow as tf

    from sigline.trainer import config as trainer_config
    from sigline.trainer.export import parity
    from sigline.trainer.run import Job
    from sigline.trainer.weights import weight_folders

    config = trainer_config.from_json(task.config)
    job = Job(
        config=config,
        folders=list(task.folders) if len(task.folders) != 1 else next(iter(task.folders)),
        vocabulary=Path(task.vocabulary).read_bytes() if task.vocabulary else None,
        code_digest=task.code_digest,
        weights=weight_folders.load(task.weights) if task.weights else None,
        teachers={name: weight_folders.load(path) for name, path in task.teachers.items()},
        labels=LabelSet.from_json(task.labels) if task.labels else None,
    )
    work_dir = _work_dir(os.path.join(task.checkpoint_root, job.key), config.steps)
    with _alone(work_dir):
        result, metadata = job.run(work_dir, task.model_dir)
        _keep_first(Path(work_dir) / f"{_MODEL}-{config.steps}", Path(task.model_dir))
    shutil.copytree(os.path.join(work_dir, "logs"), task.run_dir, dirs_exist_ok=True)
    if task.parity_split:
        # Turn off the TensorFloat-32 of GPUs, which a serving machine does not have.
        tf.config.experimental.enable_tensor_float_32_execution(False)
        path = os.path.join(task.run_dir, artifacts.PARITY_FILE)
        progress.note("embedding records for the infra check")
        parity.write(path, result.model, config, job.vocabulary, task.parity_split)
    training = {
        "steps": config.steps,
        "first_step": result.first_step,
        "global_batch_size": config.global_batch_size,
        "images_per_second": result.images_per_second,
        "data_wait_fraction": result.data_wait_fraction,
        "final_loss": result.final_loss,
        "checkpoint_dir": work_dir,
        "model": metadata,
    }
    content = json.dumps(training, indent=1, sort_keys=True)
    atomic.write_file(os.path.join(task.run_dir, artifacts.TRAINING_FILE), content)


def _work_dir(run_dir: str, steps: int) -> str:
    """Returns the folder of a run; one of its own for fewer steps than were trained before."""
    from sigline.trainer.training import checkpoints

    is_beyond = any(step > steps for step in checkpoints.find(os.path.join(run_dir, "checkpoints")))
    return f"{run_dir}-{steps}" if is_beyond else run_dir


@contextlib.contextmanager
def _alone(work_dir: str) -> Iterator[None]:
    """Keeps a second run of the same from writing the same checkpoints."""
    os.makedirs(work_dir, exist_ok=True)
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(atomic.locked(os.path.join(work_dir, ".lock"), wait=False))
        except BlockingIOError:
            raise ValueError(
                "Another process is training the same; wait for it, or end it. "
                f"Received: checkpoints={work_dir}"
            ) from None
        yield


def _keep_first(kept: Path, model_dir: Path) -> None:
    """Keeps the model of a run, or puts the one that was kept in the place of its like."""
    if kept.is_dir():
        shutil.rmtree(model_dir)
        shutil.copytree(kept, model_dir, copy_function=versions.link_or_copy)
        return
    with atomic.new_folder(kept) as scratch:
        shutil.copytree(model_dir, scratch, copy_function=versions.link_or_copy, dirs_exist_ok=True)


def main(argv: Sequence[str]) -> int:
    """Runs the task of a file; its last line on standard error says why it failed.

    It stops, with a checkpoint, when standard input ends: whoever started it has gone.
    """
    # A write after the reader's end must not keep the checkpoint from being saved.
    sys.stderr = cast(TextIO, _Unbroken(sys.stderr))
    try:
        with progress.shown():
            sigline.quiet.import_tensorflow()
            threading.Thread(target=_stop_at_the_end_of_input, daemon=True).start()
            run(strict.build(Task, json.loads(Path(argv[0]).read_text())))
    except Exception as error:  # The border to the process that started it.
        traceback.print_exc()
        reason = full_disk.sentence(error) or str(error)
        print(" ".join(reason.split()) or type(error).__name__, file=sys.stderr)
        return 1
    return 0


class _Unbroken:
    """A stream that goes on when whoever read it has gone."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def write(self, text: str) -> int:
        with contextlib.suppress(BrokenPipeError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(BrokenPipeError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _stop_at_the_end_of_input() -> None:
    sys.stdin.buffer.read()
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    # The thread that waits for the end of input does not end by itself.
    os._exit(code)
