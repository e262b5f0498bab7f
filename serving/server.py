"""A server for one machine that speaks TF Serving's protocols, gRPC and REST.

It answers with the status codes of TF Serving, so that one client and one test work against both.
It has what TF Serving leaves to others: limits, keys, a drain; and a folder that is damaged or half
copied does not take away what serves.
"""

import contextlib
import json
import logging
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent import futures
from dataclasses import dataclass, field
from pathlib import Path

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from tensorflow_serving.apis import (
    model_service_pb2,
    model_service_pb2_grpc,
    prediction_service_pb2,
    prediction_service_pb2_grpc,
)

from sigline.serving import access, cores, grpc_services, model_config, reflection, signing
from sigline.serving.batching import BatchingConfig
from sigline.serving.failures import RequestFailed
from sigline.serving.metrics import Metrics
from sigline.serving.model_config import ModelConfig
from sigline.serving.requests import Limits, Requests
from sigline.serving.rest import RestServer
from sigline.serving.served_models import ServedModels

DEFAULT_MODEL_NAME = "sigline"
DEFAULT_PORT = 8500
DEFAULT_REST_PORT = 8501
# Threads for health, status and reflection while all others are busy.
_SPARE_THREADS = 8
_LOG = logging.getLogger("sigline.serving")
_WARNINGS = (
    "load_failed",
    "no_versions",
    "folder_not_read",
    "look_failed",
    "config_refused",
    "model_not_served",
    "version_overwritten",
)
_SERVICES = (
    prediction_service_pb2.DESCRIPTOR.services_by_name["PredictionService"].full_name,
    model_service_pb2.DESCRIPTOR.services_by_name["ModelService"].full_name,
)


@dataclass(frozen=True)
class ServerConfig:
    """How a server serves.

    Attributes:
        models: What it serves.
        model_config_file: File that `models` were read from, to be read again when it changes.
        host: Address to listen at.
        port: Of gRPC; 0 takes a free one.
        rest_port: Of REST, probes and figures; 0 takes a free one, None leaves it out.
        limits: What a request may be.
        batching: How requests are computed together.
        one_core: Whether the threads that receive and answer stay on one core; models are computed
            on all.
        intra_op_parallelism: Most threads that share an operation of a model, 0 for one a core; by
            default one for a version whose weights take less than 32 MiB, else one a core.
        poll_seconds: Time between two looks at the folders of versions.
        tls: Its certificate; None for plain text.
        verify_key: File of public keys by one of which versions must be signed; None for no such.
        api_keys: Keys of which a request must hold one; none by default.
        allow_origins: Origins whose web pages may ask over REST; `*` for all, by default none.
        allow_reload: Whether clients may replace what is served, and so read any folder.
        log_requests: Whether every request is logged.
        lame_duck_seconds: How long it goes on after it has said that it stops, so that those who
            send requests learn of it.
        grace_seconds: How long requests in flight may take then.
    """

    models: tuple[ModelConfig, ...]
    model_config_file: Path | None = None
    host: str = "127.0.0.1"
    port: int = DEFAULT_PORT
    rest_port: int | None = None
    limits: Limits = field(default_factory=Limits)
    batching: BatchingConfig = field(default_factory=BatchingConfig)
    one_core: bool = True
    intra_op_parallelism: int | None = None
    poll_seconds: float = 1.0
    tls: access.Tls | None = None
    verify_key: Path | None = None
    api_keys: Sequence[str] = ()
    allow_origins: Sequence[str] = ()
    allow_reload: bool = False
    log_requests: bool = False
    lame_duck_seconds: float = 0.0
    grace_seconds: float = 10.0

    def __post_init__(self) -> None:
        if self.intra_op_parallelism is not None and self.intra_op_parallelism < 0:
            raise ValueError(
                "intra_op_parallelism must be 0, for one a core, or more. "
                f"Received: {self.intra_op_parallelism}"
            )


class ModelServer:
    """Serves models until it is stopped."""

    def __init__(self, config: ServerConfig):
        """Binds the ports; 0 takes a free one, see `port` and `rest_port`.

        Raises:
            OSError: If a port is taken, or a certificate cannot be read.
            ValueError: If the file of public keys holds none.
        """
        self._config = config
        self._draining = False
        self._stopping = threading.Event()
        self._watcher = threading.Thread(target=self._watch_config, name="config", daemon=True)
        self.metrics = Metrics(self._waiting, self._versions, lambda: self.models.overwritten())
        self.models = ServedModels(
            config.models,
            config.batching,
            observe=self.metrics.batch,
            warmed=self.metrics.tf_serving.warmup,
            event=_log_event,
            poll_seconds=config.poll_seconds,
            verifier=signing.Verifier(config.verify_key) if config.verify_key else None,
            intra_op_parallelism=config.intra_op_parallelism,
        )
        self._requests = Requests(
            self.models, config.limits, self.metrics, log_all=config.log_requests
        )
        keys = access.ApiKeys(config.api_keys)
        threads = config.limits.max_requests + _SPARE_THREADS
        self._server = grpc.server(
            futures.ThreadPoolExecutor(threads),
            interceptors=[access.KeyInterceptor(keys)] if config.api_keys else [],
            options=(
                ("grpc.max_receive_message_length", config.limits.max_message_bytes),
                # What is answered may be longer than what was asked: similarities.
                ("grpc.max_send_message_length", -1),
                ("grpc.so_reuseport", 0),
            ),
            # What no thread is left for is refused, not kept waiting.
            maximum_concurrent_rpcs=threads,
        )
        self._health = health.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(
            grpc_services.PredictionService(self._requests), self._server
        )
        model_service_pb2_grpc.add_ModelServiceServicer_to_server(
            grpc_services.ModelService(self._requests, allow_reload=config.allow_reload),
            self._server,
        )
        reflection.enable((*_SERVICES, health.SERVICE_NAME), self._server)
        self._set_health(health_pb2.HealthCheckResponse.NOT_SERVING)
        self.port = self._bind()
        self.address = f"{config.host}:{self.port}"
        self._rest = None
        self.rest_port = None
        if config.rest_port is not None:
            try:
                with self._one_core():
                    self._rest = RestServer(
                        self._requests,
                        host=config.host,
                        port=config.rest_port,
                        tls=config.tls.context() if config.tls else None,
                        authorized=keys.allow,
                        ready=lambda: not self._draining and self.models.ready(),
                        grace_seconds=config.grace_seconds,
                        allow_origins=config.allow_origins,
                    )
            except (OSError, ValueError):
                self._server.stop(0)
                raise
            self.rest_port = self._rest.port

    def _one_core(self) -> contextlib.AbstractContextManager[int | None]:
        return cores.one() if self._config.one_core else contextlib.nullcontext()

    def _bind(self) -> int:
        address, tls = f"{self._config.host}:{self._config.port}", self._config.tls
        if tls is not None:
            # gRPC has one word for whatever goes wrong; this one says what.
            tls.context()
        try:
            if tls is not None:
                return self._server.add_secure_port(address, tls.credentials())
            return self._server.add_insecure_port(address)
        except RuntimeError as error:
            raise OSError(
                f"port must be free. Received: host={self._config.host}, port={self._config.port}"
            ) from error

    def start(self) -> None:
        """Loads the models, then begins to answer requests.

        Raises:
            ValueError: If no model has a version that can be served; the message has the reasons.
        """
        try:
            self.models.start()
        except BaseException:
            self._close(0.0)
            raise
        with self._one_core() as core:
            self._server.start()
        self._set_health(health_pb2.HealthCheckResponse.SERVING)
        if self._config.model_config_file is not None:
            self._watcher.start()
        _log_event("serving", address=self.address, rest_port=self.rest_port, core=core)

    def stop(self) -> None:
        """Says that it stops, lets requests in flight finish, and frees the models; once."""
        if self._draining:
            return
        self._draining = True
        self._health.enter_graceful_shutdown()
        self._stopping.set()
        if self._watcher.is_alive():
            self._watcher.join()
        _log_event("draining", lame_duck_seconds=self._config.lame_duck_seconds)
        time.sleep(self._config.lame_duck_seconds)
        self._close(self._config.grace_seconds)
        _log_event("stopped")

    def _close(self, grace_seconds: float) -> None:
        stopping = self._server.stop(grace_seconds)
        if self._rest is not None:
            self._rest.stop()
        stopping.wait()
        self.models.stop()

    def _watch_config(self) -> None:
        """Takes up what the model config file says, whenever it says something else."""
        path = self._config.model_config_file
        assert path is not None
        known, refused = self._config.models, ""
        while not self._stopping.wait(self._config.poll_seconds):
            try:
                found = model_config.load(path)
                if found == known:
                    refused = ""
                    continue
                known = found
                self.models.reload(found)
                refused = ""
                _log_event("config_loaded", path=str(path), models=[x.name for x in found])
            # What serves goes on serving.
            except (OSError, ValueError, RequestFailed) as error:
                # A file that stays wrong is told once.
                if str(error) != refused:
                    _log_event("config_refused", path=str(path), error=str(error))
                refused = str(error)

    def _set_health(self, status) -> None:
        for name in ("", *_SERVICES):
            self._health.set(name, status)

    def _waiting(self) -> Mapping[tuple[str, str], int]:
        found: dict[tuple[str, str], int] = {}
        for model, versions in self.models.served().items():
            for served in versions:
                for signature, rows in served.waiting().items():
                    found[model, signature] = found.get((model, signature), 0) + rows
        return found

    def _versions(self) -> Mapping[tuple[str, int], int]:
        return {key: int(state) for key, state in self.models.states().items()}


def one_model(base_path: str | Path, name: str = DEFAULT_MODEL_NAME) -> tuple[ModelConfig, ...]:
    """Returns the config of a single model, its newest version."""
    return (ModelConfig(name, str(base_path)),)


def log_to_stderr() -> None:
    """Writes what happens to standard error, a JSON object a line."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonFormatter())
    _LOG.addHandler(handler)
    _LOG.setLevel(logging.INFO)
    _LOG.propagate = False


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        fields = {
            "time": f"{stamp}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            fields["trace"] = self.formatException(record.exc_info)
        return json.dumps(fields, ensure_ascii=False, default=str)


def _log_event(event: str, **fields: object) -> None:
    level = logging.WARNING if event in _WARNINGS else logging.INFO
    _LOG.log(level, event, extra={"fields": fields})
