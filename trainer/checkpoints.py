"""Checkpoints of a run: parameters, optimizer slots, moving averages and the step."""

import dataclasses
import re
from pathlib import Path

import numpy as np
import tensorflow as tf

from sigline.trainer.steps import TrainState
from sigline.trainer.weights import checkpoint
from sigline.trainer.weights.checkpoint import Weights

# Below the run's own: checkpoints that are kept for good, and what they all belong to.
KEPT_FOLDER = "kept"
DESCRIPTION_FOLDER = "description"
# How TensorFlow names the variables of a state's dictionaries, and what it makes of a name there.
_SAVED = re.compile(r"(parameters|ema)/(.*)/\.ATTRIBUTES/VARIABLE_VALUE")
_ESCAPED = {".S": "/", "..": "."}


class Checkpoints:
    """Saves and restores training state in one directory.

    A checkpoint becomes visible only when it is whole: TensorFlow writes its data files first and
    replaces the pointer file last.
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
        self._state = tf.train.Checkpoint(**state._asdict())
        self._manager = tf.train.CheckpointManager(self._state, str(directory), max_to_keep=keep)
        self._step = state.step
        self._keep_every_steps = keep_every_steps

    def restore_latest(self) -> int:
        """Restores the newest checkpoint, if there is one, and returns the step it holds.

        Raises:
            RuntimeError: If the checkpoint is damaged or does not hold exactly this state.
        """
        latest = self._manager.latest_checkpoint
        if latest is not None:
            try:
                status = self._state.restore(latest)
                status.assert_existing_objects_matched()
                status.assert_consumed()
            # An index error is TensorFlow's word for a file that is too short, a value error that
            # for another shape, such as of Adafactor's slots from before they followed the heads.
            except (tf.errors.OpError, AssertionError, IndexError, ValueError) as error:
                raise RuntimeError(
                    f"The checkpoint {latest} is damaged or of another model. To go on from the "
                    "one before it, name that in the file `checkpoint` beside it. Received: "
                    f"{_first_line(error)}"
                ) from error
        return int(self._step.numpy())

    def save(self) -> None:
        """Saves the state under the current step, once.

        Raises:
            RuntimeError: If it cannot be written; the checkpoints before are as they were.
        """
        step = int(self._step.numpy())
        latest = self._manager.latest_checkpoint
        if latest is not None and re.fullmatch(rf".*-{step}", latest):
            return
        try:
            # First, so that no interruption leaves it out.
            if self._keep_every_steps is not None and step % self._keep_every_steps == 0:
                self._state.write(str(Path(self._manager.directory, KEPT_FOLDER, f"step-{step}")))
            self._manager.save(checkpoint_number=step)
        except (tf.errors.OpError, OSError) as error:
            raise RuntimeError(
                f"The checkpoint of step {step} could not be written. Those before it are whole; "
                f"make room and run the same command again. Received: "
                f"directory={self._manager.directory}: {_first_line(error)}"
            ) from error


def describe(directory: str | Path, description: Weights) -> Weights:
    """Writes beside checkpoints what they belong to, once, and returns what is written there.

    Args:
        directory: Of the checkpoints.
        description: All but the parameters.
    """
    folder = Path(directory) / DESCRIPTION_FOLDER
    if not folder.exists():
        checkpoint.save_description(folder, description)
    return checkpoint.load_description(folder)


def find(directory: str | Path) -> dict[int, Path]:
    """Returns the paths of a run's checkpoints by step, in order; those kept for good too."""
    folder, found = Path(directory), {}
    for path in [*folder.glob("*-*.index"), *(folder / KEPT_FOLDER).glob("*-*.index")]:
        step = path.stem.rpartition("-")[2]
        if step.isdigit():
            found[int(step)] = path.with_suffix("")
    return dict(sorted(found.items()))


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
    found: dict[str, dict[str, np.ndarray]] = {"parameters": {}, "ema": {}}
    try:
        reader = tf.train.load_checkpoint(str(path))
        for key in reader.get_variable_to_shape_map():
            if match := _SAVED.fullmatch(key):
                name = re.sub(r"\.[S.]", lambda escaped: _ESCAPED[escaped[0]], match[2])
                found[match[1]][name] = np.asarray(reader.get_tensor(key))
    except (tf.errors.OpError, IndexError) as error:
        raise ValueError(f"The checkpoint {path} is damaged: {_first_line(error)}") from error
    parameters = dict(sorted((found["parameters"] | found["ema"]).items()))
    return dataclasses.replace(
        checkpoint.load_description(folder / DESCRIPTION_FOLDER), parameters=parameters
    )


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:300]
