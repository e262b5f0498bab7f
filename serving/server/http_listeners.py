"""Listens for HTTP connections, on an event loop in a thread of its own."""

import asyncio
import ssl

from aiohttp import web

from sigline.serving.server.connections import Connections
from sigline.serving.server.loop_thread import LoopThread

_START_SECONDS = 30.0
_HANDSHAKE_SECONDS, _BACKLOG = 10.0, 512


class HttpListeners:
    """Ports that are listened at, each for an application of its own."""

    def __init__(self, connections: Connections):
        """Starts the thread.

        Args:
            connections: Limits the connections to all ports together.
        """
        self._connections = connections
        self._runners: list[web.AppRunner] = []
        self._listeners: list[asyncio.Server] = []
        self._thread = LoopThread("rest")

    def listen(
        self, runner: web.AppRunner, host: str, port: int, tls: ssl.SSLContext | None = None
    ) -> int:
        """Starts to listen at a port and returns its number; 0 takes a free one.

        Args:
            runner: Answers the requests.
            host: Address to listen at.
            port: Port to listen at.
            tls: Context of HTTPS; None for HTTP.

        Raises:
            OSError: If the port is taken.
        """
        self._runners.append(runner)
        return self._thread.call(self._listen(runner, host, port, tls), _START_SECONDS)

    async def _listen(
        self, runner: web.AppRunner, host: str, port: int, tls: ssl.SSLContext | None
    ) -> int:
        await runner.setup()
        protocol = runner.server
        assert protocol is not None
        # aiohttp's own sites limit neither the connections nor the time for headers.
        listener = await self._thread.loop.create_server(
            self._connections.guarded(protocol),
            host,
            port,
            ssl=tls,
            ssl_handshake_timeout=_HANDSHAKE_SECONDS if tls else None,
            backlog=_BACKLOG,
        )
        self._listeners.append(listener)
        return listener.sockets[0].getsockname()[1]

    def close(self, grace_seconds: float) -> None:
        """Accepts no more requests, and lets those in flight finish."""
        self._thread.call(self._close(), grace_seconds + _START_SECONDS)

    async def _close(self) -> None:
        for listener in self._listeners:
            listener.close()
        for runner in self._runners:
            await runner.cleanup()

    def end(self) -> None:
        """Ends the thread."""
        self._thread.end()
