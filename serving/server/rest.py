"""TF Serving's REST API, the probes of Kubernetes and the figures for Prometheus, over aiohttp."""

import asyncio
import base64
import concurrent.futures
import contextlib
import functools
import json
import logging
import ssl
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import grpc
import numpy as np
from aiohttp import http_exceptions, web
from google.protobuf import json_format
from tensorflow_serving.apis import get_model_metadata_pb2

from sigline.serving.protocol import tensors
from sigline.serving.server import (
    content_encoding,
    cores,
    failures,
    grpc_services,
    lenient_base64,
    metrics,
)
from sigline.serving.server.access import ApiKeys
from sigline.serving.server.buffered_bytes import Holding
from sigline.serving.server.connections import Connections, most_connections
from sigline.serving.server.cors import Cors
from sigline.serving.server.engine import LoadedVersion
from sigline.serving.server.failures import RequestFailed
from sigline.serving.server.hosts import Hosts, is_own_page
from sigline.serving.server.reading import Reading
from sigline.serving.server.requests import Departure, Requests, Target

_ENTRYPOINT = "REST"
_MODEL = "/v1/models/{model:[^/:]+}"
_BASE64 = "b64"
_BYTES_SUFFIX = "_bytes"
_START_SECONDS = 30.0
# Who asks: the name of a key, or an address.
_CLIENT = web.RequestKey("client", str)
_IDLE_SECONDS, _HANDSHAKE_SECONDS, _BACKLOG = 75.0, 10.0, 512
_DECODERS = 2
_MOST_PARSED = 2
# Lists and objects of a body, and values: as many as 1,024 vectors of 2,048 numbers.
_MOST_NESTED, _MOST_VALUES = 65_536, 2_097_152
_UNSUPPORTED_MEDIA_TYPE = 415


def _is_ours(record: logging.LogRecord) -> bool:
    """Returns whether a record is about this server, not about what a client sent."""
    error = record.exc_info[1] if record.exc_info else None
    return not isinstance(error, http_exceptions.HttpProcessingError)


_HTTP_LOG = logging.getLogger("sigline.serving.http")
_HTTP_LOG.addFilter(_is_ours)


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
            requests: What answers.
            host: Address to listen at.
            port: Port to listen at.
            tls: For HTTPS; None for HTTP.
            keys: The keys that are known.
            ready: Whether the server takes requests.
            grace_seconds: How long requests in flight may take when it stops.
            allow_origins: Origins whose web pages may ask; see `Cors`.
            connections: Bounds them; by default as many as `most_connections` tells.
            hosts: By which names it may be asked where there are no keys; by default by all.
            health_port: Port of the probes alone, over plain HTTP; 0 takes a free one, None leaves
                it out.

        Raises:
            OSError: If the port is taken.
            ValueError: If one of `allow_origins` is no origin.
        """
        self._requests = requests
        self._cors = Cors(allow_origins)
        self._keys = keys
        self._hosts = hosts
        self.health_port: int | None = None
        self._ready = ready
        self._grace_seconds = grace_seconds
        # As many as are let in, so that none waits for a thread.
        self._pool = concurrent.futures.ThreadPoolExecutor(requests.limits.max_requests)
        # Few, since a thread keeps what it has freed, up to twice the largest body. They use all
        # cores: the one that receives and answers is not theirs alone.
        self._decoders = concurrent.futures.ThreadPoolExecutor(_DECODERS, initializer=cores.use_all)
        if connections is None:
            connections = Connections(most_connections())
        self._connections = connections
        self._reading = Reading(requests.places_for_messages)
        self._loop = asyncio.new_event_loop()
        # As many as parse at a time: a body of numbers or lists takes up to 25 times its size.
        self._parsing = threading.BoundedSemaphore(_MOST_PARSED)
        self._runner = web.AppRunner(
            self._app(),
            access_log=None,
            logger=_HTTP_LOG,
            handle_signals=False,
            shutdown_timeout=grace_seconds,
            keepalive_timeout=_IDLE_SECONDS,
            # aiohttp would decompress a body on the event loop, before its size is checked.
            auto_decompress=False,
            # So that what a client no longer waits for is not computed.
            handler_cancellation=True,
        )
        probes = web.Application()
        self._add_probes(probes)
        self._probes = web.AppRunner(
            probes, access_log=None, logger=_HTTP_LOG, handle_signals=False
        )
        self._listeners: list[asyncio.Server] = []
        self._thread = threading.Thread(target=self._loop.run_forever, name="rest", daemon=True)
        self._thread.start()
        try:
            self.port = self._call(self._listen(self._runner, host, port, tls), _START_SECONDS)
            if health_port is not None:
                self.health_port = self._call(
                    self._listen(self._probes, host, health_port, None), _START_SECONDS
                )
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

    def stop(self) -> None:
        """Takes no more requests, and lets those in flight finish."""
        self._call(self._unlisten(), self._grace_seconds + _START_SECONDS)
        self._end()

    def _end(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._pool.shutdown(cancel_futures=True)
        self._decoders.shutdown(cancel_futures=True)

    def _call(self, work: Any, timeout: float) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout)

    async def _listen(
        self, runner: web.AppRunner, host: str, port: int, tls: ssl.SSLContext | None
    ) -> int:
        await runner.setup()
        protocol = runner.server
        assert protocol is not None
        # Not a site of aiohttp's, which knows neither a bound on connections nor one on headers.
        listener = await self._loop.create_server(
            self._connections.guarded(protocol),
            host,
            port,
            ssl=tls,
            ssl_handshake_timeout=_HANDSHAKE_SECONDS if tls else None,
            backlog=_BACKLOG,
        )
        self._listeners.append(listener)
        return listener.sockets[0].getsockname()[1]

    async def _unlisten(self) -> None:
        for listener in self._listeners:
            listener.close()
        await self._runner.cleanup()
        await self._probes.cleanup()

    def _app(self) -> web.Application:
        app = web.Application(
            client_max_size=self._requests.limits.max_message_bytes,
            middlewares=[self._pages, self._failures],
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
        return app

    def _add_probes(self, app: web.Application) -> None:
        app.router.add_get("/healthz", self._healthz)
        app.router.add_get("/readyz", self._readyz)

    @web.middleware
    async def _pages(self, request: web.Request, handler) -> web.StreamResponse:
        """Tells browsers which pages may ask; before keys, which they do not show at first."""
        origin = request.headers.get("Origin")
        if not self._cors.is_preflight(request.method, request.path):
            response = await handler(request)
        elif origin is None:
            response = _error(400, "Origin header is missing in CORS preflight")
        elif not self._cors.allows(origin):
            response = _error(403, f"Pages of {origin} may not ask; start with --allow-origin")
        else:
            response = web.Response()
        response.headers.update(self._cors.headers(request.path, origin))
        return response

    @web.middleware
    async def _failures(self, request: web.Request, handler) -> web.StreamResponse:
        open_to_all = request.path in ("/healthz", "/readyz")
        headers = {name.lower(): value for name, value in request.headers.items()}
        if not open_to_all and not self._keys.allow(headers):
            self._requests.refused(request.remote or "", _ENTRYPOINT)
            return _error(401, "An API key is needed: Authorization: Bearer KEY")
        request[_CLIENT] = self._keys.name(headers) or request.remote or ""
        if not open_to_all and not self._keys and (reason := self._stranger(request)):
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
        except Exception as error:  # A defect of ours must not show its trace.
            return _error(500, f"The server failed: {type(error).__name__}")

    def _stranger(self, request: web.Request) -> str:
        """Returns why a page of someone else's may not ask a server without keys."""
        host, origin = request.headers.get("Host"), request.headers.get("Origin")
        if self._hosts is not None and not self._hosts.allows(host):
            return f"This server may not be asked as {host!r}; start with --allow-host, or keys"
        allowed = self._cors.allows(origin)
        if origin is not None and not allowed and not is_own_page(origin, host):
            return f"Pages of {origin} may not ask; start with --allow-origin"
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
        """Reads the body of a Predict request, and has it computed while the client waits."""
        with contextlib.ExitStack() as places:
            held = places.enter_context(self._requests.buffered.holding())
            codings = content_encoding.codings(request.headers.getall("Content-Encoding", ()))
            client = Departure()
            body = await self._reading.read(
                request[_CLIENT],
                self._body(request, held, deadline),
                deadline - time.monotonic(),
            )
            places.enter_context(self._requests.admitted())
            self._connections.computing(request.transport)
            if codings:
                decode = functools.partial(
                    content_encoding.decode,
                    body,
                    codings,
                    max_bytes=self._requests.limits.max_message_bytes,
                    deadline=deadline,
                    grew=held.take,
                    shrank=held.free,
                )
                del body
                body = await self._ended(self._decoders.submit(decode), client)
            return await self._ended(
                self._pool.submit(self._predict, target, body, deadline, client), client
            )

    async def _ended(self, work: concurrent.futures.Future, client: Departure) -> Any:
        """Returns the result of a thread; if the client leaves, when it has ended."""
        waiting = asyncio.wrap_future(work)
        # Nobody reads its failure once the client has left.
        waiting.add_done_callback(lambda done: done.cancelled() or done.exception())
        try:
            return await asyncio.shield(waiting)
        except asyncio.CancelledError:
            client.leave()
            # Its place and its bytes are free when its thread is.
            await asyncio.wait([waiting])
            raise

    async def _body(self, request: web.Request, held: Holding, deadline: float) -> bytearray:
        """Reads a body as it came, within the limits."""
        most = self._requests.limits.max_message_bytes
        if (request.content_length or 0) > most:
            raise content_encoding.too_large(most)
        body = bytearray()
        try:
            async with asyncio.timeout(deadline - time.monotonic()):
                async for piece in request.content.iter_any():
                    held.take(len(piece))
                    body += piece
                    if len(body) > most:
                        raise content_encoding.too_large(most)
        except TimeoutError:
            message = "The body did not arrive in time"
            raise RequestFailed(grpc.StatusCode.DEADLINE_EXCEEDED, message) from None
        except ConnectionError:
            raise failures.client_left() from None
        except web.RequestPayloadError as error:
            raise failures.invalid(f"The body cannot be read: {_first_line(error)}") from None
        return body

    def _predict(
        self, target: Target, body: bytes | bytearray, deadline: float, client: Departure
    ) -> web.Response:
        with contextlib.ExitStack() as parsing:
            if not self._parsing.acquire(timeout=max(0.0, deadline - time.monotonic())):
                raise failures.late()
            parsing.callback(self._parsing.release)
            content = _parsed(body)
            num_rows = len(content["instances"]) if "instances" in content else None
            target = Target(target.name, target.version, target.label, _signature(content))

            def read(engine: LoadedVersion, signature: str) -> dict[str, np.ndarray]:
                try:
                    return _inputs(content, engine.definition(signature).inputs)
                finally:
                    content.clear()
                    parsing.close()

            answer = self._requests.predict(
                target,
                read,
                timeout_seconds=max(0.0, deadline - time.monotonic()),
                on_wait=client.watch,
            )
        return _predictions(answer.outputs, num_rows)

    async def _status(self, request: web.Request) -> web.Response:
        target = _target(request)
        with self._requests.observed(target.name, api="status", entrypoint=_ENTRYPOINT):
            found = grpc_services.status(self._requests, target)
            items = [
                {
                    "version": str(item.version),
                    "state": type(item).State.Name(item.state),
                    "status": {
                        "error_code": "UNKNOWN" if item.status.error_code else "OK",
                        "error_message": item.status.error_message,
                    },
                }
                for item in found.model_version_status
            ]
            return _json({"model_version_status": items}, indent=1)

    async def _metadata(self, request: web.Request) -> web.Response:
        target = _target(request)
        with self._requests.observed(target.name, api="metadata", entrypoint=_ENTRYPOINT):
            return web.Response(
                text=_metadata_text(grpc_services.metadata(self._requests, target)),
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


def _predictions(values: Mapping[str, np.ndarray], num_rows: int | None) -> web.Response:
    """Returns the answer in rows, or in columns if `num_rows` is None."""
    outputs = {name: _jsonable(name, value) for name, value in values.items()}
    if num_rows is None:
        return _json({"outputs": outputs if len(outputs) > 1 else next(iter(outputs.values()))})
    for name, value in outputs.items():
        if not isinstance(value, list) or len(value) != num_rows:
            raise failures.invalid(
                f"Output {name} has no row for each instance; send `inputs` instead"
            )
    if len(outputs) == 1:
        return _json({"predictions": next(iter(outputs.values()))})
    rows = zip(*outputs.values(), strict=True)
    return _json({"predictions": [dict(zip(outputs, row, strict=True)) for row in rows]})


def _target(request: web.Request) -> Target:
    found = request.match_info
    version = int(found["version"]) if "version" in found else None
    return Target(found["model"], version, found.get("label", ""))


def _parsed(body: bytes | bytearray) -> dict[str, Any]:
    # Python's lock is held for all of a body, and lists of nothing take long: they are counted
    # first. Texts may hold such characters too, and seldom so many.
    nested, values = body.count(b"[") + body.count(b"{"), body.count(b",")
    if nested > _MOST_NESTED or values > _MOST_VALUES:
        raise failures.invalid(
            f"JSON may hold {_MOST_NESTED} lists and objects, and {_MOST_VALUES} values. "
            f"Received: about {nested} and {values}"
        )
    try:
        content = json.loads(body)
    except RecursionError:
        raise failures.invalid("JSON Parse error: nested too deeply") from None
    except ValueError as error:
        raise failures.invalid(f"JSON Parse error: {error}") from None
    if not isinstance(content, dict):
        raise failures.invalid("The body must be a JSON object")
    if ("instances" in content) == ("inputs" in content):
        raise failures.invalid('The body must have either "instances" or "inputs"')
    if "instances" in content and not (
        isinstance(content["instances"], list) and content["instances"]
    ):
        raise failures.invalid('"instances" must be a list that is not empty')
    return content


def _signature(content: dict[str, Any]) -> str:
    name = content.get("signature_name", "")
    if not isinstance(name, str):
        raise failures.invalid("signature_name must be a string")
    return name


def _inputs(content: dict[str, Any], wanted: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Returns the inputs of a request by name, from rows or from columns."""
    if "instances" in content:
        columns = _columns(content["instances"], wanted)
    else:
        columns = content["inputs"]
        if not isinstance(columns, dict) or (_BASE64 in columns and len(columns) == 1):
            columns = {_only(wanted): columns}
    found = {}
    for name, value in columns.items():
        dtype = wanted[name].dtype if name in wanted else tensors.STRING
        found[name] = _array(name, value, dtype)
    return found


def _columns(rows: list[Any], wanted: Mapping[str, Any]) -> dict[str, Any]:
    def is_named(row: Any) -> bool:
        return isinstance(row, dict) and not (_BASE64 in row and len(row) == 1)

    if not is_named(rows[0]):
        if any(is_named(row) for row in rows):
            raise ValueError("instances must all be objects, or none of them")
        return {_only(wanted): rows}
    names = rows[0].keys()
    if any(not is_named(row) or row.keys() != names for row in rows):
        raise ValueError(f"every instance must have the same names: {', '.join(names)}")
    return {name: [row[name] for row in rows] for name in names}


def _only(wanted: Mapping[str, Any]) -> str:
    if len(wanted) != 1:
        raise ValueError(f"inputs must be named: {', '.join(sorted(wanted))}")
    return next(iter(wanted))


def _array(name: str, value: Any, dtype: int) -> np.ndarray:
    if dtype != tensors.STRING:
        # As objects first: an array of texts would take the longest one's place for each.
        array = np.array(value, dtype=object)
        if not all(isinstance(x, bool | int | float) for x in array.ravel()):
            raise ValueError(f"input {name} must hold numbers, in a regular shape")
        return tensors.as_type(array, dtype)
    # Two axes are more than any signature has; deeper is not worth walking.
    rows = value if isinstance(value, list) else [value]
    if any(isinstance(row, list) for row in rows):
        raise ValueError(f"input {name} must be a list of strings")
    array = np.empty(len(rows), object)
    array[:] = [_string(name, row) for row in rows]
    return array if isinstance(value, list) else array.reshape(())


def _string(name: str, value: Any) -> bytes:
    if isinstance(value, str):
        # Half of a surrogate pair is no text.
        return value.encode("utf-8", errors="replace")
    if isinstance(value, dict) and list(value) == [_BASE64] and isinstance(value[_BASE64], str):
        try:
            return lenient_base64.decode(value[_BASE64])
        except ValueError as error:
            raise ValueError(f"input {name} holds no base64: {error}") from None
    raise ValueError(f'input {name} must hold strings, or {{"{_BASE64}": ...}} for bytes')


def _jsonable(name: str, value: np.ndarray) -> Any:
    if value.dtype != object:
        return value.tolist()
    if name.endswith(_BYTES_SUFFIX):
        coded = [{_BASE64: base64.b64encode(x).decode()} for x in value.ravel()]
    else:
        coded = [x.decode(errors="replace") for x in value.ravel()]
    array = np.empty(value.size, object)
    array[:] = coded
    return array.reshape(value.shape).tolist()


def _metadata_text(response: get_model_metadata_pb2.GetModelMetadataResponse) -> str:
    """Returns metadata as TF Serving prints it: unpacked, with the fields that are empty."""
    signatures = get_model_metadata_pb2.SignatureDefMap()
    response.metadata["signature_def"].Unpack(signatures)
    spec, signatures = (
        json_format.MessageToJson(
            message,
            preserving_proto_field_name=True,
            always_print_fields_with_no_presence=True,
            indent=1,
        )
        for message in (response.model_spec, signatures)
    )
    return f'{{\n"model_spec":{spec},\n"metadata": {{"signature_def": {signatures}}}\n}}\n'


def _json(content: Any, status: int = 200, indent: int | None = None) -> web.Response:
    # NaN and Infinity as TF Serving writes them.
    return web.Response(
        status=status, text=json.dumps(content, indent=indent), content_type="application/json"
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _error(status: int, message: str) -> web.Response:
    return _json({"error": message}, status)
