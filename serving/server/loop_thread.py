"""An event loop in a thread of its own, for the servers of gRPC and of HTTP."""

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any


class LoopThread:
    """A thread that runs an event loop until it is ended.

    Attributes:
        loop: The event loop.
    """

    def __init__(self, name: str):
        """Starts the thread.

        Args:
            name: Its name.
        """
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, name=name, daemon=True)
        self._thread.start()

    def call(self, work: Coroutine[Any, Any, Any], timeout: float) -> Any:
        """Runs a coroutine in the thread and returns its result.

        Args:
            work: The coroutine.
            timeout: How many seconds it may take.

        Raises:
            TimeoutError: If it takes longer.
        """
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(timeout)

    def end(self) -> None:
        """Ends the loop and the thread."""
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()
