"""Answers requests of both front ends: checks limits, picks the version, keeps deadlines."""

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

# Without a deadline, gRPC reports hundreds of years as the remaining time.
_NO_DEADLINE_SECONDS = 365 * 24 * 3600.0
_BUFFERED_MESSAGES = 16
# Longest part of a model's name that is logged: clients may send names of any length.
_MAX_LOGGED_CHARS = 128
_LOG = logging.getLogger("sigline.serving")


@dataclass(frozen=True)
class Limits:
    """Limits of requests. A request that exceeds one is refused before it is computed.

    Attributes:
        max_message_bytes: Largest message or HTTP body.
        max_items: Most images or texts of a request.
        max_text_bytes: Longest text; a model would read only the beginning of a longer one.
        max_requests: Most requests at a time; more are refused.
        timeout_seconds: Deadline of requests that have none, such as those over REST.
        max_buffered_bytes: Most bytes of HTTP bodies in memory at a time, decompressed, over all
            requests; by default 16 times the largest body. It also bounds how many gRPC messages
            and HTTP bodies are read at a time: as many as fit if each has the largest size.
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
            default = _BUFFERED_MESSAGES * self.max_message_bytes
            object.__setattr__(self, "max_buffered_bytes", default)
        elif self.max_buffered_bytes < self.max_message_bytes:
            raise ValueError(
                "max_buffered_bytes must be at least max_message_bytes. "
                f"Received: max_buffered_bytes={self.max_buffered_bytes}, "
                f"max_message_bytes={self.max_message_bytes}"
            )


@dataclass(frozen=True)
class Target:
    """The model, version and signature that a request names.

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
    """Outputs by name, and the version and signature that computed them."""

    version: int
    signature: str
    outputs: dict[str, np.ndarray]


class Cancellation:
    """Cancels the computation of a request when its client leaves. Thread-safe."""

    def __init__(self):
        """Begins with a client that waits."""
        self._lock = threading.Lock()
        self._is_cancelled = False
        self._future: concurrent.futures.Future | None = None

    def watch(self, future: concurrent.futures.Future) -> None:
        """Sets the computation to cancel; cancels it at once if the client has left."""
        with self._lock:
            self._future = future
            is_cancelled = self._is_cancelled
        if is_cancelled:
            future.cancel()

    @property
    def is_cancelled(self) -> bool:
        """Whether the client has left."""
        return self._is_cancelled

    def cancel(self) -> None:
        """Records that the client has left, and cancels the computation."""
        with self._lock:
            self._is_cancelled = True
            future = self._future
        if future is not None:
            future.cancel()


class Requests:
    """Answers requests, whichever front end received them."""

    def __init__(self, models: ServedModels, limits: Limits, metrics: Metrics, *, log_all: bool):
        """Takes the models that answer, the limits and the metrics to update."""
        self.models = models
        self.limits = limits
        self.metrics = metrics
        self._log_all = log_all
        self._free_requests = threading.Semaphore(limits.max_requests)
        assert limits.max_buffered_bytes is not None
        self.buffered = BufferedBytes(limits.max_buffered_bytes)

    @property
    def max_concurrent_reads(self) -> int:
        """Most messages that are read at a time, since each may have the largest size."""
        assert self.limits.max_buffered_bytes is not None
        return max(1, self.limits.max_buffered_bytes // self.limits.max_message_bytes)

    @contextlib.contextmanager
    def admitted(self) -> Iterator[None]:
        """Counts a request while it is answered; raises RequestFailed if there are too many."""
        if not self._free_requests.acquire(blocking=False):
            raise RequestFailed(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                f"More than {self.limits.max_requests} requests at a time; send it again later",
            )
        try:
            yield
        finally:
            self._free_requests.release()

    def refused(self, address: str, entrypoint: str) -> None:
        """Counts and logs a request without a valid key.

        Args:
            address: Address of the client.
            entrypoint: `GRPC` or `REST`.
        """
        self.metrics.refused(entrypoint)
        _LOG.warning("refused", extra={"fields": {"address": address, "entrypoint": entrypoint}})

    @contextlib.contextmanager
    def observed(self, model: str, *, api: str, entrypoint: str) -> Iterator[None]:
        """Counts, times and logs a request.

        Args:
            model: Name of its model.
            api: The method over gRPC; the verb, `status` or `metadata` over REST.
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
            # Each label value is a time series that never ends, and clients may invent names.
            label = model if self.models.has_model(model) else "unknown"
            self.metrics.request(label, api=api, entrypoint=entrypoint, code=code, seconds=seconds)
            if self._log_all:
                fields = {
                    "model": model[:_MAX_LOGGED_CHARS],
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
            target: The model, version and signature that the request names.
            read: Returns the request's inputs for a loaded model and the name of its signature.
            output_filter: Names of the outputs to return; all by default.
            timeout_seconds: Seconds until the client's deadline; None for none.
            on_wait: Called with the future of the outputs, so that it can be cancelled if the
                client leaves.

        Raises:
            RequestFailed: If it is not answered, with the reason.
        """
        if timeout_seconds is None or timeout_seconds > _NO_DEADLINE_SECONDS:
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
            names = _selected_outputs(output_filter, served.engine.output_names(signature))
            signature = served.at_load(signature)
            begin = time.monotonic()
            future = served.submit(signature, inputs, deadline=deadline)
            on_wait(future)
            try:
                outputs = future.result(max(0.0, deadline - time.monotonic()))
            except concurrent.futures.CancelledError:
                # gRPC cancels a call at its deadline, too.
                if time.monotonic() >= deadline:
                    raise failures.deadline_passed() from None
                raise failures.client_left() from None
            except concurrent.futures.TimeoutError:
                # A request that is still queued is not computed any more.
                future.cancel()
                raise failures.deadline_passed() from None
            self.metrics.tf_serving.run(target.name, time.monotonic() - begin)
            return Answer(served.version, signature, {name: outputs[name] for name in names})

    def _check_size(self, inputs: dict[str, np.ndarray]) -> None:
        for name, value in inputs.items():
            # Each string is an item, whatever the shape; for numbers, each row is.
            items = value.size if value.dtype == object else len(value) if value.ndim else 1
            if items > self.limits.max_items:
                raise failures.invalid(
                    f"input {name} may have {self.limits.max_items} items. Received: {items}; "
                    "send several requests"
                )
            if name == signatures.TEXT and value.dtype == object:
                longest = max((len(x) for x in value.ravel()), default=0)
                if longest > self.limits.max_text_bytes:
                    raise failures.invalid(
                        f"input {name} may have {self.limits.max_text_bytes} bytes a text. "
                        f"Received: {longest}; shorten the text"
                    )


def _selected_outputs(output_filter: Sequence[str], outputs: Sequence[str]) -> Sequence[str]:
    if not output_filter:
        return outputs
    if len(set(output_filter)) != len(output_filter) or not set(output_filter) <= set(outputs):
        raise failures.invalid(
            f"output_filter must name distinct outputs among {list(outputs)}. "
            f"Received: {list(output_filter)}"
        )
    return output_filter
