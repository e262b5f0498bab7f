"""Bounded queues of requests, and the threads that compute them in batches.

The rules, in the order in which they apply:

- Batches form while all threads are busy, so a lone request loses no time.
- Clients that have just been answered often send their next request at once. After a batch of
  several requests, the next batch therefore waits for as many, at most as long as the last batch
  took to compute.
- When many quick requests are outstanding, a batch takes half of them: one half is computed while
  the other half is answered and comes back.
- When batches take long, several are computed at a time and share the queue. A single batch leaves
  cores idle between its operations.
- A request whose deadline has passed, or whose client has disconnected, is not computed.
- Requests of a batch that fails are computed again one by one, so that one bad request does not
  fail the others.
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
from sigline.serving.server.batches import Arrays, Batch, Task, total_queue_rows
from sigline.serving.server.failures import RequestFailed
from sigline.serving.server.sliding_maximum import SlidingMaximum

# Longest wait for the requests that are expected to come back.
_MAX_PATIENCE_SECONDS = 0.005
# Window over which the maximum number of outstanding requests is taken. A batch that ended longer
# ago than this does not predict the size of the next one.
_RECENT_SECONDS = 0.05
# Fewest outstanding requests for which quick batches are halved. Half of fewer takes almost as long
# to compute as all of them.
_MIN_HALVED_REQUESTS = 8
# Batches that take at least this long count as long. For shorter ones, Python's share of the time
# is too large for computing several at once to pay off.
_LONG_BATCH_SECONDS = 0.005
# Most parts that a queue of long requests is divided into. A few batches fill the cores that one
# leaves idle. Many small ones would each read all weights from memory.
_MAX_SHARES = 4
# How long requests of a signature are not merged after a merged batch failed, so that one bad
# client does not cause every batch to be recomputed.
_UNMERGED_SECONDS = 1.0


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
        merge_images: Whether requests of images are merged too. If one image of a batch does not
            decode, all requests of that batch are computed a second time.
        rows_per_smaller_grid: For a model of several grids: how many rows that wait move a request
            which names no grid to the next smaller one, each time. The answer names the signature
            that computed it. By default such requests have the model's default grid.
    """

    max_batch_size: int = 64
    batch_timeout_seconds: float = 0.0
    max_enqueued_rows: int = 1024
    num_batch_threads: int = field(default_factory=cores.count)
    merge_images: bool = True
    rows_per_smaller_grid: int | None = None

    def __post_init__(self) -> None:
        for name in (
            "max_batch_size",
            "max_enqueued_rows",
            "num_batch_threads",
            "rows_per_smaller_grid",
        ):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1. Received: {value}")
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
            run: Computes a signature: takes its name and inputs, returns its outputs.
            config: The limits.
            merged: Signatures whose requests may be computed together: every input and output has
                a row for each item.
            observe: Called with the signature, the rows of each batch and how many seconds its
                first request waited.
            clock: Returns the time, in seconds.
        """
        self._run = run
        self._clock = clock
        self._config = config
        self._merged = merged
        self._observe = observe
        # In the order in which signatures take their turn; empty queues are removed.
        self._queues: dict[str, collections.deque[Task]] = {}
        self._rows: dict[str, int] = {}
        self._lock = threading.Lock()
        # Threads without work wait for `_ready`, threads that collect a batch wait for `_arrived`.
        # Waking a thread for nothing costs as much as embedding a short text.
        self._ready = threading.Condition(self._lock)
        self._arrived = threading.Condition(self._lock)
        self._closed = False
        self._running: list[Batch] = []
        # By signature: requests to expect, seconds that the last batch took, and when it ended.
        self._last_batches: dict[str, tuple[int, float, float]] = {}
        # By signature: the recent maximum of outstanding requests.
        self._recent_maxima: dict[str, SlidingMaximum] = collections.defaultdict(
            lambda: SlidingMaximum(_RECENT_SECONDS)
        )
        # Signatures for which a thread is collecting a batch: how many more requests wake it.
        self._collecting: dict[str, int] = {}
        # By signature: until when its requests are computed one by one.
        self._unmerged_until: dict[str, float] = {}
        self._threads = [
            threading.Thread(target=self._work, name=f"batcher-{i}", daemon=True)
            for i in range(config.num_batch_threads)
        ]
        # Threads inherit the cores of the thread that starts them, and the caller may be one of
        # those that are pinned to a single core.
        with cores.unpinned():
            for thread in self._threads:
                thread.start()

    def submit(self, signature: str, inputs: Arrays, *, deadline: float | None = None) -> Future:
        """Returns the future of a request's outputs.

        If nothing is queued or running, and the signature is quick, the calling thread computes
        the request itself: handing it to another thread and back would cost as much as embedding a
        short text.

        Args:
            signature: Its signature.
            inputs: Arrays by name; for a merged signature all must have as many rows.
            deadline: Time of `time.monotonic` after which it need not be computed.

        Raises:
            RequestFailed: RESOURCE_EXHAUSTED if too much is waiting, UNAVAILABLE after `close`.
        """
        rows = max([len(value) for value in inputs.values() if value.ndim], default=1)
        # A request without rows counts as one, or any number of them would fit the queue.
        task = Task(inputs, rows, max(rows, 1), deadline, self._clock())
        with self._lock:
            if self._closed:
                raise RequestFailed(
                    grpc.StatusCode.UNAVAILABLE,
                    "The model is being unloaded; send the request again later",
                )
            idle = not self._queues and not self._running and not self._is_long(signature)
            waiting = self._rows.get(signature, 0)
            if waiting and waiting + task.queue_rows > self._config.max_enqueued_rows:
                raise RequestFailed(
                    grpc.StatusCode.RESOURCE_EXHAUSTED,
                    f"The queue of {signature} is full: {waiting} rows are waiting, of at most "
                    f"{self._config.max_enqueued_rows}; send the request again later",
                )
            # If others are expected, queueing lets this one form a batch with them.
            is_lone = self._expected(signature)[0] == 1
            run_inline = idle and is_lone and not self._config.batch_timeout_seconds
            self._recent_maxima[signature].add(self._outstanding(signature) + 1)
            if run_inline:
                batch = Batch(signature, is_long=False)
                self._running.append(batch)
                if task.begin():
                    batch.tasks.append(task)
            else:
                self._queues.setdefault(signature, collections.deque()).append(task)
                self._rows[signature] = waiting + task.queue_rows
                self._wake(signature)
        if run_inline:
            self._compute_batch(batch)
            with self._lock:
                self._wake_another()
        return task.future

    def _wake(self, signature: str) -> None:
        """Wakes the threads that a request that has just been queued concerns."""
        if signature not in self._collecting:
            # A thread that collects another signature stops waiting once other requests queue up.
            self._arrived.notify_all()
            self._wake_another()
            return
        self._collecting[signature] -= 1
        is_full = self._rows[signature] >= self._config.max_batch_size
        if self._collecting[signature] <= 0 or is_full:
            self._arrived.notify_all()

    def _wake_another(self) -> None:
        """Wakes a thread if there is a batch for it; all threads after `close`."""
        if self._closed:
            self._ready.notify_all()
        elif self._next_signature() is not None:
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
        # Callers of `submit` may still be computing a request themselves.
        with self._lock:
            self._ready.wait_for(lambda: not self._running)

    def _work(self) -> None:
        while (batch := self._take()) is not None:
            self._compute_batch(batch)

    def _compute_batch(self, batch: Batch) -> None:
        """Computes a batch. The caller then takes another one, or calls `_wake_another`."""
        begin = self._clock()
        try:
            if batch.tasks:
                self._compute(batch.signature, batch.tasks)
        finally:
            with self._lock:
                if batch.tasks:
                    end = self._clock()
                    expected = self._expected_after(batch)
                    self._last_batches[batch.signature] = expected, end - begin, end
                self._running.remove(batch)

    def _is_long(self, signature: str) -> bool:
        return self._last_batches.get(signature, (1, 0.0, 0.0))[1] >= _LONG_BATCH_SECONDS

    def _may_begin(self, signature: str) -> bool:
        """Returns whether one more batch of a signature may be computed now."""
        threads = self._config.num_batch_threads
        if len(self._running) >= threads:
            return False
        num_quick = sum([not batch.is_long for batch in self._running])
        return self._is_long(signature) or num_quick < max(1, threads // 2)

    def _outstanding(self, signature: str, size: Callable[[Collection[Task]], int] = len) -> int:
        """Returns how many requests of a signature are queued or running; or their rows."""
        running = sum([size(x.tasks) for x in self._running if x.signature == signature])
        return running + size(self._queues.get(signature, ()))

    def _num_parts(self, batch: Batch) -> int:
        """Returns into how many batches a signature's outstanding requests are divided.

        Long batches are divided among the threads. Quick ones take little time compared to
        answering them: many are halved, so that one half is computed while the other is answered,
        unless a timeout says to wait for more.
        """
        threads = self._config.num_batch_threads
        if batch.is_long:
            return min(threads, _MAX_SHARES)
        if (
            self._config.batch_timeout_seconds
            or self._max_outstanding(batch) < _MIN_HALVED_REQUESTS
        ):
            return 1
        return min(threads, 2)

    def _max_outstanding(self, batch: Batch) -> int:
        """Returns the recent maximum of outstanding requests, since answered clients may return."""
        signature = batch.signature
        return max(self._outstanding(signature), self._recent_maxima[signature].value())

    def _share(self, batch: Batch, outstanding: int) -> int:
        """Returns a batch's share of the outstanding requests or rows, at least 1."""
        return max(1, -(-outstanding // self._num_parts(batch)))

    def _expected_after(self, batch: Batch) -> int:
        """Returns for how many requests the next batch waits."""
        outstanding = self._outstanding(batch.signature)
        if batch.is_long:
            return self._share(batch, outstanding)
        # The clients of this batch are about to be answered, and may all ask again.
        if self._num_parts(batch) == 1:
            return len(batch.tasks)
        return min(self._share(batch, self._max_outstanding(batch)), outstanding)

    def _take(self) -> Batch | None:
        """Returns the next batch, of the signature whose turn it is; None after `close`."""
        with self._lock:
            while (signature := self._next_signature()) is None:
                if self._closed and not self._queues:
                    return None
                self._ready.wait()
            batch = Batch(signature, self._is_long(signature))
            # Counted as running before it is complete, so that no other thread takes its place.
            self._running.append(batch)
            if task := self._pop(signature):
                batch.tasks.append(task)
            is_unmerged = self._clock() < self._unmerged_until.get(signature, 0.0)
            if signature in self._merged and batch.tasks and not is_unmerged:
                self._fill(batch)
            # Moves the signature to the end of the order: round robin, so that none starves.
            queue = self._queues.pop(signature, None)
            if queue:
                self._queues[signature] = queue
                self._arrived.notify_all()
            self._wake_another()
            return batch

    def _next_signature(self) -> str | None:
        """Returns the first signature that may begin and that no thread is collecting."""
        for signature in self._queues:
            if signature not in self._collecting and self._may_begin(signature):
                return signature
        return None

    def _fill(self, batch: Batch) -> None:
        """Adds to a batch of one request those that may be computed with it."""
        signature, max_rows = batch.signature, self._config.max_batch_size
        self._collecting[signature] = 0
        # The lock is released while this thread waits: batches of other signatures may begin.
        self._wake_another()
        self._wait_for_more(batch)
        del self._collecting[signature]
        # Quick batches are shared by requests, long ones by rows: their time grows with the rows.
        size, outstanding = len, self._max_outstanding(batch)
        if batch.is_long:
            size, outstanding = total_queue_rows, self._outstanding(signature, total_queue_rows)
        share = self._share(batch, outstanding)
        while size(batch.tasks) < share and (queue := self._queues.get(signature)):
            if batch.rows + queue[0].queue_rows > max_rows:
                return
            if task := self._pop(signature):
                batch.tasks.append(task)

    def _wait_for_more(self, batch: Batch) -> None:
        """Waits until a batch is full, has the expected requests, or has waited long enough."""
        signature, first = batch.signature, batch.tasks[0]
        free_rows = self._config.max_batch_size - batch.rows
        timeout = self._config.batch_timeout_seconds
        expected, seconds = self._expected(signature)
        begin = self._clock()
        while not self._closed and self._rows.get(signature, 0) < free_rows:
            missing = expected - 1 - len(self._queues.get(signature, ()))
            # Requests of other signatures must not be delayed by patience for this one.
            is_patient = missing > 0 and not self._queues.keys() - {signature}
            until = first.since + timeout
            if is_patient:
                until = max(until, begin + min(seconds, _MAX_PATIENCE_SECONDS))
            if first.deadline is not None:
                # Leaves time to compute: a result after the deadline is of no use.
                until = min(until, first.deadline - seconds)
            remaining = until - self._clock()
            if remaining <= 0:
                break
            # With patience alone, this thread wakes once all are there: a wake-up for each request
            # would cost as much as computing it.
            self._collecting[signature] = 1 if timeout else missing
            self._arrived.wait(remaining)

    def _expected(self, signature: str) -> tuple[int, float]:
        """Returns how many requests to expect, and the seconds that they take.

        One request and 0 seconds, if the last batch is not recent.
        """
        requests, seconds, end = self._last_batches.get(signature, (1, 0.0, 0.0))
        return (requests, seconds) if self._clock() < end + _RECENT_SECONDS else (1, 0.0)

    def _pop(self, signature: str) -> Task | None:
        """Removes the first task of a queue; returns None if it need not be computed any more."""
        queue = self._queues[signature]
        task = queue.popleft()
        self._rows[signature] -= task.queue_rows
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
            # Slicing would silently give a client the rows of another one.
            if any(len(value) != rows for value in outputs.values()):
                shapes = {name: value.shape for name, value in outputs.items()}
                raise ValueError(
                    f"{signature} must return a row for each of {rows} rows. Received: {shapes}"
                )
        except Exception as error:  # Every error is passed on to the clients that wait for it.
            if len(tasks) == 1:
                tasks[0].future.set_exception(error)
                return
            with self._lock:
                self._unmerged_until[signature] = self._clock() + _UNMERGED_SECONDS
            for task in tasks:
                self._compute(signature, [task])
            return
        start = 0
        for task in tasks:
            rows = slice(start, start + task.rows)
            task.future.set_result({name: value[rows] for name, value in outputs.items()})
            start += task.rows
