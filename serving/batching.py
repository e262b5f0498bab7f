"""Requests wait in bounded queues and are computed together where that is possible.

Batches form while all threads are busy, and a lone request loses no time. Who has just been
answered often asks again: after a batch of several requests the next one waits for as many, no
longer than the last one took. A request whose deadline has passed, or whose client has gone, is not
computed. What fails together is computed again one by one, so that no request costs another.
"""

import collections
import os
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field

import grpc
import numpy as np

from sigline.serving.failures import RequestFailed

Arrays = dict[str, np.ndarray]
# Longest wait, in seconds, for as many requests as the last batch had.
_LONGEST_PATIENCE = 0.005
# For how long, in seconds, the last batch says how many requests come together.
_RECENT = 0.05
# After a merged batch has failed, how long, in seconds, its signature's requests are not merged:
# who sends what fails has others computed twice once a while, not always.
_APART = 1.0


@dataclass(frozen=True)
class BatchingConfig:
    """How requests are computed together; names are those of TF Serving's batching parameters.

    Attributes:
        max_batch_size: Most rows of a batch; a larger request is a batch of its own.
        batch_timeout_seconds: How long a batch that is not full waits for more.
        max_enqueued_rows: Most rows that wait for one signature; more are refused.
        num_batch_threads: Batches that are computed at a time; half as many as there are cores by
            default, since one takes several.
        merge_images: Whether requests of images are merged too. One that does not decode then has
            those it was merged with computed a second time.
    """

    max_batch_size: int = 64
    batch_timeout_seconds: float = 0.0
    max_enqueued_rows: int = 1024
    num_batch_threads: int = field(default_factory=lambda: max(1, (os.cpu_count() or 1) // 2))
    merge_images: bool = True

    def __post_init__(self) -> None:
        for name in ("max_batch_size", "max_enqueued_rows", "num_batch_threads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1. Received: {getattr(self, name)}")
        if self.batch_timeout_seconds < 0:
            raise ValueError(
                "batch_timeout_seconds must not be negative. "
                f"Received: {self.batch_timeout_seconds}"
            )


@dataclass
class _Task:
    inputs: Arrays
    rows: int
    room: int
    deadline: float | None
    since: float
    future: Future = field(default_factory=Future)


class Batcher:
    """Queues of one loaded model, one for each signature, and the threads that empty them."""

    def __init__(
        self,
        run: Callable[[str, Arrays], Arrays],
        config: BatchingConfig,
        *,
        merged: frozenset[str] = frozenset(),
        observe: Callable[[str, int, float], None] = lambda name, rows, seconds: None,
    ):
        """Starts the threads.

        Args:
            run: Computes a signature: its name and its inputs give its outputs.
            config: The limits.
            merged: Signatures whose requests may be computed together: every input and output has
                a row for each item.
            observe: Is told the signature, the rows of each batch and how long the first waited.
        """
        self._run = run
        self._config = config
        self._merged = merged
        self._observe = observe
        self._queues: dict[str, collections.deque[_Task]] = {}
        self._rows: dict[str, int] = {}
        self._changed = threading.Condition()
        self._closed = False
        self._busy = 0
        # By signature: requests of the last batch, seconds that it took, and when it ended.
        self._last: dict[str, tuple[int, float, float]] = {}
        # Of signatures of which a batch is being collected: requests without which it is not woken.
        self._awaited: dict[str, int] = {}
        # Until when a signature's requests are computed one by one.
        self._apart: dict[str, float] = {}
        self._threads = [
            threading.Thread(target=self._work, name=f"batcher-{i}", daemon=True)
            for i in range(config.num_batch_threads)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, signature: str, inputs: Arrays, *, deadline: float | None = None) -> Future:
        """Returns the future of a request's outputs.

        If nothing waits, and fewer batches are being computed than may be, the calling thread
        computes it itself: to hand it over and back would cost as much as embedding a short text.

        Args:
            signature: Its signature.
            inputs: Arrays by name; of a merged signature all of as many rows.
            deadline: Time of `time.monotonic` after which it need not be computed.

        Raises:
            RequestFailed: RESOURCE_EXHAUSTED if too much is waiting, UNAVAILABLE after `close`.
        """
        rows = max((len(value) for value in inputs.values() if value.ndim), default=1)
        # What has no rows takes room too.
        task = _Task(inputs, rows, max(rows, 1), deadline, time.monotonic())
        with self._changed:
            if self._closed:
                raise RequestFailed(grpc.StatusCode.UNAVAILABLE, "The model is being unloaded")
            idle = not self._queues and self._busy < self._config.num_batch_threads
            alone = self._expected(signature)[0] == 1
            at_once = idle and alone and not self._config.batch_timeout_seconds
            waiting = self._rows.get(signature, 0)
            if waiting and waiting + task.room > self._config.max_enqueued_rows:
                raise RequestFailed(
                    grpc.StatusCode.RESOURCE_EXHAUSTED,
                    f"The queue of {signature} is full: {waiting} rows are waiting, of at most "
                    f"{self._config.max_enqueued_rows}",
                )
            if at_once:
                self._busy += 1
            else:
                self._queues.setdefault(signature, collections.deque()).append(task)
                self._rows[signature] = waiting + task.room
                self._wake(signature)
        if at_once:
            self._finish(signature, [task] if _begin(task) else [])
        return task.future

    def _wake(self, signature: str) -> None:
        """Wakes the threads for a request, unless a batch waits for more of its kind."""
        awaited = self._awaited.get(signature, 1) - 1
        if signature in self._awaited:
            self._awaited[signature] = awaited
        if awaited <= 0 or self._rows[signature] >= self._config.max_batch_size:
            self._changed.notify_all()

    def waiting(self) -> Mapping[str, int]:
        """Returns how many rows wait, by signature."""
        with self._changed:
            return dict(self._rows)

    def close(self) -> None:
        """Lets the threads finish what is queued, then ends them."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()
        with self._changed:
            self._changed.wait_for(lambda: not self._busy)

    def _work(self) -> None:
        while (taken := self._take()) is not None:
            self._finish(*taken)

    def _finish(self, signature: str, tasks: list[_Task]) -> None:
        """Computes a batch, and lets another one begin."""
        begin = time.monotonic()
        if tasks:
            self._compute(signature, tasks)
        with self._changed:
            if tasks:
                end = time.monotonic()
                self._last[signature] = len(tasks), end - begin, end
            self._busy -= 1
            self._changed.notify_all()

    def _take(self) -> tuple[str, list[_Task]] | None:
        """Returns the next batch, of the signature that has waited longest for its turn."""
        with self._changed:
            while (signature := self._next()) is None:
                if self._closed and not self._queues:
                    return None
                self._changed.wait()
            self._busy += 1
            tasks = [task] if (task := self._pop(signature)) else []
            apart = time.monotonic() < self._apart.get(signature, 0.0)
            if signature in self._merged and tasks and not apart:
                self._fill(signature, tasks)
            # To the end of the row, so that no signature keeps another waiting.
            queue = self._queues.pop(signature, None)
            if queue:
                self._queues[signature] = queue
                self._changed.notify_all()
            return signature, tasks

    def _next(self) -> str | None:
        """Returns a signature whose requests can be taken, since no thread is collecting them."""
        if self._busy >= self._config.num_batch_threads:
            return None
        return next((name for name in self._queues if name not in self._awaited), None)

    def _fill(self, signature: str, tasks: list[_Task]) -> None:
        """Adds to a batch of one what may be computed with it."""
        room = self._config.max_batch_size - tasks[0].room
        self._awaited[signature] = 0
        self._wait_for_more(signature, room, tasks[0].deadline)
        del self._awaited[signature]
        while room > 0 and (queue := self._queues.get(signature)):
            if queue[0].room > room:
                return
            if task := self._pop(signature):
                tasks.append(task)
                room -= task.room

    def _wait_for_more(self, signature: str, room: int, deadline: float | None) -> None:
        """Waits until so many rows are queued, as many requests as last time, or for too long."""
        timeout = self._config.batch_timeout_seconds
        expected, seconds = self._expected(signature)
        begin = time.monotonic()
        while not self._closed and self._rows.get(signature, 0) < room:
            missing = expected - 1 - len(self._queues.get(signature, ()))
            # Those of other signatures do not wait for it.
            is_patient = missing > 0 and not self._queues.keys() - {signature}
            patience = max(timeout, min(seconds, _LONGEST_PATIENCE)) if is_patient else timeout
            left = begin + patience - time.monotonic()
            if deadline is not None:
                # What is computed late is of no use.
                left = min(left, deadline - seconds - time.monotonic())
            if left <= 0:
                break
            # To be woken by each request would cost as much as to compute it.
            self._awaited[signature] = 1 if timeout else missing
            self._changed.wait(left)

    def _expected(self, signature: str) -> tuple[int, float]:
        """Returns how many requests the last batch had and the seconds it took, if it is recent."""
        requests, seconds, end = self._last.get(signature, (1, 0.0, 0.0))
        return (requests, seconds) if time.monotonic() < end + _RECENT else (1, 0.0)

    def _pop(self, signature: str) -> _Task | None:
        """Takes the first task of a queue; None if it need not be computed any more."""
        queue = self._queues[signature]
        task = queue.popleft()
        self._rows[signature] -= task.room
        if not queue:
            del self._queues[signature]
        return task if _begin(task) else None

    def _compute(self, signature: str, tasks: list[_Task]) -> None:
        rows = sum(task.rows for task in tasks)
        self._observe(signature, rows, time.monotonic() - tasks[0].since)
        try:
            if len(tasks) == 1:
                tasks[0].future.set_result(self._run(signature, tasks[0].inputs))
                return
            merged = {
                name: np.concatenate([task.inputs[name] for task in tasks])
                for name in tasks[0].inputs
            }
            outputs = self._run(signature, merged)
            if any(len(value) != rows for value in outputs.values()):
                raise ValueError(f"{signature} does not answer each row by a row")
        except Exception as error:  # Whatever it is, it is the answer to who waits for it.
            if len(tasks) == 1:
                tasks[0].future.set_exception(error)
                return
            with self._changed:
                self._apart[signature] = time.monotonic() + _APART
            for task in tasks:
                self._compute(signature, [task])
            return
        start = 0
        for task in tasks:
            rows = slice(start, start + task.rows)
            task.future.set_result({name: value[rows] for name, value in outputs.items()})
            start += task.rows


def _begin(task: _Task) -> bool:
    """Returns whether a task is to be computed: its client waits, and its deadline is to come."""
    if not task.future.set_running_or_notify_cancel():
        return False
    if task.deadline is not None and time.monotonic() >= task.deadline:
        task.future.set_exception(
            RequestFailed(
                grpc.StatusCode.DEADLINE_EXCEEDED, "The deadline passed before its turn came"
            )
        )
        return False
    return True
