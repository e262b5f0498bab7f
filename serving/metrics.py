"""What Prometheus reads: TF Serving's names where it has them, and what it lacks."""

import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import prometheus_client
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

# TF Serving's path and names.
PATH = "/monitoring/prometheus/metrics"
_REQUEST_COUNT = ":tensorflow:serving:request_count"
_REQUEST_LATENCY = ":tensorflow:serving:request_latency"
# Microseconds: 10 * 1.8^k, 33 of them.
_BUCKETS = tuple(10 * 1.8**k for k in range(33))
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Metrics:
    """The figures of one server."""

    def __init__(
        self,
        waiting: Callable[[], Mapping[tuple[str, str], int]],
        versions: Callable[[], Mapping[tuple[str, int], int]],
        overwritten: Callable[[], Mapping[tuple[str, int], bool]] = dict,
    ):
        """Begins at zero.

        Args:
            waiting: Returns how many rows wait, by model and signature.
            versions: Returns the states of versions, by model and version.
            overwritten: Returns whether the files of versions that serve have changed.
        """
        self._registry = prometheus_client.CollectorRegistry()
        self._counts: dict[tuple[str, str], int] = {}
        self._lock = threading.Lock()
        self._children: dict[tuple[prometheus_client.Histogram, tuple[str, ...]], Any] = {}
        self._latency = prometheus_client.Histogram(
            _REQUEST_LATENCY,
            "Time of a request, microseconds.",
            ("model_name", "API", "entrypoint"),
            buckets=_BUCKETS,
            registry=self._registry,
        )
        self._batch_rows = prometheus_client.Histogram(
            "sigline_batch_rows",
            "Rows that were computed together.",
            ("model_name", "signature"),
            buckets=_ROWS,
            registry=self._registry,
        )
        self._queue_seconds = prometheus_client.Histogram(
            "sigline_queue_seconds",
            "How long the first row of a batch waited.",
            ("model_name", "signature"),
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._failures = prometheus_client.Counter(
            "sigline_failures",
            "Requests that were not answered, by their status.",
            ("model_name", "code"),
            registry=self._registry,
        )
        self._registry.register(_Live(self._counts, waiting, versions, overwritten))

    def request(self, model: str, *, api: str, entrypoint: str, code: str, seconds: float) -> None:
        """Counts a request: its model, `predict` and the like, `GRPC` or `REST`, and its status."""
        with self._lock:
            self._counts[model, code] = self._counts.get((model, code), 0) + 1
        self._child(self._latency, model, api, entrypoint).observe(1e6 * seconds)
        # A client that leaves is no failure.
        if code not in ("OK", "CANCELLED"):
            self._failures.labels(model, code).inc()

    def batch(self, model: str, signature: str, rows: int, seconds: float) -> None:
        """Counts a batch."""
        self._child(self._batch_rows, model, signature).observe(rows)
        self._child(self._queue_seconds, model, signature).observe(seconds)

    def _child(self, metric: prometheus_client.Histogram, *labels: str) -> Any:
        """Returns the series of labels; to look it up in the library takes longer than to count."""
        key = metric, labels
        found = self._children.get(key)
        if found is None:
            found = self._children[key] = metric.labels(*labels)
        return found

    def text(self) -> bytes:
        """Returns the figures in Prometheus' text format."""
        return prometheus_client.generate_latest(self._registry)


class _Live(Collector):
    """What is read when it is asked for."""

    def __init__(self, counts, waiting, versions, overwritten):
        self._counts = counts
        self._waiting = waiting
        self._versions = versions
        self._overwritten = overwritten

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        # By hand: the library's counters end in `_total`, TF Serving's does not.
        requests = Metric(_REQUEST_COUNT, "Requests by model and status.", "unknown")
        for (model, status), count in sorted(self._counts.copy().items()):
            requests.add_sample(_REQUEST_COUNT, {"model_name": model, "status": status}, count)
        yield requests
        rows = GaugeMetricFamily(
            "sigline_queued_rows", "Rows that wait.", labels=("model_name", "signature")
        )
        for key, count in sorted(self._waiting().items()):
            rows.add_metric(key, count)
        yield rows
        states = GaugeMetricFamily(
            "sigline_version_state",
            "State of a version: 10 start, 20 loading, 30 available, 40 unloading, 50 end.",
            labels=("model_name", "version"),
        )
        for (model, version), state in sorted(self._versions().items()):
            states.add_metric((model, str(version)), state)
        yield states
        changed = GaugeMetricFamily(
            "sigline_version_overwritten",
            "1 if the files of a version changed after it was loaded; it serves as it was loaded.",
            labels=("model_name", "version"),
        )
        for (model, version), value in sorted(self._overwritten().items()):
            changed.add_metric((model, str(version)), int(value))
        yield changed
