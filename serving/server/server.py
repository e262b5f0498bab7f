"""A model server for one machine that speaks TF Serving's protocols, gRPC and REST.

It answers with the status codes of TF Serving, so that one client and one test work against both.
It adds what TF Serving leaves to other software: limits, API keys and draining. A damaged or
half-copied folder never stops a version that serves.
"""

import contextlib
import json
import logging
import ssl
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sigline.schemas import signing
from sigline.serving.server import access, cores, model_config
from sigline.serving.server.batching import BatchingConfig
from sigline.serving.server.bounded_log import BoundedLog
from sigline.serving.server.connections import Connections, default_max_connections
from sigline.serving.server.failures import RequestFailed
from sigline.serving.server.file_watch import FileWatch
from sigline.serving.server.grpc_server import GrpcServer
from sigline.serving.server.hosts import Hosts
from sigline.serving.server.metrics import Metrics
from sigline.serving.server.model_config import ModelConfig
from sigline.serving.server.requests import Limits, Requests
from sigline.serving.server.rest import RestServer
from sigline.serving.server.served_models import ServedModels

DEFAULT_MODEL_NAME = "sigline"
DEFAULT_PORT = 8500
DEFAULT_REST_PORT = 8501
_LOG = logging.getLogger("sigline.serving")
_LIBRARY_LOGGERS = ("asyncio", "grpc")
# Events that are logged as warnings; all others as information.
_WARNINGS = (
    "load_failed",
    "no_versions",
    "folder_not_read",
    "look_failed",
    "config_refused",
    "files_refused",
    "model_not_served",
    "version_overwritten",
)


@dataclass(frozen=True)
class ServerConfig:
    """Settings of a server.

    Attributes:
        models: The models to serve.
        model_config_file: File that `models` were read from, to be read again when it changes.
        host: Address to listen at, 0.0.0.0 for other machines too.
        port: Port of gRPC; 0 takes a free one.
        rest_port: Port of REST, probes and metrics; 0 takes a free one, None leaves it out.
        limits: Limits of requests.
        batching: How requests are computed together.
        one_core: Whether the threads that receive and answer stay on one core; models are computed
            on all cores.
        intra_op_parallelism: Most threads that share an operation of a model, 0 for one a core; by
            default one for a version whose weights take less than 32 MiB, else one a core.
        poll_seconds: Seconds between two checks of the folders of versions.
        tls: The server's certificate; None for plain text.
        verify_key: PEM file of public keys, one of which must have signed each version. None to
            accept unsigned versions.
        api_keys: API keys, one of which a request must send; none by default.
        api_key_file: File with API keys, one a line. They count besides `api_keys`; it is read
            again when it changes, as the files of `tls` are.
        allow_hosts: Host names by which REST clients may address a server without keys that listens
            at a loopback address. Addresses and names without a dot are always allowed.
        health_port: Port of `/healthz` and `/readyz` alone, over plain HTTP, for probes that have
            no certificate; 0 takes a free one. None leaves it out. Needs `rest_port`.
        allow_origins: Origins, as https://HOST, whose web pages may send requests over REST (CORS);
            `*` for all, by default none.
        allow_reload: Whether clients may replace the model config, and so have any folder read.
        max_connections: Most connections over HTTP at a time, and as many over gRPC; by default
            half and a quarter of the file descriptors of the process, at most 4,096 each.
        header_seconds: How long the headers of an HTTP request may take.
        log_requests: Whether every request is logged.
        lame_duck_seconds: How long the server goes on after it has reported that it is stopping, so
            that load balancers can react.
        grace_seconds: How long requests in flight may take after that.
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
    api_key_file: Path | None = None
    allow_hosts: Sequence[str] = ()
    health_port: int | None = None
    allow_origins: Sequence[str] = ()
    allow_reload: bool = False
    max_connections: int | None = None
    header_seconds: float = 10.0
    log_requests: bool = False
    lame_duck_seconds: float = 0.0
    grace_seconds: float = 10.0

    def __post_init__(self) -> None:
        if self.health_port is not None and self.rest_port is None:
            raise ValueError(
                "health_port needs rest_port: without REST, gRPC's health service answers probes. "
                f"Received: health_port={self.health_port}, rest_port=None"
            )
        if self.intra_op_parallelism is not None and self.intra_op_parallelism < 0:
            raise ValueError(
                "intra_op_parallelism must be 0, for one thread a core, or more. "
                f"Received: {self.intra_op_parallelism}"
            )


class ModelServer:
    """Serves models until it is stopped."""

    def __init__(self, config: ServerConfig):
        """Binds the ports; 0 takes a free one, see `port` and `rest_port`.

        Raises:
            OSError: If a port is taken, or a certificate cannot be read.
            ValueError: If the file of public keys is empty, or an origin is invalid.
        """
        self._config = config
        self._draining = False
        self._stopping = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="config", daemon=True)
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
        keys = access.ApiKeys(config.api_keys, config.api_key_file)
        # Reads the files before gRPC does, whose error would not say what is wrong with them.
        context = config.tls.context() if config.tls is not None else None
        with self._one_core():
            self._grpc = GrpcServer(
                self._requests,
                host=config.host,
                port=config.port,
                tls=config.tls,
                keys=keys,
                allow_reload=config.allow_reload,
                max_connections=config.max_connections,
            )
        self.port = self._grpc.port
        self.address = f"{config.host}:{self.port}"
        self._rest = None
        self.rest_port = self.health_port = None
        if config.rest_port is not None:
            try:
                with self._one_core():
                    self._rest = self._rest_server(config.rest_port, keys, context)
            except (OSError, ValueError):
                self._grpc.stop(0)
                raise
            self.rest_port = self._rest.port
            self.health_port = self._rest.health_port
        self._watches = []
        if config.api_key_file is not None:
            self._watches.append(FileWatch([config.api_key_file], keys.read))
        if config.tls is not None:
            self._watches.append(FileWatch(config.tls.files(), lambda: self._renew(context)))

    def _rest_server(
        self, port: int, keys: access.ApiKeys, context: ssl.SSLContext | None
    ) -> RestServer:
        config = self._config
        return RestServer(
            self._requests,
            host=config.host,
            port=port,
            tls=context,
            keys=keys,
            ready=lambda: not self._draining and self.models.ready(),
            grace_seconds=config.grace_seconds,
            allow_origins=config.allow_origins,
            hosts=Hosts(config.host, config.allow_hosts),
            health_port=config.health_port,
            connections=Connections(
                config.max_connections or default_max_connections(),
                header_seconds=config.header_seconds,
            ),
        )

    def _renew(self, context: Any) -> None:
        """Starts to use the certificate that the files hold now."""
        tls = self._config.tls
        assert tls is not None
        # A trial in a new context: if the key does not match the certificate, this raises, and the
        # context in use is left as it is.
        tls.context()
        context.load_cert_chain(tls.certificate, tls.key)
        if tls.client_ca is not None:
            context.load_verify_locations(tls.client_ca)
        self._grpc.renew_certificate()

    def _one_core(self) -> contextlib.AbstractContextManager[int | None]:
        return cores.pinned_to_one() if self._config.one_core else contextlib.nullcontext()

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
            self._grpc.start()
        self._grpc.set_serving(True)
        self._watcher.start()
        _log_event("serving", address=self.address, rest_port=self.rest_port, core=core)

    def stop(self) -> None:
        """Reports that it stops, lets requests in flight finish, then frees the models.

        Further calls do nothing.
        """
        if self._draining:
            return
        self._draining = True
        self._grpc.set_serving(False)
        self._stopping.set()
        if self._watcher.is_alive():
            self._watcher.join()
        _log_event("draining", lame_duck_seconds=self._config.lame_duck_seconds)
        time.sleep(self._config.lame_duck_seconds)
        self._close(self._config.grace_seconds)
        _log_event("stopped")

    def _close(self, grace_seconds: float) -> None:
        # Both front ends stop at the same time, so that one does not use up the other's grace.
        stopping = threading.Thread(target=self._grpc.stop, args=(grace_seconds,))
        stopping.start()
        if self._rest is not None:
            self._rest.stop()
        stopping.join()
        self.models.stop()

    def _watch(self) -> None:
        """Reloads keys, certificates and the model config when their files change."""
        path = self._config.model_config_file
        known, refused = self._config.models, ""
        while not self._stopping.wait(self._config.poll_seconds):
            for watch in self._watches:
                outcome = watch.reload_if_changed()
                names = [str(name) for name in watch.files]
                if isinstance(outcome, str):
                    _log_event("files_refused", paths=names, error=outcome)
                elif outcome:
                    _log_event("files_read", paths=names)
            if path is not None:
                known, refused = self._reload_config(path, known, refused)

    def _reload_config(
        self, path: Path, known: tuple[ModelConfig, ...], refused: str
    ) -> tuple[tuple[ModelConfig, ...], str]:
        """Applies the model config file if it has changed.

        Args:
            path: The file.
            known: The models that it held before.
            refused: Why it was refused before; empty if it was not.

        Returns:
            `known` and `refused` for the next call.
        """
        try:
            models = model_config.load(path)
            if models != known:
                known = models
                self.models.reload(models)
                _log_event("config_loaded", path=str(path), models=[x.name for x in models])
        # The models that serve go on serving.
        except (OSError, ValueError, RequestFailed) as error:
            # The same error is logged only once, not at every poll.
            if str(error) != refused:
                _log_event("config_refused", path=str(path), error=str(error))
            return known, str(error)
        return known, ""

    def _waiting(self) -> Mapping[tuple[str, str], int]:
        rows_by_signature: dict[tuple[str, str], int] = {}
        for model, versions in self.models.served().items():
            for served in versions:
                for signature, rows in served.waiting().items():
                    key = model, signature
                    rows_by_signature[key] = rows_by_signature.get(key, 0) + rows
        return rows_by_signature

    def _versions(self) -> Mapping[tuple[str, int], int]:
        return {key: int(state) for key, state in self.models.states().items()}


def one_model(base_path: str | Path, name: str = DEFAULT_MODEL_NAME) -> tuple[ModelConfig, ...]:
    """Returns the config of a single model that serves its newest version."""
    return (ModelConfig(name, str(base_path)),)


def log_to_stderr() -> None:
    """Writes log records to standard error, a JSON object a line."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonFormatter())
    handler.addFilter(BoundedLog())
    # Loggers of libraries too: any client can cause lines about its connection.
    for log in (_LOG, *map(logging.getLogger, _LIBRARY_LOGGERS)):
        log.addHandler(handler)
        log.propagate = False
    _LOG.setLevel(logging.INFO)


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
