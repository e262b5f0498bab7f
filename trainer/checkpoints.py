"""Checkpoints of a run: parameters, optimizer slots, moving averages and the step."""

from pathlib import Path

import tensorflow as tf

from sigline.trainer.steps import TrainState

KEEP = 2


class Checkpoints:
    """Saves and restores training state in one directory.

    A checkpoint becomes visible only when it is whole: TensorFlow writes its data files first and
    replaces the pointer file last.
    """

    def __init__(self, directory: str | Path, state: TrainState):
        """Binds a state of variables to a directory, which is created on the first save."""
        self._state = tf.train.Checkpoint(**state._asdict())
        self._manager = tf.train.CheckpointManager(self._state, str(directory), max_to_keep=KEEP)
        self._step = state.step

    def restore_latest(self) -> int:
        """Restores the newest checkpoint, if there is one, and returns the step it holds.

        Raises:
            AssertionError: If the checkpoint does not hold exactly this state.
        """
        latest = self._manager.latest_checkpoint
        if latest is not None:
            status = self._state.restore(latest)
            status.assert_existing_objects_matched()
            status.assert_consumed()
        return int(self._step.numpy())

    def save(self) -> None:
        """Saves the state under the current step."""
        self._manager.save(checkpoint_number=int(self._step.numpy()))
