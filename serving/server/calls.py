"""gRPC calls that an event loop receives and threads answer."""

import asyncio
import concurrent.futures
import contextlib
import time
from collections.abc import Callable
from typing import Any

import grpc

from sigline.serving.server.failures import RequestFailed
from sigline.serving.server.requests import Cancellation


class Call:
    """The context of a call, for a method that runs in a thread."""

    def __init__(self, peer: str, deadline: float | None):
        """Begins with a client that waits.

        Args:
            peer: Address of the client.
            deadline: Time of `time.monotonic` at which the client stops waiting; None for none.
        """
        self.peer = peer
        self._deadline = deadline
        self._cancellation = Cancellation()

    def time_remaining(self) -> float | None:
        """Returns the seconds until the client's deadline, None without one."""
        return None if self._deadline is None else max(0.0, self._deadline - time.monotonic())

    def is_active(self) -> bool:
        """Returns whether the client still waits."""
        return not self._cancellation.is_cancelled and self.time_remaining() != 0

    def watch(self, future: concurrent.futures.Future) -> None:
        """Sets the computation to cancel when the client leaves, or at once if it has left."""
        self._cancellation.watch(future)

    def cancel(self) -> None:
        """Records that the client has left, and cancels the computation."""
        self._cancellation.cancel()


class Pool:
    """Threads that answer calls. A call for which no thread is free is refused, not queued."""

    def __init__(self, threads: int, name: str):
        """Begins with all threads free; their names begin with `name`."""
        self._threads = threads
        self._pool = concurrent.futures.ThreadPoolExecutor(threads, thread_name_prefix=name)
        self._busy = 0

    async def run(self, call: Call, work: Callable, *args: Any) -> Any:
        """Runs `work` in a thread and returns its result.

        Raises:
            RequestFailed: If no thread is free.
            asyncio.CancelledError: If the client leaves; the call is cancelled, too.
        """
        if self._busy >= self._threads:
            raise RequestFailed(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                f"More than {self._threads} requests at a time; send it again later",
            )
        self._busy += 1
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[Any] = loop.create_future()

        def _end(value: Any, error: BaseException | None) -> None:
            # The thread is free only now, even if the client left long ago.
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
            # The loop is closed if the server was stopped in the meantime.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(_end, value, failure)

        self._pool.submit(_work)
        try:
            return await ended
        except asyncio.CancelledError:
            call.cancel()
            raise

    def close(self) -> None:
        """Ends the threads; work that has not begun is dropped."""
        self._pool.shutdown(cancel_futures=True)
