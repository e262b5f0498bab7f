"""Requests that wait, and batches of them."""

import time
from collections.abc import Collection
from concurrent.futures import Future
from dataclasses import dataclass, field

import grpc
import numpy as np

from sigline.serving.server.failures import RequestFailed

Arrays = dict[str, np.ndarray]


@dataclass(eq=False)  # Arrays have no truth value.
class Task:
    """One request.

    Attributes:
        inputs: Arrays by name.
        rows: Rows of its inputs and of its outputs.
        room: Rows that it counts for; what has none takes room too.
        deadline: Time of `time.monotonic` after which it need not be computed.
        since: Time at which it came.
        future: Its outputs.
    """

    inputs: Arrays
    rows: int
    room: int
    deadline: float | None
    since: float
    future: Future = field(default_factory=Future)

    def begin(self) -> bool:
        """Returns whether it is to be computed: its client waits, its deadline is to come."""
        if not self.future.set_running_or_notify_cancel():
            return False
        if self.deadline is not None and time.monotonic() >= self.deadline:
            self.future.set_exception(
                RequestFailed(
                    grpc.StatusCode.DEADLINE_EXCEEDED, "The deadline passed before its turn came"
                )
            )
            return False
        return True


@dataclass(eq=False)
class Batch:
    """Requests that are computed together, or are being collected for it."""

    signature: str
    is_long: bool
    tasks: list[Task] = field(default_factory=list)

    @property
    def rows(self) -> int:
        """Rows that its requests count for."""
        return room(self.tasks)


def room(tasks: Collection[Task]) -> int:
    """Returns the rows that requests count for."""
    return sum([task.room for task in tasks])
