"""Limits the number of HTTP connections, and closes those that stay silent for too long."""

import asyncio
import collections
import contextlib
import resource
from collections.abc import Callable, Iterator
from typing import cast

# Time for the headers of a request; and time until the next request, or to read an answer.
_HEADER_SECONDS, _IDLE_SECONDS = 10.0, 75.0
# Shares of the file descriptors. The others are left for the files of models and everything else.
HTTP_SHARE, GRPC_SHARE = 0.5, 0.25
_MAX_CONNECTIONS = 4096


def default_max_connections(share: float = HTTP_SHARE) -> int:
    """Returns the default limit of connections: a share of the descriptors, at most 4,096."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return _MAX_CONNECTIONS
    return max(8, min(_MAX_CONNECTIONS, int(soft * share)))


def raise_descriptor_limit() -> None:
    """Raises this process's soft limit of file descriptors to its hard limit."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


class Connections:
    """The connections of one HTTP server, for its event loop.

    At the limit, a new connection replaces one that is waiting for its client: of the address with
    the most connections, the one that has waited longest. A connection whose request is being
    computed is never closed.
    """

    def __init__(
        self,
        max_connections: int,
        *,
        header_seconds: float = _HEADER_SECONDS,
        idle_seconds: float = _IDLE_SECONDS,
    ):
        """Begins with none.

        Args:
            max_connections: Most connections at a time.
            header_seconds: How long the headers of a request may take.
            idle_seconds: How long a connection may wait for its next request, or a client may take
                to read an answer.
        """
        self._max_connections = max_connections
        self._header_seconds = header_seconds
        self._idle_seconds = idle_seconds
        self._open: dict[asyncio.BaseTransport, _Connection] = {}

    def __len__(self) -> int:
        return len(self._open)

    def guarded(self, protocol: Callable[[], asyncio.Protocol]) -> Callable[[], asyncio.Protocol]:
        """Wraps a factory of protocols, so that its connections are limited and timed."""
        return lambda: _Connection(self, protocol)

    @contextlib.contextmanager
    def request(self, transport: asyncio.BaseTransport | None) -> Iterator[None]:
        """Suspends the timeout of a connection, from a request's headers until its answer."""
        connection = self._open.get(transport) if transport is not None else None
        if connection is None:
            yield
            return
        connection.stop_timer()
        try:
            yield
        finally:
            connection.is_computing = False
            connection.start_timer(self._idle_seconds, is_idle=True)

    def computing(self, transport: asyncio.BaseTransport | None) -> None:
        """Marks a connection whose request is complete, so that no other replaces it."""
        connection = self._open.get(transport) if transport is not None else None
        if connection is not None:
            connection.is_computing = True

    def _admit(self, connection: "_Connection") -> bool:
        """Admits a connection, closing another one if need be; returns whether it could."""
        if len(self._open) >= self._max_connections:
            waiting = [item for item in self._open.values() if not item.is_computing]
            if not waiting:
                return False
            # One address that opens many connections must not push out those of others.
            counts = collections.Counter(item.address for item in self._open.values())
            min(waiting, key=lambda item: (-counts[item.address], item.since)).abort()
        assert connection.transport is not None
        self._open[connection.transport] = connection
        connection.start_timer(self._header_seconds)
        return True

    def _request_begun(self, connection: "_Connection") -> None:
        """Starts the timeout for the headers of a further request on a connection."""
        connection.start_timer(self._header_seconds)

    def _remove(self, connection: "_Connection") -> None:
        if connection.transport is not None:
            self._open.pop(connection.transport, None)


class _Connection(asyncio.Protocol):
    """A protocol that forwards everything to the wrapped one, and has a timeout.

    Attributes:
        transport: Transport of the connection.
        address: Address of the client.
        since: When its timer was started last.
        is_computing: Whether its request is complete and not answered yet.
    """

    def __init__(self, connections: Connections, protocol: Callable[[], asyncio.Protocol]):
        self._connections = connections
        self._make, self._protocol = protocol, cast(asyncio.Protocol | None, None)
        self._timer: asyncio.TimerHandle | None = None
        self._is_idle = False
        self.transport: asyncio.Transport | None = None
        self.address, self.since, self.is_computing = "", 0.0, False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        peer = transport.get_extra_info("peername")
        self.address = str(peer[0]) if peer else ""
        if not self._connections._admit(self):
            self.transport.abort()
            return
        self._protocol = self._make()
        self._protocol.connection_made(transport)

    def data_received(self, data: bytes) -> None:
        if self._is_idle:
            self._is_idle = False
            self._connections._request_begun(self)
        if self._protocol is not None:
            self._protocol.data_received(data)

    def eof_received(self) -> bool | None:
        return self._protocol.eof_received() if self._protocol is not None else None

    def pause_writing(self) -> None:
        if self._protocol is not None:
            self._protocol.pause_writing()

    def resume_writing(self) -> None:
        if self._protocol is not None:
            self._protocol.resume_writing()

    def connection_lost(self, error: Exception | None) -> None:
        self.stop_timer()
        self._connections._remove(self)
        if self._protocol is not None:
            self._protocol.connection_lost(error)

    def abort(self) -> None:
        """Closes the connection at once; only for one that is not computing."""
        self._connections._remove(self)
        if self.transport is not None:
            self.transport.abort()

    def start_timer(self, seconds: float, *, is_idle: bool = False) -> None:
        """Closes the connection after a time, unless the timer is stopped or started again.

        Args:
            seconds: The time.
            is_idle: Whether the connection waits for its next request.
        """
        self.stop_timer()
        loop = asyncio.get_running_loop()
        self.since = loop.time()
        self._is_idle = is_idle
        self._timer = loop.call_later(seconds, self.abort)

    def stop_timer(self) -> None:
        """Suspends the timeout."""
        self._is_idle = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
