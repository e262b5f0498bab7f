"""Requests wait in bounded queues and are computed together where that is possible.

Batches form while all threads are busy, and a lone request loses no time. Who has just been
answered often asks again: after a batch of several requests the next one waits for as many, no
longer than the last one took. Of many quick requests a batch has half, so that one half is computed
while the other is answered and comes back. Of batches that take long more are computed at a time,
and share what there is: one alone leaves cores idle between its operations. A request whose
deadline has passed, or whose client has gone, is not computed. What fails together is computed
again one by one, so that no request costs another.
"""

import collections
import threading
import time
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field

import grpc
import numpy as np

from sigline.serving.server import cores
from sigline.serving.server.batches import Arrays, Batch, Task, room
from sigline.serving.server.failures import RequestFailed
from sigline.serving.server.peaks import Peak

# Longest wait, in seconds, for as many requests as are expected.
_LONGEST_PATIENCE = 0.005
# For how long, in seconds, it counts how many requests came together.
_RECENT = 0.05
# Quick requests that are halved: a batch of half of fewer takes almost as long as one of all.
_MANY = 8
# Seconds from which a batch takes long: of shorter ones Python's share is too large for that others
# are computed meanwhile.
_LONG = 0.005
# Into how many batches that take long what waits is divided at most: a few fill the cores that one
# leaves idle, and many small ones would read the weights as many times.
_MOST_SHARES = 4
# After a merged batch has failed, how long, in seconds, its signature's requests are not merged:
# who sends what fails has others computed twice once a while, not always.
_APART = 1.0


@dataclass(frozen=True)
class BatchingConfig:
    """How requests are computed together; names are those of TF Serving's batching parameters.

    Attributes:
        max_batch_size: Most rows of a batch; a larger request is a batch of its own.
        batch_timeout_seconds: How long a batch's first request waits for more, unless it is full.
        max_enqueued_rows: Most rows that wait for one signature; more are refused.
        num_batch_threads: Most batches that are computed at a time, by default as many as the
            process may use cores. At most half as many are computed of those that take less than
            5 ms, since receiving and answering takes cores too.
        merge_images: Whether requests of images are merged too. One that does not decode then has
            those it was merged with computed a second time.
    """

    max_batch_size: int = 64
    batch_timeout_seconds: float = 0.0
    max_enqueued_rows: int = 1024
    num_batch_threads: int = field(default_factory=cores.count)
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


class Batcher:
    """Queues of one loaded model, one for each signature, and the threads that empty them."""

    def __init__(
        self,
        run: Callable[[str, Arrays], Arrays],
        config: BatchingConfig,
        *,
        merged: frozenset[str] = frozenset(),
        observe: Callable[[str, int, float], None] = lambda name, rows, seconds: None,
        clock: Callable[[], float] = time.monotonic,
    ):
        """Starts the threads.

        Args:
            run: Computes a signature: its name and its inputs give its outputs.
            config: The limits.
            merged: Signatures whose requests may be computed together: every input and output has
                a row for each item.
            observe: Is told the signature, the rows of each batch and how long the first waited.
            clock: Returns the time, in seconds.
        """
        self._run = run
        self._clock = clock
        self._config = config
        self._merged = merged
        self._observe = observe
        self._queues: dict[str, collections.deque[Task]] = {}
        self._rows: dict[str, int] = {}
        self._lock = threading.Lock()
        # Threads without work wait for `_ready`, those that collect a batch for `_arrived`: to wake
        # one in vain would cost as much as to compute a short text.
        self._ready = threading.Condition(self._lock)
        self._arrived = threading.Condition(self._lock)
        self._closed = False
        self._running: list[Batch] = []
        # By signature: requests to expect, seconds that the last batch took, and when it ended.
        self._last: dict[str, tuple[int, float, float]] = {}
        # By signature: the most requests at a time, waiting or computed, of late.
        self._peaks: dict[str, Peak] = collections.defaultdict(lambda: Peak(_RECENT))
        # Of signatures of which a batch is being collected: how many more requests wake its thread.
        self._awaited: dict[str, int] = {}
        # Until when a signature's requests are computed one by one.
        self._apart: dict[str, float] = {}
        self._threads = [
            threading.Thread(target=self._work, name=f"batcher-{i}", daemon=True)
            for i in range(config.num_batch_threads)
        ]
        # A client's request to reload is answered, and so the model loaded, on one core.
        with cores.every():
            for thread in self._threads:
                thread.start()

    def submit(self, signature: str, inputs: Arrays, *, deadline: float | None = None) -> Future:
        """Returns the future of a request's outputs.

        If nothing waits or is being computed, the calling thread computes it itself, unless it
        takes long: to hand it over and back would cost as much as embedding a short text.

        Args:
            signature: Its signature.
            inputs: Arrays by name; of a merged signature all of as many rows.
            deadline: Time of `time.monotonic` after which it need not be computed.

        Raises:
            RequestFailed: RESOURCE_EXHAUSTED if too much is waiting, UNAVAILABLE after `close`.
        """
        rows = max([len(value) for value in inputs.values() if value.ndim], default=1)
        # What has no rows takes room too.
        task = Task(inputs, rows, max(rows, 1), deadline, self._clock())
        with self._lock:
            if self._closed:
                raise RequestFailed(grpc.StatusCode.UNAVAILABLE, "The model is being unloaded")
            idle = not self._queues and not self._running and not self._is_long(signature)
            waiting = self._rows.get(signature, 0)
            if waiting and waiting + task.room > self._config.max_enqueued_rows:
                raise RequestFailed(
                    grpc.StatusCode.RESOURCE_EXHAUSTED,
                    f"The queue of {signature} is full: {waiting} rows are waiting, of at most "
                    f"{self._config.max_enqueued_rows}",
                )
            alone = self._expected(signature)[0] == 1
            at_once = idle and alone and not self._config.batch_timeout_seconds
            self._peaks[signature].add(self._there(signature) + 1)
            if at_once:
                batch = Batch(signature, is_long=False)
                self._running.append(batch)
                if task.begin():
                    batch.tasks.append(task)
            else:
                self._queues.setdefault(signature, collections.deque()).append(task)
                self._rows[signature] = waiting + task.room
                self._wake(signature)
        if at_once:
            self._finish(batch)
            with self._lock:
                self._wake_another()
        return task.future

    def _wake(self, signature: str) -> None:
        """Wakes whom a request that has just been queued concerns."""
        if signature not in self._awaited:
            # Those of other signatures do not wait for a batch to fill.
            self._arrived.notify_all()
            self._wake_another()
            return
        self._awaited[signature] -= 1
        is_full = self._rows[signature] >= self._config.max_batch_size
        if self._awaited[signature] <= 0 or is_full:
            self._arrived.notify_all()

    def _wake_another(self) -> None:
        """Wakes a thread if there is a batch for it; all of them at the end."""
        if self._closed:
            self._ready.notify_all()
        elif self._next() is not None:
            self._ready.notify()

    def waiting(self) -> Mapping[str, int]:
        """Returns how many rows wait, by signature."""
        with self._lock:
            return dict(self._rows)

    def close(self) -> None:
        """Lets the threads finish what is queued, then ends them."""
        with self._lock:
            self._closed = True
            self._ready.notify_all()
            self._arrived.notify_all()
        for thread in self._threads:
            thread.join()
        with self._lock:
            self._ready.wait_for(lambda: not self._running)

    def _work(self) -> None:
        while (batch := self._take()) is not None:
            self._finish(batch)

    def _finish(self, batch: Batch) -> None:
        """Computes a batch; who calls it takes another one then, or calls `_wake_another`."""
        begin = self._clock()
        try:
            if batch.tasks:
                self._compute(batch.signature, batch.tasks)
        finally:
            with self._lock:
                if batch.tasks:
                    end = self._clock()
                    expected = self._expected_after(batch)
                    self._last[batch.signature] = expected, end - begin, end
                self._running.remove(batch)

    def _is_long(self, signature: str) -> bool:
        return self._last.get(signature, (1, 0.0, 0.0))[1] >= _LONG

    def _may_begin(self, signature: str) -> bool:
        """Returns whether one more batch of a signature may be computed now."""
        threads = self._config.num_batch_threads
        if len(self._running) >= threads:
            return False
        quick = sum([not batch.is_long for batch in self._running])
        return self._is_long(signature) or quick < max(1, threads // 2)

    def _there(self, signature: str, size: Callable[[Collection[Task]], int] = len) -> int:
        """Returns how many requests of a signature wait or are computed, or their rows."""
        computed = sum([size(x.tasks) for x in self._running if x.signature == signature])
        return computed + size(self._queues.get(signature, ()))

    def _parts(self, batch: Batch) -> int:
        """Returns into how many batches a signature's requests are divided.

        Batches that take long share what is there, one a thread. Others are short beside the
        answering: half of many requests is computed while the other half is answered, unless it is
        told to wait for more.
        """
        threads = self._config.num_batch_threads
        if batch.is_long:
            return min(threads, _MOST_SHARES)
        if self._config.batch_timeout_seconds or self._most(batch) < _MANY:
            return 1
        return min(threads, 2)

    def _most(self, batch: Batch) -> int:
        """Returns how many requests there are, or were of late: who is answered may come back."""
        return max(self._there(batch.signature), self._peaks[batch.signature].value())

    def _share(self, batch: Batch, there: int) -> int:
        """Returns a batch's share of what there is, at least 1."""
        return max(1, -(-there // self._parts(batch)))

    def _expected_after(self, batch: Batch) -> int:
        """Returns for how many requests the next batch waits: who is answered may ask again."""
        there = self._there(batch.signature)
        if batch.is_long:
            return self._share(batch, there)
        if self._parts(batch) == 1:
            return len(batch.tasks)
        return min(self._share(batch, self._most(batch)), there)

    def _take(self) -> Batch | None:
        """Returns the next batch, of the signature that has waited longest for its turn."""
        with self._lock:
            while (signature := self._next()) is None:
                if self._closed and not self._queues:
                    return None
                self._ready.wait()
            batch = Batch(signature, self._is_long(signature))
            self._running.append(batch)
            if task := self._pop(signature):
                batch.tasks.append(task)
            apart = self._clock() < self._apart.get(signature, 0.0)
            if signature in self._merged and batch.tasks and not apart:
                self._fill(batch)
            # To the end of the row, so that no signature keeps another waiting.
            queue = self._queues.pop(signature, None)
            if queue:
                self._queues[signature] = queue
                self._arrived.notify_all()
            self._wake_another()
            return batch

    def _next(self) -> str | None:
        """Returns a signature whose requests can be taken, since no thread is collecting them."""
        for signature in self._queues:
            if signature not in self._awaited and self._may_begin(signature):
                return signature
        return None

    def _fill(self, batch: Batch) -> None:
        """Adds to a batch of one what may be computed with it."""
        signature, most = batch.signature, self._config.max_batch_size
        self._awaited[signature] = 0
        # Batches of other signatures may begin meanwhile.
        self._wake_another()
        self._wait_for_more(batch)
        del self._awaited[signature]
        # The time that a long one takes goes with its rows.
        size, there = len, self._most(batch)
        if batch.is_long:
            size, there = room, self._there(signature, room)
        share = self._share(batch, there)
        while size(batch.tasks) < share and (queue := self._queues.get(signature)):
            if batch.rows + queue[0].room > most:
                return
            if task := self._pop(signature):
                batch.tasks.append(task)

    def _wait_for_more(self, batch: Batch) -> None:
        """Waits until a batch is full, has as many requests as is expected, or for too long."""
        signature, first = batch.signature, batch.tasks[0]
        most = self._config.max_batch_size - batch.rows
        timeout = self._config.batch_timeout_seconds
        expected, seconds = self._expected(signature)
        begin = self._clock()
        while not self._closed and self._rows.get(signature, 0) < most:
            missing = expected - 1 - len(self._queues.get(signature, ()))
            # Those of other signatures do not wait for it.
            is_patient = missing > 0 and not self._queues.keys() - {signature}
            until = first.since + timeout
            if is_patient:
                until = max(until, begin + min(seconds, _LONGEST_PATIENCE))
            if first.deadline is not None:
                # What is computed late is of no use.
                until = min(until, first.deadline - seconds)
            left = until - self._clock()
            if left <= 0:
                break
            # To be woken by each request would cost as much as to compute it.
            self._awaited[signature] = 1 if timeout else missing
            self._arrived.wait(left)

    def _expected(self, signature: str) -> tuple[int, float]:
        """Returns how many requests to expect, and the seconds that they take.

        One request and 0 seconds, if the last batch is not recent.
        """
        requests, seconds, end = self._last.get(signature, (1, 0.0, 0.0))
        return (requests, seconds) if self._clock() < end + _RECENT else (1, 0.0)

    def _pop(self, signature: str) -> Task | None:
        """Takes the first task of a queue; None if it need not be computed any more."""
        queue = self._queues[signature]
        task = queue.popleft()
        self._rows[signature] -= task.room
        if not queue:
            del self._queues[signature]
        return task if task.begin() else None

    def _compute(self, signature: str, tasks: list[Task]) -> None:
        rows = sum(task.rows for task in tasks)
        try:
            self._observe(signature, rows, self._clock() - tasks[0].since)
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
            with self._lock:
                self._apart[signature] = self._clock() + _APART
            for task in tasks:
                self._compute(signature, [task])
            return
        start = 0
        for task in tasks:
            rows = slice(start, start + task.rows)
            task.future.set_result({name: value[rows] for name, value in outputs.items()})
            start += task.rows
