"""Checkpoints of a run: parameters, optimizer slots and the step."""

from pathlib import Path

import tensorflow as tf

from sigline.trainer.optimizers import Moments
from sigline.trainer.two_tower import TwoTower, named_parameters

KEEP = 2


def named_variables(model: TwoTower) -> dict[str, tf.Variable]:
    """Returns the model's raw variables by the names of `two_tower.named_parameters`."""
    return {name: item.value for name, item in named_parameters(model).items()}


class Checkpoints:
    """Saves and restores training state in one directory.

    A checkpoint becomes visible only when it is whole: TensorFlow writes its data files first and
    replaces the pointer file last.
    """

    def __init__(self, directory: str | Path, model: TwoTower, moments: Moments, step: tf.Variable):
        """Binds the state to a directory, which is created on the first save."""
        state = tf.train.Checkpoint(
            parameters=named_variables(model),
            first=moments.first,
            second=moments.second,
            step=step,
        )
        self._state = state
        self._manager = tf.train.CheckpointManager(state, str(directory), max_to_keep=KEEP)
        self._step = step

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
