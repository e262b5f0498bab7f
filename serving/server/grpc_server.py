"""The gRPC front end: one event loop, so that a call that sends nothing costs no thread.

A call is looked at in the order of what it costs: its key from its first frame, then its message,
for which it has a place for a while, then a thread that reads and answers it.
"""

import asyncio
import contextlib
import logging
import threading
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
from sigline.serving.server.connections import GRPC_SHARE, most_connections
from sigline.serving.server.failures import RequestFailed
from sigline.serving.server.reading import Reading
from sigline.serving.server.refusals import Refusals
from sigline.serving.server.requests import Requests

SERVICES = (
    prediction_service_pb2.DESCRIPTOR.services_by_name["PredictionService"].full_name,
    model_service_pb2.DESCRIPTOR.services_by_name["ModelService"].full_name,
)
_LOG = logging.getLogger("sigline.serving")
_START_SECONDS = 30.0
# Threads of what is not computed: status, metadata, a new config.
_OTHER_THREADS = 8
# Messages of health and reflection that are read at a time, how long they may take, and streams of
# them that are open at a time.
_OPEN_PLACES, _OPEN_SECONDS, _OPEN_STREAMS = 16, 10.0, 64
# Beyond what is let in, so that a client learns that there is no room.
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
            requests: What answers.
            host: Address to listen at.
            port: Port to listen at.
            tls: The server's certificate; None for plain text.
            keys: The keys that are known.
            allow_reload: Whether clients may replace what is served.
            max_connections: Most connections at a time; by default a quarter of the descriptors.

        Raises:
            OSError: If the port is taken.
        """
        self._max_connections = max_connections or most_connections(GRPC_SHARE)
        self._requests = requests
        self._keys = keys
        limits = requests.limits
        self._computing = Pool(limits.max_requests, "request")
        self._others = Pool(_OTHER_THREADS, "call")
        self._messages = Reading(requests.places_for_messages)
        self._open_messages = Reading(_OPEN_PLACES)
        self._refusals = Refusals()
        self._streams = 0
        self._renewed = False
        self._status = _Status()
        self._described = reflection.answers((*SERVICES, health.SERVICE_NAME))
        self._prediction = grpc_services.PredictionService(requests)
        self._models = grpc_services.ModelService(requests, allow_reload=allow_reload)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="grpc", daemon=True)
        self._thread.start()
        try:
            self.port = self._call(self._listen(host, port, tls), _START_SECONDS)
        except RuntimeError as error:
            self._end()
            raise OSError(f"port must be free. Received: host={host}, port={port}") from error

    def start(self) -> None:
        """Begins to answer."""
        self._call(self._server.start(), _START_SECONDS)

    def set_serving(self, serving: bool) -> None:
        """Says to those who ask for its health whether it serves."""
        self._call(self._status.set(serving), _START_SECONDS)

    def stop(self, grace_seconds: float) -> None:
        """Takes no more calls, and lets those in flight finish."""
        self._call(self._server.stop(grace_seconds), grace_seconds + _START_SECONDS)
        self._end()

    def _end(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._computing.close()
        self._others.close()

    def _call(self, work: Any, timeout: float) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout)

    def renew_certificate(self) -> None:
        """Has the next connection get the certificate that the files hold now."""
        self._renewed = True

    def _is_renewed(self) -> bool:
        renewed, self._renewed = self._renewed, False
        return renewed

    async def _listen(self, host: str, port: int, tls: access.Tls | None) -> int:
        limits = self._requests.limits
        self._server = grpc.aio.server(
            options=(
                ("grpc.max_receive_message_length", limits.max_message_bytes),
                # What is answered may be longer than what was asked: similarities.
                ("grpc.max_send_message_length", -1),
                ("grpc.so_reuseport", 0),
                ("grpc.max_concurrent_streams", limits.max_requests + _SPARE_STREAMS),
                # Those that are over it are closed at once, and cost no descriptor.
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
            return self._server.add_secure_port(address, tls.credentials(self._is_renewed))
        return self._server.add_insecure_port(address)

    def _handlers(self) -> list[grpc.GenericRpcHandler]:
        answered, others = self._prediction, self._models
        services: dict[str, dict[str, grpc.RpcMethodHandler]] = {
            SERVICES[0]: {
                "Predict": self._unary(
                    answered.Predict, predict_pb2.PredictRequest, self._computing
                ),
                "GetModelMetadata": self._unary(
                    answered.GetModelMetadata,
                    get_model_metadata_pb2.GetModelMetadataRequest,
                    self._others,
                ),
                "Classify": self._unary(
                    answered.Classify, classification_pb2.ClassificationRequest, self._others
                ),
                "Regress": self._unary(
                    answered.Regress, regression_pb2.RegressionRequest, self._others
                ),
            },
            SERVICES[1]: {
                "GetModelStatus": self._unary(
                    others.GetModelStatus,
                    get_model_status_pb2.GetModelStatusRequest,
                    self._others,
                ),
                "HandleReloadConfigRequest": self._unary(
                    others.HandleReloadConfigRequest,
                    model_management_pb2.ReloadConfigRequest,
                    self._others,
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

        Its message is read by hand: what is refused before is not read at all.
        """

        async def _answer(_, context) -> bytes:
            client = await self._client(context)
            remaining = context.time_remaining()
            deadline = None if remaining is None else time.monotonic() + remaining
            try:
                message = await self._message(self._messages, client, context)
                call = Call(context.peer(), deadline)
                return await pool.run(call, _answer_of, method, kind, message, call)
            except RequestFailed as failure:
                await context.abort(failure.code, str(failure))
                raise

        return grpc.stream_unary_rpc_method_handler(_answer)

    async def _message(self, places: Reading, client: str, context) -> bytes:
        remaining = context.time_remaining()
        most = self._requests.limits.timeout_seconds
        if places is self._open_messages:
            most = _OPEN_SECONDS
        seconds = most if remaining is None else min(most, remaining)
        message = await places.read(client, context.read(), seconds)
        if message is grpc.aio.EOF:
            raise RequestFailed(
                grpc.StatusCode.INVALID_ARGUMENT, "The call ended without a message"
            )
        return message

    async def _client(self, context) -> str:
        """Returns who calls; refuses who has no key."""
        headers: Mapping[str, str] = {
            key: value if isinstance(value, str) else ""
            for key, value in context.invocation_metadata()
        }
        address = _address(context.peer())
        if not self._keys.allow(headers):
            self._requests.refused(address, "GRPC")
            await self._refusals.turn(address)
            await context.abort(
                grpc.StatusCode.UNAUTHENTICATED, "An API key is needed: authorization: Bearer KEY"
            )
        return self._keys.name(headers) or address

    async def _check(self, _, context) -> bytes:
        try:
            message = await self._message(self._open_messages, _address(context.peer()), context)
            asked = health_pb2.HealthCheckRequest.FromString(message).service
        except RequestFailed as failure:
            await context.abort(failure.code, str(failure))
            raise
        if asked not in self._status.services:
            await context.abort(grpc.StatusCode.NOT_FOUND, "")
        return health_pb2.HealthCheckResponse(status=self._status.now).SerializeToString()

    async def _watch(self, _, context) -> AsyncIterator[bytes]:
        async with self._stream(context):
            message = await self._message(self._open_messages, _address(context.peer()), context)
            asked = health_pb2.HealthCheckRequest.FromString(message).service
            if asked not in self._status.services:
                unknown = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
                yield health_pb2.HealthCheckResponse(status=unknown).SerializeToString()
                # As the protocol has it: the service might come.
                await asyncio.Event().wait()
            async for status in self._status.changes():
                yield health_pb2.HealthCheckResponse(status=status).SerializeToString()

    async def _reflect(self, _, context) -> AsyncIterator[bytes]:
        client = await self._client(context)
        async with self._stream(context):
            while True:
                reading = self._open_messages.read(client, context.read(), _OPEN_SECONDS)
                message = await reading
                if message is grpc.aio.EOF:
                    return
                yield self._described(message)

    @contextlib.asynccontextmanager
    async def _stream(self, context) -> AsyncIterator[None]:
        """Takes one of the places of streams."""
        if self._streams >= _OPEN_STREAMS:
            await context.abort(
                grpc.StatusCode.RESOURCE_EXHAUSTED, f"More than {_OPEN_STREAMS} streams at a time"
            )
        self._streams += 1
        try:
            yield
        except RequestFailed as failure:
            await context.abort(failure.code, str(failure))
        finally:
            self._streams -= 1


class _Status:
    """Whether the server serves, for those who ask for its health."""

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
        """Yields how it is now, and then each time it is otherwise."""
        known = None
        while True:
            if self._changed is None or self._changed.is_set():
                self._changed = asyncio.Event()
            changed = self._changed
            if self.now != known:
                known = self.now
                yield known
            await changed.wait()


def _answer_of(method: Callable, kind: Any, message: bytes, call: Call) -> bytes:
    try:
        request = kind.FromString(message)
    except DecodeError:
        raise RequestFailed(
            grpc.StatusCode.INVALID_ARGUMENT, f"The message is no {kind.DESCRIPTOR.name}"
        ) from None
    return method(request, call).SerializeToString()


def _address(peer: str) -> str:
    """Returns the address of a peer without its port."""
    return peer.rpartition(":")[0] if peer.startswith(("ipv4:", "ipv6:")) else peer
