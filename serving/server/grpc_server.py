"""The gRPC front end: one event loop, so that a call that sends nothing occupies no thread.

Checks run in the order of their cost: first the API key, which is in a call's first frame, then the
message, which is read in a limited number of slots, then a thread that parses and answers it.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from grpc_health.v1 import health, health_pb2
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_management_pb2,
    model_service_pb2,
    predict_pb2,
    prediction_service_pb2,
    regression_pb2,
)

from sigline.serving.server import access, grpc_services, reflection
from sigline.serving.server.calls import Call, Pool
from sigline.serving.server.connections import GRPC_SHARE, default_max_connections
from sigline.serving.server.failures import RequestFailed
from sigline.serving.server.loop_thread import LoopThread
from sigline.serving.server.read_slots import ReadSlots
from sigline.serving.server.refusals import RefusalThrottle
from sigline.serving.server.requests import Requests

SERVICES = (
    prediction_service_pb2.DESCRIPTOR.services_by_name["PredictionService"].full_name,
    model_service_pb2.DESCRIPTOR.services_by_name["ModelService"].full_name,
)
_LOG = logging.getLogger("sigline.serving")
_START_SECONDS = 30.0
# Threads for calls that compute nothing: status, metadata, a new config.
_CONTROL_THREADS = 8
# Limits of the health and reflection services, apart from those of requests, so that probes are
# answered under load: messages that are read at a time, seconds to read one, and open streams.
_PROBE_SLOTS, _PROBE_SECONDS, _MAX_PROBE_STREAMS = 16, 10.0, 64
# Streams per connection beyond the request limit, so that excess requests get a status instead of
# waiting in the client.
_SPARE_STREAMS = 64
_IDLE_MS, _HANDSHAKE_MS, _KEEPALIVE_MS, _KEEPALIVE_TIMEOUT_MS = 120_000, 10_000, 60_000, 20_000


class GrpcServer:
    """A gRPC server in a thread of its own."""

    def __init__(
        self,
        requests: Requests,
        *,
        host: str,
        port: int,
        tls: access.Tls | None,
        keys: access.ApiKeys,
        allow_reload: bool,
        max_connections: int | None = None,
    ):
        """Binds the port; 0 takes a free one, see `port`.

        Args:
            requests: Answers requests.
            host: Address to listen at.
            port: Port to listen at.
            tls: The server's certificate; None for plain text.
            keys: The valid API keys.
            allow_reload: Whether clients may replace what is served.
            max_connections: Most connections at a time; by default a quarter of the file
                descriptors.

        Raises:
            OSError: If the port is taken.
        """
        self._max_connections = max_connections or default_max_connections(GRPC_SHARE)
        self._requests = requests
        self._keys = keys
        limits = requests.limits
        self._request_threads = Pool(limits.max_requests, "request")
        self._control_threads = Pool(_CONTROL_THREADS, "call")
        self._request_slots = ReadSlots(requests.max_concurrent_reads)
        self._probe_slots = ReadSlots(_PROBE_SLOTS)
        self._refusals = RefusalThrottle()
        self._streams = 0
        self._is_certificate_renewed = False
        self._health = _Health()
        self._answer_reflection = reflection.answers((*SERVICES, health.SERVICE_NAME))
        self._prediction = grpc_services.PredictionService(requests)
        self._models = grpc_services.ModelService(requests, allow_reload=allow_reload)
        self._thread = LoopThread("grpc")
        try:
            self.port = self._thread.call(self._listen(host, port, tls), _START_SECONDS)
        except RuntimeError as error:
            self._end()
            raise OSError(f"port must be free. Received: host={host}, port={port}") from error

    def start(self) -> None:
        """Begins to answer calls."""
        self._thread.call(self._server.start(), _START_SECONDS)

    def set_serving(self, serving: bool) -> None:
        """Sets the status that the health service reports."""
        self._thread.call(self._health.set(serving), _START_SECONDS)

    def stop(self, grace_seconds: float) -> None:
        """Accepts no more calls, and lets those in flight finish."""
        self._thread.call(self._server.stop(grace_seconds), grace_seconds + _START_SECONDS)
        self._end()

    def _end(self) -> None:
        self._thread.end()
        self._request_threads.close()
        self._control_threads.close()

    def renew_certificate(self) -> None:
        """Makes the next connection read the certificate from its files again."""
        self._is_certificate_renewed = True

    def _consume_renewal(self) -> bool:
        """Returns whether the certificate must be read again; True once for each renewal."""
        is_renewed, self._is_certificate_renewed = self._is_certificate_renewed, False
        return is_renewed

    async def _listen(self, host: str, port: int, tls: access.Tls | None) -> int:
        limits = self._requests.limits
        self._server = grpc.aio.server(
            options=(
                ("grpc.max_receive_message_length", limits.max_message_bytes),
                # Answers may be longer than requests: similarities of all pairs.
                ("grpc.max_send_message_length", -1),
                ("grpc.so_reuseport", 0),
                ("grpc.max_concurrent_streams", limits.max_requests + _SPARE_STREAMS),
                # Connections over the limit are closed at once, and take no descriptor.
                ("grpc.max_allowed_incoming_connections", self._max_connections),
                ("grpc.max_connection_idle_ms", _IDLE_MS),
                ("grpc.server_handshake_timeout_ms", _HANDSHAKE_MS),
                ("grpc.keepalive_time_ms", _KEEPALIVE_MS),
                ("grpc.keepalive_timeout_ms", _KEEPALIVE_TIMEOUT_MS),
            )
        )
        self._server.add_generic_rpc_handlers(tuple(self._handlers()))
        address = f"{host}:{port}"
        if tls is not None:
            return self._server.add_secure_port(address, tls.credentials(self._consume_renewal))
        return self._server.add_insecure_port(address)

    def _handlers(self) -> list[grpc.GenericRpcHandler]:
        prediction, models = self._prediction, self._models
        services: dict[str, dict[str, grpc.RpcMethodHandler]] = {
            SERVICES[0]: {
                "Predict": self._unary(
                    prediction.Predict, predict_pb2.PredictRequest, self._request_threads
                ),
                "GetModelMetadata": self._unary(
                    prediction.GetModelMetadata,
                    get_model_metadata_pb2.GetModelMetadataRequest,
                    self._control_threads,
                ),
                "Classify": self._unary(
                    prediction.Classify,
                    classification_pb2.ClassificationRequest,
                    self._control_threads,
                ),
                "Regress": self._unary(
                    prediction.Regress, regression_pb2.RegressionRequest, self._control_threads
                ),
            },
            SERVICES[1]: {
                "GetModelStatus": self._unary(
                    models.GetModelStatus,
                    get_model_status_pb2.GetModelStatusRequest,
                    self._control_threads,
                ),
                "HandleReloadConfigRequest": self._unary(
                    models.HandleReloadConfigRequest,
                    model_management_pb2.ReloadConfigRequest,
                    self._control_threads,
                ),
            },
            health.SERVICE_NAME: {
                "Check": grpc.stream_unary_rpc_method_handler(self._check),
                "Watch": grpc.stream_stream_rpc_method_handler(self._watch),
            },
        }
        for name in reflection.SERVICES:
            services[name] = {
                "ServerReflectionInfo": grpc.stream_stream_rpc_method_handler(self._reflect)
            }
        return [grpc.method_handlers_generic_handler(*item) for item in services.items()]

    def _unary(self, method: Callable, kind: Any, pool: Pool) -> grpc.RpcMethodHandler:
        """Returns the handler of a method that runs in a thread.

        It is registered as a stream of requests, so that its message is read only after the key
        was checked. gRPC would read the message of a unary method before its handler runs.
        """

        async def _answer(_, context) -> bytes:
            client = await self._client(context)
            remaining = context.time_remaining()
            deadline = None if remaining is None else time.monotonic() + remaining
            try:
                message = await self._message(self._request_slots, client, context)
                call = Call(context.peer(), deadline)
                return await pool.run(call, _parse_and_answer, method, kind, message, call)
            except RequestFailed as failure:
                await context.abort(failure.code, str(failure))
                raise

        return grpc.stream_unary_rpc_method_handler(_answer)

    async def _message(self, slots: ReadSlots, client: str, context) -> bytes:
        remaining = context.time_remaining()
        limit = self._requests.limits.timeout_seconds
        if slots is self._probe_slots:
            limit = _PROBE_SECONDS
        seconds = limit if remaining is None else min(limit, remaining)
        message = await slots.read(client, context.read(), seconds)
        if message is grpc.aio.EOF:
            raise RequestFailed(
                grpc.StatusCode.INVALID_ARGUMENT,
                "The call must send a message. Received: none",
            )
        return message

    async def _client(self, context) -> str:
        """Returns the name of a call's key, or its address; refuses calls without a valid key."""
        headers: Mapping[str, str] = {
            key: value if isinstance(value, str) else ""
            for key, value in context.invocation_metadata()
        }
        address = _address(context.peer())
        if not self._keys.allow(headers):
            self._requests.refused(address, "GRPC")
            await self._refusals.wait_for_turn(address)
            await context.abort(
                grpc.StatusCode.UNAUTHENTICATED, "An API key is needed: authorization: Bearer KEY"
            )
        return self._keys.name(headers) or address

    async def _check(self, _, context) -> bytes:
        try:
            message = await self._message(self._probe_slots, _address(context.peer()), context)
            service = health_pb2.HealthCheckRequest.FromString(message).service
        except RequestFailed as failure:
            await context.abort(failure.code, str(failure))
            raise
        if service not in self._health.services:
            await context.abort(grpc.StatusCode.NOT_FOUND, "")
        return health_pb2.HealthCheckResponse(status=self._health.now).SerializeToString()

    async def _watch(self, _, context) -> AsyncIterator[bytes]:
        async with self._stream(context):
            message = await self._message(self._probe_slots, _address(context.peer()), context)
            service = health_pb2.HealthCheckRequest.FromString(message).service
            if service not in self._health.services:
                unknown = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
                yield health_pb2.HealthCheckResponse(status=unknown).SerializeToString()
                # The health protocol keeps the stream open: the service might be added later.
                await asyncio.Event().wait()
            async for status in self._health.changes():
                yield health_pb2.HealthCheckResponse(status=status).SerializeToString()

    async def _reflect(self, _, context) -> AsyncIterator[bytes]:
        client = await self._client(context)
        async with self._stream(context):
            while True:
                slots = self._probe_slots
                message = await slots.read(client, context.read(), _PROBE_SECONDS)
                if message is grpc.aio.EOF:
                    return
                yield self._answer_reflection(message)

    @contextlib.asynccontextmanager
    async def _stream(self, context) -> AsyncIterator[None]:
        """Counts an open stream; aborts the call if there are too many."""
        if self._streams >= _MAX_PROBE_STREAMS:
            await context.abort(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                f"More than {_MAX_PROBE_STREAMS} streams at a time; open it again later",
            )
        self._streams += 1
        try:
            yield
        except RequestFailed as failure:
            await context.abort(failure.code, str(failure))
        finally:
            self._streams -= 1


class _Health:
    """The status that the health service reports, and its changes."""

    services: Sequence[str] = ("", *SERVICES)

    def __init__(self) -> None:
        self.now = health_pb2.HealthCheckResponse.NOT_SERVING
        self._changed: asyncio.Event | None = None

    async def set(self, serving: bool) -> None:
        kinds = health_pb2.HealthCheckResponse
        self.now = kinds.SERVING if serving else kinds.NOT_SERVING
        if self._changed is not None:
            self._changed.set()

    async def changes(self) -> AsyncIterator[Any]:
        """Yields the current status, and then each new one."""
        known = None
        while True:
            if self._changed is None or self._changed.is_set():
                self._changed = asyncio.Event()
            changed = self._changed
            if self.now != known:
                known = self.now
                yield known
            await changed.wait()


def _parse_and_answer(method: Callable, kind: Any, message: bytes, call: Call) -> bytes:
    try:
        request = kind.FromString(message)
    except DecodeError:
        raise RequestFailed(
            grpc.StatusCode.INVALID_ARGUMENT,
            f"The message must be a {kind.DESCRIPTOR.name}. Received: {len(message)} other bytes",
        ) from None
    return method(request, call).SerializeToString()


def _address(peer: str) -> str:
    """Returns the address of a peer without its port."""
    return peer.rpartition(":")[0] if peer.startswith(("ipv4:", "ipv6:")) else peer
