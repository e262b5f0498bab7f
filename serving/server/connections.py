"""HTTP connections: bounded in number, and closed when what they began does not come."""

import asyncio
import collections
import contextlib
import resource
from collections.abc import Callable, Iterator
from typing import cast

# For the headers of a request, and for the next request or the reading of an answer.
_HEADER_SECONDS, _IDLE_SECONDS = 10.0, 75.0
# What is left of the descriptors is for the files of models and all else.
HTTP_SHARE, GRPC_SHARE, _MOST = 0.5, 0.25, 4096


def most_connections(share: float = HTTP_SHARE) -> int:
    """Returns how many connections there may be: a share of the descriptors, at most 4,096."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _MOST if soft == resource.RLIM_INFINITY else max(8, min(_MOST, int(soft * share)))


def raise_limit() -> None:
    """Lets this process open as many files and connections as it may."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


class Connections:
    """The connections of one HTTP server, for its event loop.

    When there is no room, the one gives way that has waited longest for something to come, of the
    address that has most; requests that are computed never do.
    """

    def __init__(
        self,
        most: int,
        *,
        header_seconds: float = _HEADER_SECONDS,
        idle_seconds: float = _IDLE_SECONDS,
    ):
        """Begins with none.

        Args:
            most: How many there may be.
            header_seconds: How long the headers of a request may take.
            idle_seconds: How long a connection may wait for its next request, or its client take to
                read an answer.
        """
        self._most = most
        self._header_seconds = header_seconds
        self._idle_seconds = idle_seconds
        self._open: dict[asyncio.BaseTransport, _Connection] = {}

    def __len__(self) -> int:
        return len(self._open)

    def guarded(self, protocol: Callable[[], asyncio.Protocol]) -> Callable[[], asyncio.Protocol]:
        """Returns a factory of protocols that are bounded, from one of those that are not."""
        return lambda: _Connection(self, protocol)

    @contextlib.contextmanager
    def request(self, transport: asyncio.BaseTransport | None) -> Iterator[None]:
        """Says that the headers of a request have come, until it is answered."""
        found = self._open.get(transport) if transport is not None else None
        if found is None:
            yield
            return
        found.stop_clock()
        try:
            yield
        finally:
            found.computing = False
            found.start_clock(self._idle_seconds, is_idle=True)

    def computing(self, transport: asyncio.BaseTransport | None) -> None:
        """Says that the body of a request has come."""
        found = self._open.get(transport) if transport is not None else None
        if found is not None:
            found.computing = True

    def _admit(self, connection: "_Connection") -> bool:
        """Returns whether there is room for a connection; makes it, if it can."""
        if len(self._open) >= self._most:
            waiting = [item for item in self._open.values() if not item.computing]
            if not waiting:
                return False
            counts = collections.Counter(item.address for item in self._open.values())
            min(waiting, key=lambda item: (-counts[item.address], item.since)).abort()
        assert connection.transport is not None
        self._open[connection.transport] = connection
        connection.start_clock(self._header_seconds)
        return True

    def _heard(self, connection: "_Connection") -> None:
        """Is told of the first bytes of a further request."""
        connection.start_clock(self._header_seconds)

    def _gone(self, connection: "_Connection") -> None:
        if connection.transport is not None:
            self._open.pop(connection.transport, None)


class _Connection(asyncio.Protocol):
    """A protocol that passes all on to another, and has a clock.

    Attributes:
        transport: The connection's.
        address: Whose it is.
        since: When its clock was set last.
        computing: Whether it waits for an answer of the model.
    """

    def __init__(self, connections: Connections, protocol: Callable[[], asyncio.Protocol]):
        self._connections = connections
        self._make, self._protocol = protocol, cast(asyncio.Protocol | None, None)
        self._timer: asyncio.TimerHandle | None = None
        self._is_idle = False
        self.transport: asyncio.Transport | None = None
        self.address, self.since, self.computing = "", 0.0, False

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
            self._connections._heard(self)
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
        self.stop_clock()
        self._connections._gone(self)
        if self._protocol is not None:
            self._protocol.connection_lost(error)

    def abort(self) -> None:
        """Ends the connection now; nobody waits for an answer of a model on it."""
        self._connections._gone(self)
        if self.transport is not None:
            self.transport.abort()

    def start_clock(self, seconds: float, *, is_idle: bool = False) -> None:
        """Ends the connection after so long, unless the clock is stopped or set again.

        Args:
            seconds: How long.
            is_idle: Whether the connection waits for its next request.
        """
        self.stop_clock()
        loop = asyncio.get_running_loop()
        self.since = loop.time()
        self._is_idle = is_idle
        self._timer = loop.call_later(seconds, self.abort)

    def stop_clock(self) -> None:
        """Lets the connection be, as long as it has something to do."""
        self._is_idle = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
