"""Checks that a candidate serves: loads it as servers do and sends it real requests.

Two processes of their own: one runs every signature through TF Serving's C++ loader, the other is
sigline's server, which is asked over gRPC. So a model that loads here only because this process
knows its Python classes does not pass.
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
_LONE_REQUESTS, _BETWEEN_SECONDS = 20, 0.05
# Images or texts of the requests that a model is warmed up by.
_WARM_UP_SIZES = (1, 8)
# What a busy machine answers says nothing about the model.
_TRANSIENT = ("UNAVAILABLE", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "CANCELLED")


class InfraError(RuntimeError):
    """The candidate cannot be served; the message says what went wrong."""


@contextlib.contextmanager
def running_server(base_path: str | Path, *, model_name: str = "sigline") -> Iterator[str]:
    """Starts `sigline serve` on a free loopback port; yields its address and stops it at the end.

    Raises:
        InfraError: If the server does not come up; the message has what it printed.
    """
    with _running(base_path, model_name, lambda process: None) as address:
        yield address


@contextlib.contextmanager
def _running(
    base_path: str | Path, model_name: str, begun: Callable[[ModuleProcess], None]
) -> Iterator[str]:
    """As `running_server`; `begun` is told the process as soon as there is one."""
    arguments = ["serve", "--base-path", str(base_path)]
    # The pipe to its standard input ends with this process, and the server with the pipe.
    arguments += ["--port", "0", "--no-rest", "--model-name", model_name, "--until-stdin-closes"]
    # Its standard error is for what is wrong.
    arguments.append("--quiet")
    with tempfile.TemporaryFile() as errors:
        process = ModuleProcess("sigline.cli", arguments, errors)
        begun(process)
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
        raise TimeoutError(f"the server was not ready after {_START_SECONDS} seconds") from None
    errors.seek(0)
    output = errors.read().decode(errors="replace").strip()[-2000:]
    if code < 0:
        raise RuntimeError(f"the server was killed by signal {-code}: {output}")
    raise InfraError(f"the server did not start: {output}")


def _ready_line(process: ModuleProcess) -> str | None:
    deadline = time.monotonic() + _START_SECONDS
    while (left := deadline - time.monotonic()) > 0:
        if not select.select([process.stdout], [], [], left)[0]:
            return None
        line = process.stdout.readline().decode()
        if not line:
            return None
        if line.startswith(_READY_PREFIX):
            return line
    return None


@dataclass(frozen=True)
class Checked:
    """A candidate that was served and asked.

    Attributes:
        figures: For the report: requests sent, their median latency in milliseconds, and the least
            that one image and one text took.
        warm_up: Requests that it has just answered, one for each signature and size of batch, as
            the TFRecord that servers run before they serve a model.
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
) -> Checked:
    """Loads a candidate and sends it real requests.

    Args:
        model_dir: The SavedModel.
        images: Encoded images that are known to be good, at least one.
        texts: Texts, at least one; none for a model of images alone.
        golden: What the answers must be; None to ask no more than that they are embeddings.
        max_memory_mib: Most memory that a process with the model may hold; None for no limit.
        max_latency_ms: Most time that one image or one text may take, at its best of several, since
            a busy machine says nothing about the model; None for no limit.

    Returns:
        What the requests took, and the requests to warm the model up by.

    Raises:
        InfraError: If the model does not load, a request is refused or an answer is wrong.
        Exception: Anything else, such as a time-out, says nothing about the model: try again.
    """
    loader = ModuleProcess("sigline.serving.checks.loader_check", [str(model_dir)])
    watch = _MemoryWatch(max_memory_mib)
    try:
        with tempfile.TemporaryDirectory() as base:
            os.symlink(Path(model_dir).resolve(), Path(base) / "1")
            progress.note("starting a server")
            # Watched by a thread, without which this process may be forked.
            with _running(base, "sigline", lambda server: watch.begin(loader, server)) as address:
                progress.note("running each signature by TF Serving's loader")
                inputs = _loaded(loader)
                asked = probes.Asked(images, texts, golden)
                progress.note("asking the server")
                latencies = _exercise(address, inputs, asked)
                progress.note("timing requests")
                alone = _alone(address, inputs, asked)
                progress.note("recording requests to warm up by")
                warm_up = _warm_up(address, inputs)
    # What was killed for its memory fails in many ways.
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
        "requests": float(len(latencies) + len(alone) * _LONE_REQUESTS),
        "median_latency_ms": float(np.median(latencies) * 1e3),
        **{f"{name}_latency_ms": least for name, least in alone.items()},
    }
    for name, least in alone.items():
        if max_latency_ms is not None and least > max_latency_ms:
            raise InfraError(
                f"one {name} takes {least:.1f} ms when it is served, of at most {max_latency_ms:g}"
            )
    return Checked(figures, warm_up)


class _MemoryWatch:
    """Looks at the memory of processes, and kills those that hold too much."""

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
                held = _memory_mib(process.pid)
                self.peak_mib = max(self.peak_mib, held)
                if self._limit_mib is not None and held > self._limit_mib:
                    self.exceeded = (
                        f"the model takes {held:.0f} MiB when it is served, of at most "
                        f"{self._limit_mib:.0f}"
                    )
                    process.kill()


def _memory_mib(pid: int) -> float:
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (FileNotFoundError, ProcessLookupError, IndexError):
        return 0.0
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def _loaded(loader: ModuleProcess) -> dict[str, list[str]]:
    """Returns the inputs of each signature, all of which the loader has run."""
    # It prints far less than a pipe holds.
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
    """Asks every signature as first requests do, and returns what was asked.

    With plain pictures and texts: what is published must not hold anybody's data.
    """
    buffer = io.BytesIO()
    Image.new("RGB", (32, 24), (200, 30, 30)).save(buffer, "PNG")
    content = {signatures.IMAGE_BYTES: buffer.getvalue(), signatures.TEXT: b"a red picture"}
    client, records = Client(address, timeout_seconds=_REQUEST_SECONDS), []
    for signature, names in sorted(inputs.items()):
        for count in _WARM_UP_SIZES:
            asked = {name: [content[name]] * count for name in names}
            _asked(client, signature, asked)
            log: Any = protos.PredictionLog()
            log.predict_log.request.CopyFrom(Options().request(signature, asked))
            records.append(tfrecord.framed(log.SerializeToString(deterministic=True)))
    client.close()
    return b"".join(records)


def _asked(client: Client, signature: str, inputs: dict) -> dict[str, np.ndarray]:
    try:
        return client.predict(signature, inputs)
    except RequestError as error:
        if error.code in _TRANSIENT:
            raise
        raise InfraError(f"{signature} does not answer: {error}") from error


def _exercise(address: str, inputs: Mapping[str, list[str]], asked: probes.Asked) -> list[float]:
    """Sends each signature that the model has its requests; returns the seconds they took.

    Raises:
        InfraError: If the model lacks a signature that every model has, or an answer is wrong.
    """
    client, latencies = Client(address, timeout_seconds=_REQUEST_SECONDS), []

    def call(signature: str, values: dict) -> dict[str, np.ndarray]:
        start = time.perf_counter()
        answer = _asked(client, signature, values)
        latencies.append(time.perf_counter() - start)
        return answer

    if missing := sorted(probes.NEEDED - set(inputs)):
        raise InfraError(f"the model lacks the signature {', '.join(missing)}")
    try:
        for signature, probe in probes.PROBES.items():
            if signature in inputs:
                probe(call, asked)
    except probes.WrongAnswer as error:
        raise InfraError(str(error)) from None
    finally:
        client.close()
    return latencies


def _alone(address: str, inputs: Mapping[str, list[str]], asked: probes.Asked) -> dict[str, float]:
    """Returns the least milliseconds that one image, and one text if the model reads, take."""
    client, least = Client(address, timeout_seconds=_REQUEST_SECONDS), {}
    lone: dict[str, tuple[str, dict[str, list]]] = {
        "image": (signatures.EMBED_IMAGE, {signatures.IMAGE_BYTES: [asked.images[0]]})
    }
    if signatures.EMBED_TEXT in inputs:
        lone["text"] = (signatures.EMBED_TEXT, {signatures.TEXT: [asked.texts[0]]})
    for name, (signature, values) in lone.items():
        times = []
        for _ in range(_LONE_REQUESTS):
            start = time.perf_counter()
            _asked(client, signature, values)
            times.append(1e3 * (time.perf_counter() - start))
            # Apart, so that what keeps the machine busy for a moment is not in all of them.
            time.sleep(_BETWEEN_SECONDS)
        least[name] = min(times)
    client.close()
    return least
