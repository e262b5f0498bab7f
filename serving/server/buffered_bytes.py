"""Bytes of request bodies that are in memory at a time, all requests together."""

import contextlib
import threading
from collections.abc import Iterator

import grpc

from sigline.serving.server.failures import RequestFailed


class BufferedBytes:
    """A bound on what the bodies of all requests take together."""

    def __init__(self, most: int):
        """Begins with none; `most` is the bound in bytes."""
        self._most = most
        self._now = 0
        self._lock = threading.Lock()

    @property
    def now(self) -> int:
        """Bytes that are held now."""
        return self._now

    @contextlib.contextmanager
    def holding(self) -> Iterator["Holding"]:
        """Yields what one request holds, and frees it at the end."""
        holding = Holding(self)
        try:
            yield holding
        finally:
            holding.free(holding.num_bytes)

    def add(self, num_bytes: int) -> None:
        """Counts bytes; raises RequestFailed, and counts nothing, if there is no room."""
        with self._lock:
            if self._now + num_bytes > self._most:
                raise RequestFailed(
                    grpc.StatusCode.RESOURCE_EXHAUSTED,
                    f"The bodies of all requests hold {self._now} bytes, of at most {self._most}; "
                    "send it again later",
                )
            self._now += num_bytes

    def remove(self, num_bytes: int) -> None:
        """Counts bytes off."""
        with self._lock:
            self._now -= num_bytes


class Holding:
    """What one request holds; one thread at a time uses it."""

    def __init__(self, total: BufferedBytes):
        """Begins with nothing."""
        self._total = total
        self.num_bytes = 0

    def take(self, num_bytes: int) -> None:
        """Adds bytes; raises RequestFailed if there is no room for them."""
        self._total.add(num_bytes)
        self.num_bytes += num_bytes

    def free(self, num_bytes: int) -> None:
        """Gives bytes back."""
        self._total.remove(num_bytes)
        self.num_bytes -= num_bytes
