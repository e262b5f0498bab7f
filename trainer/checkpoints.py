"""Checkpoints of a run: parameters, optimizer slots, moving averages and the step."""

import re
from pathlib import Path

import tensorflow as tf

from sigline.trainer.steps import TrainState

# Below the run's own: checkpoints that are kept for good.
KEPT_FOLDER = "kept"


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
            # An index error is TensorFlow's word for a file that is too short.
            except (tf.errors.OpError, AssertionError, IndexError) as error:
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


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:300]
