"""TF Serving's own metrics, with the same names, labels, buckets and meaning.

The text is that of TF Serving's `prometheus_exporter.cc`. Prometheus' client library would rename
counters (`_total`), add a series to each distribution (`_created`), and write bucket limits in
another form (`10.0`).
"""

import bisect
import threading
from collections.abc import Iterator

# Upper limits of the buckets, in microseconds; the largest is about 25 minutes.
_LIMITS = tuple(10 * 1.8**power for power in range(33))
_LIMIT_TEXTS = (*(f"{limit:.6g}" for limit in _LIMITS), "+Inf")
_GRPC, _REST = "GRPC", "REST"
# The only gRPC methods that TF Serving counts.
_COUNTED_RPCS = frozenset({"Predict", "Classify", "Regress"})
# REST methods that appear in the label `API`; it is empty for GET requests.
_REST_METHODS = frozenset({"predict", "classify", "regress"})
Labels = tuple[str, ...]


class TfServingMetrics:
    """Counts requests and warm-up requests as TF Serving does."""

    def __init__(self):
        """Begins at zero."""
        self._requests = _Counter("request_count", ("model_name", "status"))
        self._latency = _Distribution("request_latency", ("model_name", "API", "entrypoint"))
        self._runtime = _Distribution("runtime_latency", ("model_name", "API", "runtime"))
        self._warmup = _Distribution("model_warmup_latency", ("model_path", "status"))
        self._warmup_records = _Counter("model_warmup_records_read", ("model_path", "status"))

    def request(self, model: str, *, api: str, entrypoint: str, code: str, seconds: float) -> None:
        """Counts a request, and its latency if it succeeded.

        Args:
            model: Name of its model.
            api: `Predict` and the like over gRPC, `predict` and the like over REST.
            entrypoint: `GRPC` or `REST`.
            code: Name of its status.
            seconds: Time from its arrival to its answer.
        """
        if entrypoint == _GRPC and api not in _COUNTED_RPCS:
            return
        if entrypoint == _REST and api not in _REST_METHODS:
            api = ""
        self._requests.add((model, code), 1)
        if code == "OK":
            self._latency.add((model, api, entrypoint), 1e6 * seconds)

    def run(self, model: str, seconds: float) -> None:
        """Counts the time to compute a request, the wait for its batch included."""
        self._runtime.add((model, "Predict", "TF1"), 1e6 * seconds)

    def warmup(self, path: str, num_records: int, seconds: float) -> None:
        """Counts the warm-up of a version."""
        self._warmup.add((path, "OK"), 1e6 * seconds)
        self._warmup_records.add((path, "OK"), num_records)

    def text(self) -> str:
        """Returns the metrics in Prometheus' text format."""
        parts = self._warmup, self._warmup_records, self._requests, self._latency, self._runtime
        return "".join(f"{line}\n" for part in parts for line in part.lines())


class _Series:
    """A metric: one value for each combination of labels."""

    kind = ""

    def __init__(self, name: str, labels: Labels):
        self.name = f":tensorflow:serving:{name}"
        self._labels = labels
        self._lock = threading.Lock()

    def _braced(self, values: Labels, *more: str) -> str:
        pairs = zip(self._labels, values, strict=True)
        return "{" + ",".join([*(f'{name}="{_escaped(x)}"' for name, x in pairs), *more]) + "}"


class _Counter(_Series):
    def __init__(self, name: str, labels: Labels):
        super().__init__(name, labels)
        self._counts: dict[Labels, int] = {}

    def add(self, values: Labels, count: int) -> None:
        with self._lock:
            self._counts[values] = self._counts.get(values, 0) + count

    def lines(self) -> Iterator[str]:
        with self._lock:
            counts = sorted(self._counts.items())
        yield f"# TYPE {self.name} counter"
        for values, count in counts:
            yield f"{self.name}{self._braced(values)} {count}"


class _Distribution(_Series):
    def __init__(self, name: str, labels: Labels):
        super().__init__(name, labels)
        self._buckets: dict[Labels, list[int]] = {}
        self._sums: dict[Labels, float] = {}

    def add(self, values: Labels, value: float) -> None:
        with self._lock:
            buckets = self._buckets.get(values)
            if buckets is None:
                buckets = self._buckets[values] = [0] * len(_LIMIT_TEXTS)
                self._sums[values] = 0.0
            # In TF Serving a value at a limit belongs to the bucket above it.
            buckets[bisect.bisect_right(_LIMITS, value)] += 1
            self._sums[values] += value

    def lines(self) -> Iterator[str]:
        with self._lock:
            series = sorted((key, list(x), self._sums[key]) for key, x in self._buckets.items())
        yield f"# TYPE {self.name} histogram"
        for values, buckets, total in series:
            count = 0
            for limit, more in zip(_LIMIT_TEXTS, buckets, strict=True):
                count += more
                labels = self._braced(values, f'le="{limit}"')
                yield f"{self.name}_bucket{labels} {count}"
            yield f"{self.name}_sum{self._braced(values)} {total!r}"
            yield f"{self.name}_count{self._braced(values)} {count}"


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
