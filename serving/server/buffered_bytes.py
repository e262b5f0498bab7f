"""Limits the memory that the bodies of all requests take together."""

import contextlib
import threading
from collections.abc import Iterator

import grpc

from sigline.serving.server.failures import RequestFailed


class BufferedBytes:
    """Bytes of request bodies in memory, with a limit over all requests."""

    def __init__(self, max_bytes: int):
        """Begins with none; `max_bytes` is the limit."""
        self._max_bytes = max_bytes
        self._now = 0
        self._lock = threading.Lock()

    @property
    def now(self) -> int:
        """Bytes that are reserved now."""
        return self._now

    @contextlib.contextmanager
    def reserve(self) -> Iterator["Reservation"]:
        """Yields the reservation of one request, and releases all of it at the end."""
        reservation = Reservation(self)
        try:
            yield reservation
        finally:
            reservation.shrink(reservation.num_bytes)

    def add(self, num_bytes: int) -> None:
        """Adds bytes; raises RequestFailed, and adds nothing, if that would exceed the limit."""
        with self._lock:
            if self._now + num_bytes > self._max_bytes:
                raise RequestFailed(
                    grpc.StatusCode.RESOURCE_EXHAUSTED,
                    f"The bodies of all requests hold {self._now} bytes, of at most "
                    f"{self._max_bytes}; send it again later",
                )
            self._now += num_bytes

    def remove(self, num_bytes: int) -> None:
        """Removes bytes."""
        with self._lock:
            self._now -= num_bytes


class Reservation:
    """The bytes that one request has reserved. Not thread-safe."""

    def __init__(self, total: BufferedBytes):
        """Begins with none."""
        self._total = total
        self.num_bytes = 0

    def grow(self, num_bytes: int) -> None:
        """Reserves more bytes; raises RequestFailed if that would exceed the limit."""
        self._total.add(num_bytes)
        self.num_bytes += num_bytes

    def shrink(self, num_bytes: int) -> None:
        """Releases bytes."""
        self._total.remove(num_bytes)
        self.num_bytes -= num_bytes
