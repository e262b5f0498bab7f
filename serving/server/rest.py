"""TF Serving's REST API, Kubernetes probes and Prometheus metrics, over aiohttp.

The event loop only reads and writes. Everything that takes time with a body (decompressing it,
parsing JSON, computing) runs in threads, so that one large request does not stall the others.
"""

import asyncio
import concurrent.futures
import contextlib
import functools
import json
import logging
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import grpc
import numpy as np
from aiohttp import http_exceptions, web

from sigline.serving.server import (
    content_encoding,
    cores,
    failures,
    grpc_services,
    metrics,
    rest_bodies,
)
from sigline.serving.server.access import ApiKeys
from sigline.serving.server.buffered_bytes import Reservation
from sigline.serving.server.connections import Connections, default_max_connections
from sigline.serving.server.cors import Cors
from sigline.serving.server.engine import LoadedVersion
from sigline.serving.server.failures import RequestFailed
from sigline.serving.server.hosts import Hosts, is_own_page
from sigline.serving.server.http_listeners import HttpListeners
from sigline.serving.server.read_slots import ReadSlots
from sigline.serving.server.requests import Cancellation, Requests, Target

_ENTRYPOINT = "REST"
_MODEL = "/v1/models/{model:[^/:]+}"
# The client of a request: the name of its API key, or its address.
_CLIENT = web.RequestKey("client", str)
_IDLE_SECONDS = 75.0
# Threads that decompress bodies, and threads that may parse JSON, at a time.
_NUM_DECODERS = 2
_MAX_PARSING = 2
_UNSUPPORTED_MEDIA_TYPE = 415


def _is_server_error(record: logging.LogRecord) -> bool:
    """Returns whether a log record is about this server, not about a client's malformed request."""
    error = record.exc_info[1] if record.exc_info else None
    return not isinstance(error, http_exceptions.HttpProcessingError)


_HTTP_LOG = logging.getLogger("sigline.serving.http")
_HTTP_LOG.addFilter(_is_server_error)


class RestServer:
    """An HTTP server in a thread of its own."""

    def __init__(
        self,
        requests: Requests,
        *,
        host: str,
        port: int,
        tls: ssl.SSLContext | None,
        keys: ApiKeys,
        ready: Callable[[], bool],
        grace_seconds: float,
        allow_origins: Sequence[str] = (),
        connections: Connections | None = None,
        hosts: Hosts | None = None,
        health_port: int | None = None,
    ):
        """Binds the port; 0 takes a free one, see `port`.

        Args:
            requests: Answers requests.
            host: Address to listen at.
            port: Port to listen at.
            tls: Context of HTTPS; None for HTTP.
            keys: The valid API keys.
            ready: Returns whether the server is ready for requests.
            grace_seconds: How long requests in flight may take when the server stops.
            allow_origins: Origins whose web pages may send requests; see `Cors`.
            connections: Limits the connections; by default to `default_max_connections`.
            hosts: Host names that are accepted if there are no keys; by default all.
            health_port: Port of the probes alone, over plain HTTP; 0 takes a free one, None leaves
                it out.

        Raises:
            OSError: If the port is taken.
            ValueError: If one of `allow_origins` is not an origin.
        """
        self._requests = requests
        self._cors = Cors(allow_origins)
        self._keys = keys
        self._hosts = hosts
        self._ready = ready
        self._grace_seconds = grace_seconds
        # As many threads as admitted requests, so that none waits for a thread.
        self._pool = concurrent.futures.ThreadPoolExecutor(requests.limits.max_requests)
        # Few threads, since each keeps freed memory of up to twice the largest body. Not pinned to
        # the core of the event loop, which would have to share it.
        self._decoders = concurrent.futures.ThreadPoolExecutor(
            _NUM_DECODERS, initializer=cores.use_all
        )
        if connections is None:
            connections = Connections(default_max_connections())
        self._connections = connections
        self._read_slots = ReadSlots(requests.max_concurrent_reads)
        # Limits concurrent parsing: parsed numbers and lists take up to 25 times a body's size.
        self._parsing = threading.BoundedSemaphore(_MAX_PARSING)
        self._listeners = HttpListeners(connections)
        self.port, self.health_port = self._bind(host, port, tls, health_port)

    def _bind(
        self, host: str, port: int, tls: ssl.SSLContext | None, health_port: int | None
    ) -> tuple[int, int | None]:
        """Binds the ports and returns their numbers."""
        bound_health_port = None
        try:
            bound = self._listeners.listen(self._api_runner(), host, port, tls)
            if health_port is not None:
                probes = self._probe_runner()
                bound_health_port = self._listeners.listen(probes, host, health_port)
        except OSError as error:
            self._end()
            if health_port is None:
                raise OSError(
                    f"rest_port must be free. Received: host={host}, rest_port={port}"
                ) from error
            raise OSError(
                "rest_port and health_port must be free. "
                f"Received: host={host}, rest_port={port}, health_port={health_port}"
            ) from error
        return bound, bound_health_port

    def stop(self) -> None:
        """Accepts no more requests, and lets those in flight finish."""
        self._listeners.close(self._grace_seconds)
        self._end()

    def _end(self) -> None:
        self._listeners.end()
        self._pool.shutdown(cancel_futures=True)
        self._decoders.shutdown(cancel_futures=True)

    def _api_runner(self) -> web.AppRunner:
        app = web.Application(
            client_max_size=self._requests.limits.max_message_bytes,
            middlewares=[self._apply_cors, self._check_access],
        )
        for prefix in (
            _MODEL,
            _MODEL + r"/versions/{version:\d{1,19}}",
            _MODEL + "/labels/{label:[^/:]+}",
        ):
            app.router.add_post(prefix + ":{verb:[A-Za-z]+}", self._post)
            app.router.add_get(prefix, self._status)
            app.router.add_get(prefix + "/metadata", self._metadata)
        app.router.add_get(metrics.PATH, self._metrics)
        self._add_probes(app)
        return web.AppRunner(
            app,
            access_log=None,
            logger=_HTTP_LOG,
            handle_signals=False,
            shutdown_timeout=self._grace_seconds,
            keepalive_timeout=_IDLE_SECONDS,
            # Otherwise aiohttp decompresses bodies on the event loop, before their size is checked.
            auto_decompress=False,
            # Cancels a handler when its client leaves, so that its request is not computed.
            handler_cancellation=True,
        )

    def _probe_runner(self) -> web.AppRunner:
        """Returns what answers probes alone."""
        app = web.Application()
        self._add_probes(app)
        return web.AppRunner(app, access_log=None, logger=_HTTP_LOG, handle_signals=False)

    def _add_probes(self, app: web.Application) -> None:
        app.router.add_get("/healthz", self._healthz)
        app.router.add_get("/readyz", self._readyz)

    @web.middleware
    async def _apply_cors(self, request: web.Request, handler) -> web.StreamResponse:
        """Answers preflight requests and adds CORS headers.

        It runs before keys are checked, since browsers send preflight requests without a key.
        """
        origin = request.headers.get("Origin")
        if not self._cors.is_preflight(request.method, request.path):
            response = await handler(request)
        elif origin is None:
            # TF Serving's words.
            response = _error(400, "Origin header is missing in CORS preflight")
        elif not self._cors.allows(origin):
            response = _error(403, _refused_origin(origin))
        else:
            response = web.Response()
        response.headers.update(self._cors.headers(request.path, origin))
        return response

    @web.middleware
    async def _check_access(self, request: web.Request, handler) -> web.StreamResponse:
        """Checks the key, or else the host and origin; turns exceptions into JSON errors."""
        open_to_all = request.path in ("/healthz", "/readyz")
        headers = {name.lower(): value for name, value in request.headers.items()}
        if not open_to_all and not self._keys.allow(headers):
            self._requests.refused(request.remote or "", _ENTRYPOINT)
            return _error(401, "An API key is needed: Authorization: Bearer KEY")
        request[_CLIENT] = self._keys.name(headers) or request.remote or ""
        if not open_to_all and not self._keys and (reason := self._why_foreign(request)):
            return _error(403, reason)
        try:
            with self._connections.request(request.transport):
                return await handler(request)
        except RequestFailed as failure:
            response = _error(failure.http_status, str(failure))
            if failure.http_status == _UNSUPPORTED_MEDIA_TYPE:
                response.headers["Accept-Encoding"] = ", ".join(content_encoding.SUPPORTED)
            return response
        except web.HTTPException as error:
            return _error(error.status, f"{request.method} {request.path}: {error.reason}")
        except Exception as error:  # Clients must not see the traceback of a defect.
            return _error(500, f"The server failed: {type(error).__name__}")

    def _why_foreign(self, request: web.Request) -> str:
        """Returns why a server without keys refuses a request as a foreign page's; else ""."""
        host, origin = request.headers.get("Host"), request.headers.get("Origin")
        if self._hosts is not None and not self._hosts.allows(host):
            return f"This server has no name {host!r}; start it with --allow-host, or with API keys"
        allowed = self._cors.allows(origin)
        if origin is not None and not allowed and not is_own_page(origin, host):
            return _refused_origin(origin)
        return ""

    async def _post(self, request: web.Request) -> web.Response:
        verb, target = request.match_info["verb"].lower(), _target(request)
        if verb not in ("predict", "classify", "regress"):
            raise web.HTTPNotFound
        deadline = time.monotonic() + self._requests.limits.timeout_seconds
        with self._requests.observed(target.name, api=verb, entrypoint=_ENTRYPOINT):
            if verb != "predict":
                raise failures.invalid(
                    f"No signature of this model takes examples for {verb}; use :predict"
                )
            return await self._answer(request, target, deadline)

    async def _answer(self, request: web.Request, target: Target, deadline: float) -> web.Response:
        """Reads the body of a Predict request and computes it, while the client waits."""
        with contextlib.ExitStack() as resources:
            reservation = resources.enter_context(self._requests.buffered.reserve())
            codings = content_encoding.codings(request.headers.getall("Content-Encoding", ()))
            client = Cancellation()
            body = await self._read_slots.read(
                request[_CLIENT],
                self._body(request, reservation, deadline),
                deadline - time.monotonic(),
            )
            # Only now: a request whose body never arrives must not count against the limit.
            resources.enter_context(self._requests.admitted())
            self._connections.computing(request.transport)
            if codings:
                decode = functools.partial(
                    content_encoding.decode,
                    body,
                    codings,
                    max_bytes=self._requests.limits.max_message_bytes,
                    deadline=deadline,
                    on_grow=reservation.grow,
                    on_shrink=reservation.shrink,
                )
                # Drops this reference, so that the thread can free the compressed body.
                del body
                body = await self._ended(self._decoders.submit(decode), client)
            return await self._ended(
                self._pool.submit(self._predict, target, body, deadline, client), client
            )

    async def _ended(self, work: concurrent.futures.Future, client: Cancellation) -> Any:
        """Waits for a thread and returns its result; if the client leaves, still waits for it."""
        waiting = asyncio.wrap_future(work)
        # Reads the exception, since asyncio warns of one that nobody reads, as after a departure.
        waiting.add_done_callback(lambda done: done.cancelled() or done.exception())
        try:
            return await asyncio.shield(waiting)
        except asyncio.CancelledError:
            client.cancel()
            # The caller releases the request's resources, which the thread uses until it ends.
            await asyncio.wait([waiting])
            raise

    async def _body(
        self, request: web.Request, reservation: Reservation, deadline: float
    ) -> bytearray:
        """Reads a body without decompressing it, within the limits."""
        max_bytes = self._requests.limits.max_message_bytes
        # Refuses by the header, before any byte of the body is read.
        if (request.content_length or 0) > max_bytes:
            raise content_encoding.too_large(max_bytes)
        body = bytearray()
        try:
            async with asyncio.timeout(deadline - time.monotonic()):
                async for chunk in request.content.iter_any():
                    reservation.grow(len(chunk))
                    body += chunk
                    # A chunked body has no length in its headers.
                    if len(body) > max_bytes:
                        raise content_encoding.too_large(max_bytes)
        except TimeoutError:
            message = "The body did not arrive in time"
            raise RequestFailed(grpc.StatusCode.DEADLINE_EXCEEDED, message) from None
        except ConnectionError:
            raise failures.client_left() from None
        except web.RequestPayloadError as error:
            raise failures.invalid(f"The body cannot be read: {_first_line(error)}") from None
        return body

    def _predict(
        self, target: Target, body: bytes | bytearray, deadline: float, client: Cancellation
    ) -> web.Response:
        """Parses a body and computes the answer, in a thread."""
        with contextlib.ExitStack() as parsing:
            if not self._parsing.acquire(timeout=max(0.0, deadline - time.monotonic())):
                raise failures.deadline_passed()
            parsing.callback(self._parsing.release)
            content = rest_bodies.parse(body)
            num_rows = len(content["instances"]) if "instances" in content else None
            signature = rest_bodies.signature(content)
            target = Target(target.name, target.version, target.label, signature)

            def read(engine: LoadedVersion, name: str) -> dict[str, np.ndarray]:
                try:
                    return rest_bodies.inputs(content, engine.definition(name).inputs)
                finally:
                    # The parsed JSON is freed and the next body may be parsed, before the wait for
                    # the model.
                    content.clear()
                    parsing.close()

            answer = self._requests.predict(
                target,
                read,
                timeout_seconds=max(0.0, deadline - time.monotonic()),
                on_wait=client.watch,
            )
        return _json(rest_bodies.answer(answer.outputs, num_rows))

    async def _status(self, request: web.Request) -> web.Response:
        target = _target(request)
        with self._requests.observed(target.name, api="status", entrypoint=_ENTRYPOINT):
            response = grpc_services.status(self._requests, target)
            items = [
                {
                    "version": str(item.version),
                    "state": type(item).State.Name(item.state),
                    "status": {
                        "error_code": "UNKNOWN" if item.status.error_code else "OK",
                        "error_message": item.status.error_message,
                    },
                }
                for item in response.model_version_status
            ]
            return _json({"model_version_status": items}, indent=1)

    async def _metadata(self, request: web.Request) -> web.Response:
        target = _target(request)
        with self._requests.observed(target.name, api="metadata", entrypoint=_ENTRYPOINT):
            return web.Response(
                text=rest_bodies.metadata(grpc_services.metadata(self._requests, target)),
                content_type="application/json",
            )

    async def _metrics(self, request: web.Request) -> web.Response:
        return web.Response(
            body=self._requests.metrics.text(),
            headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"},
        )

    async def _healthz(self, request: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def _readyz(self, request: web.Request) -> web.Response:
        ready = self._ready()
        return web.Response(status=200 if ready else 503, text="ok\n" if ready else "not ready\n")


def _target(request: web.Request) -> Target:
    match = request.match_info
    version = int(match["version"]) if "version" in match else None
    return Target(match["model"], version, match.get("label", ""))


def _json(content: Any, status: int = 200, indent: int | None = None) -> web.Response:
    # Writes NaN and Infinity, which JSON does not have, as TF Serving does.
    return web.Response(
        status=status, text=json.dumps(content, indent=indent), content_type="application/json"
    )


def _refused_origin(origin: str) -> str:
    return f"Pages of {origin} may not send requests; start the server with --allow-origin"


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _error(status: int, message: str) -> web.Response:
    return _json({"error": message}, status)
