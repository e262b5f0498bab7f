"""Queued requests, and batches of them."""

import time
from collections.abc import Collection
from concurrent.futures import Future
from dataclasses import dataclass, field

import grpc
import numpy as np

from sigline.serving.server.failures import RequestFailed

Arrays = dict[str, np.ndarray]


@dataclass(eq=False)  # Comparing arrays gives arrays, which have no truth value.
class Task:
    """A queued request.

    Attributes:
        inputs: Arrays by name.
        rows: Rows of its inputs and of its outputs.
        queue_rows: Rows that it counts for in limits, at least 1.
        deadline: Time of `time.monotonic` after which it need not be computed.
        since: Time at which it arrived.
        future: Its outputs.
    """

    inputs: Arrays
    rows: int
    queue_rows: int
    deadline: float | None
    since: float
    future: Future = field(default_factory=Future)

    def begin(self) -> bool:
        """Marks it as running; returns False if its client left or its deadline has passed."""
        if not self.future.set_running_or_notify_cancel():
            return False
        if self.deadline is not None and time.monotonic() >= self.deadline:
            self.future.set_exception(
                RequestFailed(
                    grpc.StatusCode.DEADLINE_EXCEEDED,
                    "The deadline passed while the request was queued",
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
        """Rows that its requests count for in limits."""
        return total_queue_rows(self.tasks)


def total_queue_rows(tasks: Collection[Task]) -> int:
    """Returns the rows that requests count for in limits, all together."""
    return sum([task.queue_rows for task in tasks])
