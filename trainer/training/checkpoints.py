"""Checkpoints of a run: parameters, optimizer slots, moving averages and the step."""

import dataclasses
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import tensorflow as tf

from sigline.schemas import atomic, full_disk
from sigline.trainer.training.state import TrainState
from sigline.trainer.weights import weight_folders
from sigline.trainer.weights.model_weights import Weights

# Below the run's own: checkpoints that are kept for good, and what they all belong to.
KEPT_FOLDER = "kept"
DESCRIPTION_FOLDER = "description"
# How TensorFlow names the variables of a state's dictionaries, and what it makes of a name there.
_SAVED = re.compile(r"(parameters|ema)/(.*)/\.ATTRIBUTES/VARIABLE_VALUE")
_ESCAPED = {".S": "/", "..": "."}
# TensorFlow's pointer to the newest checkpoint: the name of the file, and its line with the path.
_POINTER = "checkpoint"
_POINTED = re.compile(r'^model_checkpoint_path: "([^"]+)"$', re.MULTILINE)


class Checkpoints:
    """Saves and restores training state in one directory.

    A checkpoint counts once the pointer names it, the file `checkpoint`. Its files and their folder
    are flushed to the disk before the pointer is replaced, so that a cut of the power leaves the
    checkpoint before or this one.
    """

    def __init__(
        self,
        directory: str | Path,
        state: TrainState,
        *,
        keep: int = 2,
        keep_every_steps: int | None = None,
    ):
        """Binds a state of variables to a directory, which is created on the first save.

        Args:
            directory: Where the checkpoints go.
            state: Variables.
            keep: How many of the newest to keep.
            keep_every_steps: Those at multiples of this are kept for good, in the folder `kept`.
        """
        # Leave `extras` out where no objective has any: checkpoints of earlier versions lack them.
        held = {name: value for name, value in state._asdict().items() if name != "extras" or value}
        self._state = tf.train.Checkpoint(**held)
        # Checkpoints of earlier versions hold the counter, so all do.
        _ = self._state.save_counter
        self._directory = Path(directory)
        self._step = state.step
        self._keep = keep
        self._keep_every_steps = keep_every_steps
        self._newest: int | None = None

    def restore_latest(self) -> int:
        """Restores the newest whole checkpoint, if there is one, and returns the step it holds.

        The newest is what the pointer names. If that is damaged, the one before it is taken, and if
        the pointer is missing or empty, the newest that is whole. Both are reported on
        standard error.

        Raises:
            RuntimeError: If the newest is of another model, or all are damaged.
        """
        pointer = self._directory / _POINTER
        named, is_there = _named(pointer), pointer.exists()
        candidates = _steps(self._directory)
        if named is not None:
            older = [item for item in candidates if item[0] <= named[0] and item != named]
            candidates = [named, *older]
        damaged = []
        for step, path in candidates:
            reason = self._restore(path)
            if reason is None:
                self._newest = step
                if damaged:
                    _say(f"{'; '.join(damaged)}. The run goes on from {path}, of step {step}.")
                elif named is None:
                    _say(
                        f"{pointer} is {'empty or damaged' if is_there else 'missing'}. The run "
                        f"goes on from the newest whole checkpoint, {path}, of step {step}."
                    )
                return int(self._step.numpy())
            damaged.append(f"The checkpoint {path} is damaged: {reason}")
        # A power cut during a run's first checkpoint leaves files that no pointer names yet.
        is_unnamed = not is_there and len({step for step, _ in candidates}) == 1
        if damaged and not is_unnamed:
            raise RuntimeError(
                f"{'; '.join(damaged)}. No checkpoint of the run is whole. To start it again from "
                f"step 0, move the folder away. Received: directory={self._directory}"
            )
        if damaged:
            _say(f"{damaged[0]}. It was the first and was not finished. The run starts at step 0.")
        return int(self._step.numpy())

    def _restore(self, path: Path) -> str | None:
        """Restores a checkpoint and returns None, or why it is damaged."""
        try:
            status = self._state.restore(str(path))
            status.assert_existing_objects_matched()
            status.assert_consumed()
        # TensorFlow raises an IndexError for a file that is too short.
        except (tf.errors.OpError, IndexError) as error:
            return _first_line(error)
        # TensorFlow raises a ValueError for another shape, such as that of Adafactor's slots in
        # checkpoints from before they followed the heads.
        except (AssertionError, ValueError) as error:
            raise RuntimeError(
                f"The checkpoint {path} is of another model. Received: {_first_line(error)}"
            ) from error
        return None

    def save(self) -> None:
        """Saves the state under the current step, once.

        Raises:
            RuntimeError: If it cannot be written; the checkpoints before are as they were.
        """
        step = int(self._step.numpy())
        if step == self._newest:
            return
        try:
            with atomic.named(self._directory):
                # Write the copy to keep first, so that an interruption cannot leave it out.
                if self._keep_every_steps is not None and step % self._keep_every_steps == 0:
                    self._write(self._directory / KEPT_FOLDER / f"step-{step}")
                path = self._write(self._directory / f"ckpt-{step}")
                named = f'model_checkpoint_path: "{path.name}"\n'
                atomic.write_file(self._directory / _POINTER, named)
        except (tf.errors.OpError, OSError) as error:
            received = f"Received: directory={self._directory}: {_first_line(error)}"
            raise RuntimeError(
                f"The checkpoint of step {step} could not be written. Those before it are whole. "
                f"{full_disk.sentence(error) or received}"
            ) from error
        self._newest = step
        self._delete_old()

    def _write(self, path: Path) -> Path:
        """Writes a checkpoint and flushes it to the disk; one that fails leaves nothing."""
        before = _files(path)
        try:
            atomic.make_folder(path.parent)
            self._state.write(str(path))
            for file in _files(path):
                atomic.flush_file(file)
            atomic.flush_folder(path.parent)
        except BaseException:
            for file in set(_files(path)) - set(before):
                file.unlink()
            shutil.rmtree(f"{path}_temp", ignore_errors=True)
            raise
        return path

    def _delete_old(self) -> None:
        assert self._newest is not None
        own = [item for item in _steps(self._directory) if item[1].parent == self._directory]
        for _, path in [item for item in own if item[0] <= self._newest][self._keep :]:
            for file in _files(path):
                file.unlink(missing_ok=True)


def _files(path: Path) -> list[Path]:
    """Returns the files of a checkpoint, the index first: without it there is none."""
    data = path.parent.glob(f"{path.name}.data-*")
    return [item for item in (path.with_name(f"{path.name}.index"), *data) if item.exists()]


def _named(pointer: Path) -> tuple[int, Path] | None:
    """Returns the step and the path of the checkpoint that a pointer names, None if it does not."""
    try:
        match = _POINTED.search(pointer.read_text())
    except (OSError, UnicodeDecodeError):
        return None
    if match is None:
        return None
    path = pointer.parent / match[1]
    step = path.name.rpartition("-")[2]
    return (int(step), path) if step.isdigit() else None


def _steps(directory: Path) -> list[tuple[int, Path]]:
    """Returns the steps and paths of a run's checkpoints, the newest first."""
    paths = [*directory.glob("ckpt-*.index"), *(directory / KEPT_FOLDER).glob("step-*.index")]
    steps = [(path.stem.rpartition("-")[2], path.with_suffix("")) for path in paths]
    numbered = [(int(step), path) for step, path in steps if step.isdigit()]
    return sorted(numbered, key=lambda item: item[0], reverse=True)


def _say(text: str) -> None:
    print(f"sigline: {text}", file=sys.stderr)


def describe(directory: str | Path, description: Weights) -> Weights:
    """Writes beside checkpoints what they belong to, once, and returns what is written there.

    Args:
        directory: Of the checkpoints.
        description: All but the parameters.
    """
    folder = Path(directory) / DESCRIPTION_FOLDER
    if not folder.exists():
        weight_folders.save_description(folder, description)
    return weight_folders.load_description(folder)


def find(directory: str | Path) -> dict[int, Path]:
    """Returns the paths of a run's checkpoints by step, in order; those kept for good too."""
    return dict(reversed(_steps(Path(directory))))


def read(path: str | Path) -> Weights:
    """Reads the parameters of a checkpoint: their moving averages, if the run keeps them.

    Args:
        path: Of the checkpoint, without the endings of its files.

    Raises:
        ValueError: If the checkpoint is damaged, or nothing tells what it belongs to.
    """
    path = Path(path)
    folder = path.parent.parent if path.parent.name == KEPT_FOLDER else path.parent
    if not (folder / DESCRIPTION_FOLDER).is_dir():
        raise ValueError(
            f"{folder} must have a folder {DESCRIPTION_FOLDER} with the run's configuration, which "
            "the run writes at its start; let it go on for a step."
        )
    values: dict[str, dict[str, np.ndarray]] = {"parameters": {}, "ema": {}}
    try:
        reader = tf.train.load_checkpoint(str(path))
        for key in reader.get_variable_to_shape_map():
            if match := _SAVED.fullmatch(key):
                name = re.sub(r"\.[S.]", lambda escaped: _ESCAPED[escaped[0]], match[2])
                values[match[1]][name] = np.asarray(reader.get_tensor(key))
    except (tf.errors.OpError, IndexError) as error:
        raise ValueError(f"The checkpoint {path} is damaged: {_first_line(error)}") from error
    parameters = dict(sorted((values["parameters"] | values["ema"]).items()))
    return dataclasses.replace(
        weight_folders.load_description(folder / DESCRIPTION_FOLDER), parameters=parameters
    )


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:300]
