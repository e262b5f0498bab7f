"""What both front ends do with a request: limits, the version, an answer in time."""

import concurrent.futures
import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import grpc
import numpy as np

from sigline.schemas import signatures
from sigline.serving.server import failures
from sigline.serving.server.buffered_bytes import BufferedBytes
from sigline.serving.server.engine import LoadedVersion
from sigline.serving.server.failures import RequestFailed
from sigline.serving.server.metrics import Metrics
from sigline.serving.server.served_models import ServedModels

# What gRPC says is left where there is no deadline is hundreds of years.
_NO_DEADLINE = 365 * 24 * 3600.0
_BUFFERED_MESSAGES = 16
# A client may make up a name of any length.
_LOGGED_CHARS = 128
_LOG = logging.getLogger("sigline.serving")


@dataclass(frozen=True)
class Limits:
    """What a request may be; what is more is refused before it is looked at.

    Attributes:
        max_message_bytes: Largest message or HTTP body.
        max_items: Most images or texts of a request.
        max_text_bytes: Longest text; of a longer one a model would read the beginning only.
        max_requests: Requests at a time; more are refused.
        timeout_seconds: Deadline of requests that bring none, as over REST.
        max_buffered_bytes: Most bytes of HTTP bodies in memory at a time, decompressed, of all
            requests; by default 16 of the largest body. As many messages of gRPC, and bodies, are
            read at a time as fit into it at their largest.
    """

    max_message_bytes: int = 16 * 2**20
    max_items: int = 1024
    max_text_bytes: int = 64 * 2**10
    max_requests: int = 256
    timeout_seconds: float = 30.0
    max_buffered_bytes: int | None = None

    def __post_init__(self) -> None:
        for name in ("max_message_bytes", "max_items", "max_text_bytes", "max_requests"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1. Received: {getattr(self, name)}")
        if self.timeout_seconds <= 0:
            raise ValueError(
                f"timeout_seconds must be more than 0. Received: {self.timeout_seconds}"
            )
        if self.max_buffered_bytes is None:
            most = _BUFFERED_MESSAGES * self.max_message_bytes
            object.__setattr__(self, "max_buffered_bytes", most)
        elif self.max_buffered_bytes < self.max_message_bytes:
            raise ValueError(
                "max_buffered_bytes must be at least max_message_bytes. "
                f"Received: max_buffered_bytes={self.max_buffered_bytes}, "
                f"max_message_bytes={self.max_message_bytes}"
            )


@dataclass(frozen=True)
class Target:
    """Which model a request is for.

    Attributes:
        name: The model.
        version: Its version; None for the newest that is served.
        label: The label of a version, instead of its number; empty for none.
        signature: The signature; empty for `serving_default`.
    """

    name: str
    version: int | None = None
    label: str = ""
    signature: str = ""


@dataclass(frozen=True)
class Answer:
    """Outputs by name, and which version and signature gave them."""

    version: int
    signature: str
    outputs: dict[str, np.ndarray]


class Departure:
    """Whether the client of a request has left, and the computation to cancel if it does."""

    def __init__(self):
        """Begins with a client that waits."""
        self._lock = threading.Lock()
        self._has_left = False
        self._future: concurrent.futures.Future | None = None

    def watch(self, future: concurrent.futures.Future) -> None:
        """Names the computation, which is cancelled at once if the client has left."""
        with self._lock:
            self._future = future
            has_left = self._has_left
        if has_left:
            future.cancel()

    @property
    def has_left(self) -> bool:
        """Whether the client has left."""
        return self._has_left

    def leave(self) -> None:
        """Says that the client has left."""
        with self._lock:
            self._has_left = True
            future = self._future
        if future is not None:
            future.cancel()


class Requests:
    """Answers requests, whatever they came by."""

    def __init__(self, models: ServedModels, limits: Limits, metrics: Metrics, *, log_all: bool):
        """Binds them to the models."""
        self.models = models
        self.limits = limits
        self.metrics = metrics
        self._log_all = log_all
        self._room = threading.Semaphore(limits.max_requests)
        assert limits.max_buffered_bytes is not None
        self.buffered = BufferedBytes(limits.max_buffered_bytes)

    @property
    def places_for_messages(self) -> int:
        """How many messages may be read at a time; each may take as much as the largest."""
        assert self.limits.max_buffered_bytes is not None
        return max(1, self.limits.max_buffered_bytes // self.limits.max_message_bytes)

    @contextlib.contextmanager
    def admitted(self) -> Iterator[None]:
        """Takes one of the places for requests; raises RequestFailed if there is none."""
        if not self._room.acquire(blocking=False):
            raise RequestFailed(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                f"More than {self.limits.max_requests} requests at a time",
            )
        try:
            yield
        finally:
            self._room.release()

    def refused(self, address: str, entrypoint: str) -> None:
        """Counts and logs a request without a key that is known.

        Args:
            address: Where it came from.
            entrypoint: `GRPC` or `REST`.
        """
        self.metrics.refused(entrypoint)
        _LOG.warning("refused", extra={"fields": {"address": address, "entrypoint": entrypoint}})

    @contextlib.contextmanager
    def observed(self, model: str, *, api: str, entrypoint: str) -> Iterator[None]:
        """Counts, times and logs a request.

        Args:
            model: Its model.
            api: What is called: over gRPC the method, over REST the verb, `status` or `metadata`.
            entrypoint: `GRPC` or `REST`.
        """
        begin, code, error = time.perf_counter(), "OK", ""
        try:
            yield
        except RequestFailed as failure:
            code, error = failure.code.name, str(failure)
            raise
        except Exception as failure:
            code, error = grpc.StatusCode.INTERNAL.name, repr(failure)
            _LOG.exception("request")
            raise
        except BaseException as failure:
            code, error = grpc.StatusCode.CANCELLED.name, repr(failure)
            raise
        finally:
            seconds = time.perf_counter() - begin
            # Names that no model has would each be a time series for good.
            known = model if self.models.knows(model) else "unknown"
            self.metrics.request(known, api=api, entrypoint=entrypoint, code=code, seconds=seconds)
            if self._log_all:
                fields = {
                    "model": model[:_LOGGED_CHARS],
                    "api": api,
                    "entrypoint": entrypoint,
                    "code": code,
                }
                fields |= {"error": error} if error else {}
                _LOG.info("request", extra={"fields": fields | {"seconds": round(seconds, 6)}})

    def predict(
        self,
        target: Target,
        read: Callable[[LoadedVersion, str], dict[str, np.ndarray]],
        *,
        output_filter: Sequence[str] = (),
        timeout_seconds: float | None = None,
        on_wait: Callable[[concurrent.futures.Future], object] = lambda future: None,
    ) -> Answer:
        """Answers a Predict request.

        Args:
            target: What is asked.
            read: Returns the inputs for a model and the name of its signature.
            output_filter: Names of the wanted outputs; all by default.
            timeout_seconds: Until the client's deadline; None for none.
            on_wait: Is given the future while it is waited for, to cancel it if the client goes.

        Raises:
            RequestFailed: If it is not answered, for whatever reason.
        """
        if timeout_seconds is None or timeout_seconds > _NO_DEADLINE:
            timeout_seconds = self.limits.timeout_seconds
        deadline = time.monotonic() + timeout_seconds
        if not target.name:
            raise failures.invalid("ModelSpec has no name specified")
        signature = target.signature or signatures.SERVING_DEFAULT
        with self.models.lease(target.name, version=target.version, label=target.label) as served:
            served.engine.definition(signature)
            try:
                inputs = read(served.engine, signature)
            except (ValueError, TypeError, OverflowError) as error:
                raise failures.invalid(str(error)) from error
            self._check_size(inputs)
            served.engine.check(signature, inputs)
            wanted = _wanted(output_filter, served.engine.output_names(signature))
            begin = time.monotonic()
            future = served.submit(signature, inputs, deadline=deadline)
            on_wait(future)
            try:
                outputs = future.result(max(0.0, deadline - time.monotonic()))
            except concurrent.futures.CancelledError:
                # gRPC ends a call at its deadline, too.
                if time.monotonic() >= deadline:
                    raise failures.late() from None
                raise failures.client_left() from None
            except concurrent.futures.TimeoutError:
                # What has not begun is not begun any more.
                future.cancel()
                raise failures.late() from None
            self.metrics.tf_serving.run(target.name, time.monotonic() - begin)
            return Answer(served.version, signature, {name: outputs[name] for name in wanted})

    def _check_size(self, inputs: dict[str, np.ndarray]) -> None:
        for name, value in inputs.items():
            items = value.size if value.dtype == object else len(value) if value.ndim else 1
            if items > self.limits.max_items:
                raise failures.invalid(
                    f"input {name} may have {self.limits.max_items} items. Received: {items}"
                )
            if name == signatures.TEXT and value.dtype == object:
                longest = max((len(x) for x in value.ravel()), default=0)
                if longest > self.limits.max_text_bytes:
                    raise failures.invalid(
                        f"input {name} may have {self.limits.max_text_bytes} bytes a text. "
                        f"Received: {longest}"
                    )


def _wanted(output_filter: Sequence[str], outputs: Sequence[str]) -> Sequence[str]:
    if not output_filter:
        return outputs
    if len(set(output_filter)) != len(output_filter) or not set(output_filter) <= set(outputs):
        raise failures.invalid(f"output_filter must name distinct outputs among {list(outputs)}")
    return output_filter
