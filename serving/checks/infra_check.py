"""Infra check: loads a candidate model as servers do, and sends it real requests.

It uses two separate processes. One runs every signature through TF Serving's C++ loader, the other
is sigline's server, which gets requests over gRPC. A model that can only be loaded because this
process knows its Python classes therefore does not pass.
"""

import contextlib
import io
import json
import os
import select
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NoReturn

import numpy as np
from PIL import Image

from sigline.schemas import progress, signatures, tfrecord
from sigline.serving.checks import probes
from sigline.serving.checks.probes import Golden
from sigline.serving.checks.processes import ModuleProcess
from sigline.serving.client import Client
from sigline.serving.client.transport import Options, RequestError
from sigline.serving.protocol import protos

_READY_PREFIX = "Serving "
_START_SECONDS = 300.0
_REQUEST_SECONDS = 120.0
_WATCH_SECONDS = 0.1
# Requests of one item to measure the least latency, and the pause between two of them.
_LATENCY_REQUESTS, _LATENCY_PAUSE_SECONDS = 20, 0.05
# Images or texts in the warm-up requests.
_WARM_UP_SIZES = (1, 8)
# Errors that a busy machine causes, and which say nothing about the model.
_TRANSIENT = ("UNAVAILABLE", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "CANCELLED")


class InfraError(RuntimeError):
    """The candidate cannot be served; the message says what went wrong."""


@contextlib.contextmanager
def running_server(base_path: str | Path, *, model_name: str = "sigline") -> Iterator[str]:
    """Starts `sigline serve` on a free loopback port; yields its address and stops it at the end.

    Raises:
        InfraError: If the server does not start; the message has its output.
    """
    with _running(base_path, model_name, lambda process: None) as address:
        yield address


@contextlib.contextmanager
def _running(
    base_path: str | Path, model_name: str, on_start: Callable[[ModuleProcess], None]
) -> Iterator[str]:
    """As `running_server`; calls `on_start` with the process as soon as there is one."""
    arguments = ["serve", "--base-path", str(base_path)]
    # The pipe to its standard input ends with this process, even if that is killed. Then the server
    # ends too.
    arguments += ["--port", "0", "--no-rest", "--model-name", model_name, "--until-stdin-closes"]
    # Keeps standard error for errors, which end up in the message of InfraError.
    arguments.append("--quiet")
    with tempfile.TemporaryFile() as errors:
        process = ModuleProcess("sigline.cli", arguments, errors)
        on_start(process)
        try:
            line = _ready_line(process)
            if line is None:
                _raise_start_error(process, errors)
            yield line.split()[-1]
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            process.close()


def _raise_start_error(process: ModuleProcess, errors: IO[bytes]) -> NoReturn:
    try:
        code = process.wait(5)
    except subprocess.TimeoutExpired:
        raise TimeoutError(
            f"the server was not ready after {_START_SECONDS:g} seconds; try again when the "
            "machine is less busy"
        ) from None
    errors.seek(0)
    output = errors.read().decode(errors="replace").strip()[-2000:]
    if code < 0:
        raise RuntimeError(f"the server was killed by signal {-code}: {output}")
    raise InfraError(f"the server did not start: {output}")


def _ready_line(process: ModuleProcess) -> str | None:
    deadline = time.monotonic() + _START_SECONDS
    while (remaining := deadline - time.monotonic()) > 0:
        if not select.select([process.stdout], [], [], remaining)[0]:
            return None
        line = process.stdout.readline().decode()
        if not line:
            return None
        if line.startswith(_READY_PREFIX):
            return line
    return None


@dataclass(frozen=True)
class CheckResult:
    """The result for a candidate that passed the check.

    Attributes:
        figures: Measurements for the report: number of requests, their median latency in
            milliseconds, and the least latency of one image and of one text.
        warm_up: Warm-up requests as a TFRecord: one for each signature and batch size. The
            candidate has answered all of them.
    """

    figures: dict[str, float]
    warm_up: bytes


def check_serving(
    model_dir: str | Path,
    images: Sequence[bytes],
    texts: Sequence[str],
    *,
    golden: Golden | None = None,
    max_memory_mib: float | None = None,
    max_latency_ms: float | None = None,
) -> CheckResult:
    """Loads a candidate and sends it real requests.

    Args:
        model_dir: The SavedModel.
        images: Encoded images that are known to be good, at least one.
        texts: Texts, at least one; none for a model without a text tower.
        golden: The expected answers; None to check only that the answers are embeddings.
        max_memory_mib: Most memory that a process with the model may take; None for no limit.
        max_latency_ms: Limit of the least latency of one image or one text over several requests
            (the least, since a busy machine says nothing about the model); None for no limit.

    Returns:
        Measurements, and warm-up requests for the model.

    Raises:
        InfraError: If the model does not load, a request is refused or an answer is wrong.
        Exception: Any other exception, such as a time-out, does not concern the model; try again.
    """
    loader = ModuleProcess("sigline.serving.checks.loader_check", [str(model_dir)])
    watch = _MemoryWatch(max_memory_mib)
    try:
        with tempfile.TemporaryDirectory() as base:
            os.symlink(Path(model_dir).resolve(), Path(base) / "1")
            progress.note("starting a server")
            # The watching thread starts only after the server: a process with other threads is not
            # forked itself, which is faster (see `processes`).
            with _running(base, "sigline", lambda server: watch.begin(loader, server)) as address:
                progress.note("running each signature by TF Serving's loader")
                inputs = _loader_signatures(loader)
                probe_inputs = probes.ProbeInputs(images, texts, golden)
                progress.note("sending requests to the server")
                latencies = _run_probes(address, inputs, probe_inputs)
                progress.note("timing requests")
                least_latencies = _least_latencies(address, inputs, probe_inputs)
                progress.note("recording warm-up requests")
                warm_up = _warm_up(address, inputs)
    # A process that was killed for its memory fails in many ways, all with the same cause.
    except (RuntimeError, OSError) as error:
        if watch.exceeded:
            raise InfraError(watch.exceeded) from error
        raise
    finally:
        watch.stop()
        loader.kill()
        loader.wait()
        loader.close()
    figures = {
        "peak_memory_mib": watch.peak_mib,
        "signatures_run": float(len(inputs)),
        "requests": float(len(latencies) + len(least_latencies) * _LATENCY_REQUESTS),
        "median_latency_ms": float(np.median(latencies) * 1e3),
        **{f"{name}_latency_ms": least for name, least in least_latencies.items()},
    }
    for name, least in least_latencies.items():
        if max_latency_ms is not None and least > max_latency_ms:
            raise InfraError(
                f"one {name} takes {least:.1f} ms when it is served, of at most {max_latency_ms:g}"
            )
    return CheckResult(figures, warm_up)


class _MemoryWatch:
    """Polls the memory of processes, and kills those that exceed a limit."""

    def __init__(self, limit_mib: float | None):
        self.peak_mib = 0.0
        self.exceeded = ""
        self._limit_mib = limit_mib
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    def begin(self, *processes: ModuleProcess) -> None:
        self._thread = threading.Thread(target=self._watch, args=processes, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        if self._thread is not None:
            self._thread.join()

    def _watch(self, *processes: ModuleProcess) -> None:
        while not self._stopped.wait(_WATCH_SECONDS):
            for process in processes:
                memory_mib = _memory_mib(process.pid)
                self.peak_mib = max(self.peak_mib, memory_mib)
                if self._limit_mib is not None and memory_mib > self._limit_mib:
                    self.exceeded = (
                        f"the model takes {memory_mib:.0f} MiB when it is served, of at most "
                        f"{self._limit_mib:.0f}"
                    )
                    process.kill()


def _memory_mib(pid: int) -> float:
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (FileNotFoundError, ProcessLookupError, IndexError):
        return 0.0
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def _loader_signatures(loader: ModuleProcess) -> dict[str, list[str]]:
    """Waits for the loader; returns the inputs of each signature, all of which it has run."""
    # Waiting before reading cannot block the loader: its output is far smaller than a pipe.
    loader.wait(_START_SECONDS)
    assert loader.stderr is not None
    output, errors = loader.stdout.read(), loader.stderr.read()
    assert loader.returncode is not None
    if loader.returncode < 0:
        raise RuntimeError(f"the loader was killed by signal {-loader.returncode}")
    if loader.returncode:
        lines = errors.decode(errors="replace").strip().splitlines() or ["no message"]
        raise InfraError(f"TF Serving's loader refuses the model: {lines[-1]}")
    return json.loads(output.splitlines()[-1])


def _warm_up(address: str, inputs: dict[str, list[str]]) -> bytes:
    """Calls every signature and returns the requests as warm-up records.

    The requests hold generated images and texts: they are published with the model, and must not
    contain anybody's data.
    """
    buffer = io.BytesIO()
    Image.new("RGB", (32, 24), (200, 30, 30)).save(buffer, "PNG")
    content = {signatures.IMAGE_BYTES: buffer.getvalue(), signatures.TEXT: b"a red picture"}
    client, records = Client(address, timeout_seconds=_REQUEST_SECONDS), []
    for signature, names in sorted(inputs.items()):
        for count in _WARM_UP_SIZES:
            values = {name: [content[name]] * count for name in names}
            _predict(client, signature, values)
            log: Any = protos.PredictionLog()
            log.predict_log.request.CopyFrom(Options().request(signature, values))
            records.append(tfrecord.framed(log.SerializeToString(deterministic=True)))
    client.close()
    return b"".join(records)


def _predict(client: Client, signature: str, inputs: dict) -> dict[str, np.ndarray]:
    """Calls a signature; raises InfraError for errors that concern the model."""
    try:
        return client.predict(signature, inputs)
    except RequestError as error:
        if error.code in _TRANSIENT:
            raise
        raise InfraError(f"{signature} does not answer: {error}") from error


def _run_probes(
    address: str, inputs: Mapping[str, list[str]], probe_inputs: probes.ProbeInputs
) -> list[float]:
    """Runs the probe of each signature that the model has; returns the latencies in seconds.

    Raises:
        InfraError: If the model lacks a signature that every model has, or an answer is wrong.
    """
    client, latencies = Client(address, timeout_seconds=_REQUEST_SECONDS), []

    def call(signature: str, values: dict) -> dict[str, np.ndarray]:
        start = time.perf_counter()
        answer = _predict(client, signature, values)
        latencies.append(time.perf_counter() - start)
        return answer

    if missing := sorted(probes.REQUIRED - set(inputs)):
        raise InfraError(
            f"the model lacks the signature {', '.join(missing)}; export it again. "
            f"Received: {', '.join(sorted(inputs))}"
        )
    try:
        probes.probe_all(call, probe_inputs, inputs)
    except probes.WrongAnswer as error:
        raise InfraError(str(error)) from None
    finally:
        client.close()
    return latencies


def _least_latencies(
    address: str, inputs: Mapping[str, list[str]], probe_inputs: probes.ProbeInputs
) -> dict[str, float]:
    """Returns the least latency of one image, and of one text if possible, in milliseconds."""
    client, least = Client(address, timeout_seconds=_REQUEST_SECONDS), {}
    requests: dict[str, tuple[str, dict[str, list]]] = {
        "image": (signatures.EMBED_IMAGE, {signatures.IMAGE_BYTES: [probe_inputs.images[0]]})
    }
    if signatures.EMBED_TEXT in inputs:
        requests["text"] = (signatures.EMBED_TEXT, {signatures.TEXT: [probe_inputs.texts[0]]})
    for name, (signature, values) in requests.items():
        times = []
        for _ in range(_LATENCY_REQUESTS):
            start = time.perf_counter()
            _predict(client, signature, values)
            times.append(1e3 * (time.perf_counter() - start))
            # Spread over time, so that a short load of the machine does not affect all of them.
            time.sleep(_LATENCY_PAUSE_SECONDS)
        least[name] = min(times)
    client.close()
    return least
