"""Calls that come by an event loop and are answered in threads."""

import asyncio
import concurrent.futures
import contextlib
import time
from collections.abc import Callable
from typing import Any

import grpc

from sigline.serving.server.failures import RequestFailed
from sigline.serving.server.requests import Departure


class Call:
    """What a method that runs in a thread knows of its call."""

    def __init__(self, peer: str, deadline: float | None):
        """Begins with a client that waits.

        Args:
            peer: Who calls.
            deadline: Time of `time.monotonic` at which the client waits no longer; None for none.
        """
        self.peer = peer
        self._deadline = deadline
        self._departure = Departure()

    def time_remaining(self) -> float | None:
        """Returns the seconds until the client's deadline, None without one."""
        return None if self._deadline is None else max(0.0, self._deadline - time.monotonic())

    def is_active(self) -> bool:
        """Returns whether the client still waits."""
        return not self._departure.has_left and self.time_remaining() != 0

    def watch(self, future: concurrent.futures.Future) -> None:
        """Names the computation, which is cancelled when the client leaves, or if it has left."""
        self._departure.watch(future)

    def leave(self) -> None:
        """Says that the client has left."""
        self._departure.leave()


class Pool:
    """Threads that answer; what none is free for is refused, not kept waiting."""

    def __init__(self, threads: int, name: str):
        """Begins with all threads free, whose names begin with `name`."""
        self._threads = threads
        self._pool = concurrent.futures.ThreadPoolExecutor(threads, thread_name_prefix=name)
        self._busy = 0

    async def run(self, call: Call, work: Callable, *args: Any) -> Any:
        """Returns what work returns; if the client leaves, the call is told and nothing returned.

        Raises:
            RequestFailed: If no thread is free.
        """
        if self._busy >= self._threads:
            raise RequestFailed(
                grpc.StatusCode.RESOURCE_EXHAUSTED, f"More than {self._threads} requests at a time"
            )
        self._busy += 1
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[Any] = loop.create_future()

        def _end(value: Any, error: BaseException | None) -> None:
            # Its place is free when its thread is, whether the client still waits or not.
            self._busy -= 1
            if ended.done():
                return
            if error is None:
                ended.set_result(value)
            else:
                ended.set_exception(error)

        def _work() -> None:
            value, failure = None, None
            try:
                value = work(*args)
            except BaseException as error:
                failure = error
            # The loop has ended if the server was stopped meanwhile.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(_end, value, failure)

        self._pool.submit(_work)
        try:
            return await ended
        except asyncio.CancelledError:
            call.leave()
            raise

    def close(self) -> None:
        """Ends the threads; what has not begun is not begun any more."""
        self._pool.shutdown(cancel_futures=True)
