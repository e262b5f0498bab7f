"""The batches of a run, one for each step, over damaged records too."""

from collections.abc import Callable, Iterator
from typing import Any

import tensorflow as tf

from sigline.trainer import data
from sigline.trainer.damage import Repairs

# A wrong checksum or a broken stream; a shard that is shorter than the manifest says.
_OF_DAMAGE = (tf.errors.DataLossError, tf.errors.FailedPreconditionError)


class Feed:
    """Gives the batch of the next step.

    Where data is damaged and may be, the shards are repaired and reading starts again at the step
    that failed: what was read before is not read again, and nothing is left out.
    """

    def __init__(
        self,
        folders: data.Folders,
        repairs: Repairs,
        read: Callable[[int], Iterator[Any]],
        *,
        first_step: int,
    ):
        """Starts to read.

        Args:
            folders: Folders of the splits.
            repairs: Copies of damaged shards, and how many records may be damaged.
            read: Returns the batches from a step on.
            first_step: Steps done so far.
        """
        self._folders, self._repairs, self._read = folders, repairs, read
        self._step = first_step
        self._batches: Iterator[Any] | None = None

    def __next__(self) -> Any:
        """Returns a batch.

        Raises:
            RuntimeError: If data cannot be read; the message names what is damaged.
        """
        while True:
            try:
                if self._batches is None:
                    self._batches = self._read(self._step)
                batch = next(self._batches)
            except tf.errors.OpError as error:
                self._batches = None
                # Of other errors, such as a picture that does not decode, no shard is the cause.
                damaged = isinstance(error, _OF_DAMAGE)
                if not damaged or not self._repairs.mend():
                    raise data.unreadable(self._folders, error) from error
                continue
            self._step += 1
            return batch
