"""Metrics in Prometheus' text format: those of TF Serving, and sigline's own."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import prometheus_client
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from sigline.serving.server.tf_serving_metrics import TfServingMetrics

# TF Serving's path.
PATH = "/monitoring/prometheus/metrics"
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Metrics:
    """The metrics of one server."""

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
            overwritten: Returns whether the files of each version that serves have changed.
        """
        self._registry = prometheus_client.CollectorRegistry()
        self._children: dict[tuple[prometheus_client.Histogram, tuple[str, ...]], Any] = {}
        self.tf_serving = TfServingMetrics()
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
        self._refused = prometheus_client.Counter(
            "sigline_refused",
            "Requests that came without a key that is known.",
            ("entrypoint",),
            registry=self._registry,
        )
        self._registry.register(_StateCollector(waiting, versions, overwritten))

    def request(self, model: str, *, api: str, entrypoint: str, code: str, seconds: float) -> None:
        """Counts a request; see `TfServingMetrics.request`."""
        self.tf_serving.request(model, api=api, entrypoint=entrypoint, code=code, seconds=seconds)
        # A client that leaves is not a failure of the server.
        if code not in ("OK", "CANCELLED"):
            self._failures.labels(model, code).inc()

    def refused(self, entrypoint: str) -> None:
        """Counts a request without a valid key."""
        self._refused.labels(entrypoint).inc()

    def batch(self, model: str, signature: str, rows: int, seconds: float) -> None:
        """Counts a batch."""
        self._child(self._batch_rows, model, signature).observe(rows)
        self._child(self._queue_seconds, model, signature).observe(seconds)

    def _child(self, metric: prometheus_client.Histogram, *labels: str) -> Any:
        """Returns the time series of some labels.

        Series are cached: looking one up in the library takes longer than updating it.
        """
        key = metric, labels
        child = self._children.get(key)
        if child is None:
            child = self._children[key] = metric.labels(*labels)
        return child

    def text(self) -> bytes:
        """Returns all metrics in Prometheus' text format."""
        own = prometheus_client.generate_latest(self._registry)
        return self.tf_serving.text().encode() + own


class _StateCollector(Collector):
    """Gauges that are computed when Prometheus scrapes the server."""

    def __init__(self, waiting, versions, overwritten):
        self._waiting = waiting
        self._versions = versions
        self._overwritten = overwritten

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
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
