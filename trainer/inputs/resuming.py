"""The batches of a run, one for each step, over damaged records too."""

from collections.abc import Callable, Iterator
from typing import Any

import tensorflow as tf

from sigline.trainer.inputs import shards
from sigline.trainer.inputs.repairs import Repairs

# A wrong checksum or a broken stream; a shard that is shorter than the manifest says.
_OF_DAMAGE = (tf.errors.DataLossError, tf.errors.FailedPreconditionError)
# A picture that does not decode or is too large, no caption, no record at all.
_OF_RECORDS = (tf.errors.InvalidArgumentError,)


class Feed:
    """Gives the batch of the next step.

    Where data is damaged and may be, the shards are repaired and reading starts again at the step
    that failed: what was read before is not read again, and nothing is left out. A record that
    cannot be used, such as one whose picture does not decode, is damaged too.
    """

    def __init__(
        self,
        folders: shards.Folders,
        repairs: Repairs,
        read: Callable[[int], Iterator[Any]],
        *,
        first_step: int,
        unusable: Callable[[int], list[str]] | None = None,
    ):
        """Starts to read.

        Args:
            folders: Folders of the splits.
            repairs: Copies of damaged shards, and how many records may be damaged.
            read: Returns the batches from a step on.
            first_step: Steps done so far.
            unusable: Returns a line for every record of a step that cannot be used, the first
                step being 1.
        """
        self._folders, self._repairs, self._read = folders, repairs, read
        self._step, self._unusable = first_step, unusable
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
                unusable = isinstance(error, _OF_RECORDS)
                damaged = unusable or isinstance(error, _OF_DAMAGE)
                if not damaged or not self._repairs.mend(use=unusable):
                    lines = self._unusable(self._step + 1) if unusable and self._unusable else []
                    raise shards.unreadable(self._folders, error, lines) from error
                continue
            self._step += 1
            return batch
