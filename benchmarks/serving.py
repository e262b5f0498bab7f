"""Measures what the embedded server answers beside a direct call of the loaded model.

One request is one text, or one picture. Measured are requests per second, how long they take, and
the CPU time for each of the server and of those who ask, for a tiny model and one of the size of
SigLIP B/16, at several numbers of requests at a time (128 of B/16 would wait for minutes): as the
direct call of the loaded SavedModel's signature by as many threads, as calls of the server's own
session in the same way, as the server with its batches, and as the server without; those who ask
share the cores with it. For eight at a time in twice as many rounds, and once more with h2load in
place of the Python clients, if it is installed, and with the model on one core and those who ask on
another. Then the same while versions are swapped, and, with `--soak-seconds`, what memory the
server with the first model holds under a load of good and bad requests.

The server is a process of its own. Writes `serving.json` and `serving.md` below `--output`.
"""

import argparse
import asyncio
import io
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import http2_load
import machine
import workers

CONCURRENCY = {"tiny": (1, 8, 32, 128), "B/16": (1, 8, 32)}
# Seconds of each measurement; eight pictures of B/16 take three.
SECONDS = {"tiny": 6.0, "B/16": 12.0}
ROUNDS = 3
DIRECT, SESSION = "direct call", "its session"
BATCHED, SINGLE = "server", "server, no batches"
SHARED, APART, H2LOAD = "shared", "apart", "shared, h2load"
TEXT, IMAGE = "text", "image"
KINDS = (TEXT, IMAGE)
# Swaps while requests go on, and the time between them.
SWAPS, SWAP_SECONDS = 3, 4.0


def write_model(base: Path, size: str) -> None:
    """Publishes a model with random weights as version 1."""
    os.environ.update(TF_CPP_MIN_LOG_LEVEL="3", CUDA_VISIBLE_DEVICES="")
    from sigline.components.vocabulary.vocabulary import train_vocabulary
    from sigline.trainer import config
    from sigline.trainer.export import saved_model
    from sigline.trainer.models import two_tower

    recipe = config.load_recipe("siglip_b16" if size == "B/16" else "siglip_demo")
    texts = [f"a picture of number {i}, of {i % 7} colors" for i in range(200)]
    vocabulary = train_vocabulary(texts, vocabulary_size=80)
    saved_model.export(base / "1", two_tower.build(recipe), config=recipe, vocabulary=vocabulary)


def picture(number: int) -> bytes:
    """Returns a JPEG of 320 x 240 pixels."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(number)
    coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), np.uint8))
    buffer = io.BytesIO()
    coarse.resize((320, 240), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def _inputs(kind: str) -> list[tuple[str, dict]]:
    if kind == TEXT:
        return [("embed_text", {"text": [f"a picture of number {i}"]}) for i in range(64)]
    return [("embed_image", {"image_bytes": [picture(i)]}) for i in range(16)]


def direct(base: Path) -> None:
    """Serves direct calls: answers `WAY KIND CONCURRENCY SECONDS` on standard input by figures."""
    os.environ.update(TF_CPP_MIN_LOG_LEVEL="3", CUDA_VISIBLE_DEVICES="")
    import numpy as np
    import tensorflow as tf

    from sigline.serving.server.engine import LoadedVersion

    engine = LoadedVersion(base / "1", 1)
    loaded = tf.saved_model.load(str(base / "1"))

    def call(signature: str, inputs: dict) -> dict:
        tensors = {name: tf.constant(value) for name, value in inputs.items()}
        return {k: v.numpy() for k, v in loaded.signatures[signature](**tensors).items()}

    ways = {DIRECT: call, SESSION: engine.run}
    asked = {}
    for kind in KINDS:
        asked[kind] = []
        for signature, inputs in _inputs(kind):
            ((name, values),) = inputs.items()
            values = [x.encode() if isinstance(x, str) else x for x in values]
            asked[kind].append((signature, {name: np.array(values, object)}))
        for run in ways.values():
            run(*asked[kind][0])
    workers.answer({})
    for line in sys.stdin:
        way, kind, concurrency, seconds = json.loads(line)
        run, times, end = ways[way], [], time.perf_counter() + seconds

        def ask(first: int, run=run, asked=asked[kind], times=times, end=end) -> None:
            number = first
            while (begin := time.perf_counter()) < end:
                run(*asked[number % len(asked)])
                times.append(time.perf_counter() - begin)
                number += 1

        spent, begin = time.process_time(), time.perf_counter()
        threads = [threading.Thread(target=ask, args=(i,)) for i in range(int(concurrency))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        took, spent = time.perf_counter() - begin, time.process_time() - spent
        workers.answer(_figures(times, took, cpu=spent, asking=0.0))


def _figures(times: list[float], seconds: float, *, cpu: float, asking: float) -> dict:
    ordered = sorted(times)
    return {
        "per_second": len(times) / seconds,
        "cpu_ms": 1e3 * cpu / max(len(times), 1),
        "asking_cpu_ms": 1e3 * asking / max(len(times), 1),
        **{
            f"p{q}_ms": 1e3 * ordered[min(len(ordered) - 1, len(ordered) * q // 100)]
            for q in (50, 95, 99)
        },
    }


class Server:
    """A `sigline serve` in a process of its own."""

    def __init__(self, base: Path, *options: str):
        command = [sys.executable, "-m", "sigline.cli", "serve", "--base-path", str(base)]
        command += ["--port", "0", "--no-rest", "--poll-seconds", "0.2", *options]
        begin = time.perf_counter()
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the server ended with code {self.process.wait()}")
        self.address = line.split()[-1]
        self.start_seconds = time.perf_counter() - begin

    def cpu_seconds(self) -> float:
        """Returns the CPU time that it has taken."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def finish(self) -> None:
        """Waits until it computes nothing any more: h2load does not wait for the last answers."""
        spent = -1.0
        while self.cpu_seconds() > spent + 0.1:
            spent = self.cpu_seconds()
            time.sleep(0.5)

    def memory_mib(self) -> float:
        """Returns the memory that it holds."""
        fields = Path(f"/proc/{self.process.pid}/statm").read_text().split()
        return int(fields[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20

    def stop(self) -> None:
        """Ends it in order."""
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(60)


def _requests(kind: str) -> list[bytes]:
    from sigline.serving.client.transport import Options

    return [Options().request(*asked).SerializeToString() for asked in _inputs(kind)]


def check(server: Server, kind: str) -> None:
    """Asks once, and reads the answer; the first request of a kind takes longer than others."""
    import grpc

    from sigline.serving.client.transport import to_answer
    from sigline.serving.protocol import protos

    with grpc.insecure_channel(server.address) as channel:
        answer = channel.unary_unary(protos.PREDICT)(_requests(kind)[0], timeout=300.0)
    found = to_answer(protos.PredictResponse.FromString(answer))
    assert found.outputs["embedding"].shape[0] == 1


async def _load(address: str, kind: str, concurrency: int, seconds: float) -> list[float]:
    """Asks in a closed loop; returns how long each request took.

    Requests are serialized before and answers are not read: what is measured is the server, with
    which this process shares the cores.
    """
    import grpc

    from sigline.serving.protocol import protos

    requests = _requests(kind)
    channel, times = grpc.aio.insecure_channel(address), []
    call = channel.unary_unary(protos.PREDICT)
    end = time.perf_counter() + seconds

    async def ask(number: int) -> None:
        while (begin := time.perf_counter()) < end:
            await call(requests[number % len(requests)], timeout=300.0)
            times.append(time.perf_counter() - begin)
            number += 1

    await asyncio.gather(*(ask(i) for i in range(concurrency)))
    await channel.close()
    return times


def ask(server: Server, kind: str, concurrency: int, seconds: float, *, by: str = SHARED) -> dict:
    """Returns the figures of a server under a load of Python's clients, or of h2load."""
    spent, asking, begin = server.cpu_seconds(), os.times(), time.perf_counter()
    if by == H2LOAD:
        from sigline.serving.protocol import protos

        message = _requests(kind)[0]
        times, took = http2_load.ask(server.address, protos.PREDICT, message, concurrency, seconds)
        asked = sum(os.times()[2:4]) - sum(asking[2:4])
        server.finish()
    else:
        times = asyncio.run(_load(server.address, kind, concurrency, seconds))
        took = time.perf_counter() - begin
        asked = sum(os.times()[:2]) - sum(asking[:2])
    return _figures(times, took, cpu=server.cpu_seconds() - spent, asking=asked)


def measure(
    size: str, base: Path, rounds: int, concurrency: tuple[int, ...], cores: str
) -> tuple[list[dict], dict[str, float]]:
    """Returns a row for each way, kind and concurrency, and what the server took to start.

    Args:
        size: Name of the model.
        base: Its versions.
        rounds: How often each is measured; eight at a time twice as often. Every other round
            begins from the end, since the machine's pace changes.
        concurrency: Requests at a time.
        cores: `SHARED`, `H2LOAD`, or `APART` for the model on the first core and those who ask on
            the others.
    """
    every = os.sched_getaffinity(0)
    first = {min(every)}
    if cores == APART:
        # Those that are started now stay there.
        os.sched_setaffinity(0, first)
    worker = workers.start(__file__, 2, "--direct", base)
    workers.read(worker, DIRECT)
    servers = {BATCHED: Server(base)}
    if cores == SHARED:
        servers[SINGLE] = Server(base, "--max-batch-size", "1")
    if cores == APART:
        os.sched_setaffinity(0, every - first)
    starts = {name: server.start_seconds for name, server in servers.items()}
    rows, seconds = [], SECONDS[size]
    assert worker.stdin is not None
    for kind in KINDS:
        for server in servers.values():
            check(server, kind)
        for number in concurrency:
            ways = [DIRECT, SESSION, *servers] if cores == SHARED else [DIRECT, *servers]
            found: dict[str, list[dict]] = {way: [] for way in ways}
            for turn in range(2 * rounds if number == 8 else rounds):
                for way in reversed(ways) if turn % 2 else ways:
                    if way in servers:
                        found[way].append(ask(servers[way], kind, number, seconds, by=cores))
                        continue
                    worker.stdin.write(json.dumps([way, kind, number, seconds]) + "\n")
                    worker.stdin.flush()
                    found[way].append(workers.read(worker, way))
            for name, figures in found.items():
                about = {"model": size, "cores": cores, "request": kind, "concurrency": number}
                rows.append(about | {"variant": name} | _summary(figures, found[DIRECT]))
                print(rows[-1], file=sys.stderr, flush=True)
    worker.stdin.close()
    worker.wait()
    for server in servers.values():
        server.stop()
    os.sched_setaffinity(0, every)
    return rows, starts


def _summary(figures: list[dict], direct: list[dict]) -> dict:
    ratios = [x["per_second"] / y["per_second"] for x, y in zip(figures, direct, strict=True)]
    return {
        "ratio": statistics.median(ratios),
        "ratio_range": [min(ratios), max(ratios)],
        **{key: statistics.median(item[key] for item in figures) for key in figures[0]},
    }


def swaps(base: Path) -> dict:
    """Returns the figures of eight clients without swaps, and while versions are swapped."""
    server = Server(base)
    check(server, TEXT)
    calm = ask(server, TEXT, 8, SWAPS * SWAP_SECONDS)

    def publish() -> None:
        for version in range(2, 2 + SWAPS):
            scratch = base / f".tmp-{version}"
            shutil.copytree(base / "1", scratch)
            scratch.rename(base / str(version))
            time.sleep(SWAP_SECONDS)

    publisher = threading.Thread(target=publish)
    publisher.start()
    swapped = ask(server, TEXT, 8, SWAPS * SWAP_SECONDS)
    publisher.join()
    server.stop()
    for version in range(2, 2 + SWAPS):
        shutil.rmtree(base / str(version))
    return {"calm": calm, "swapped": swapped, "swaps": SWAPS}


def soak(base: Path, seconds: float) -> dict:
    """Returns the memory of a server over a time of good and bad requests."""
    from sigline.serving.client import Client
    from sigline.serving.client.transport import RequestError

    server = Server(base)
    client, begin, held, count = Client(server.address, retries=0), time.monotonic(), [], 0
    stop = threading.Event()
    good = threading.Thread(
        target=lambda: asyncio.run(_load(server.address, TEXT, 4, seconds)), daemon=True
    )
    good.start()
    bad = [b"", b"\xff\xd8\xff", picture(0)[:500], b"\x89PNG\r\n\x1a\n" + b"\0" * 100]
    while time.monotonic() - begin < seconds:
        images = [picture(count % 16), bad[count % len(bad)]]
        client.embed_images(images)
        try:
            client.predict("embed_image", {"image_bytes": [bad[count % len(bad)]]})
        except RequestError:
            count += 1
        if len(held) <= 10 * (time.monotonic() - begin) / seconds:
            held.append(round(server.memory_mib(), 1))
    stop.set()
    good.join()
    server.stop()
    return {"seconds": seconds, "bad_requests": count, "memory_mib": held}


def markdown(results: dict) -> str:
    """Returns the tables."""
    lines = [
        "# Serving",
        "",
        f"{results['processor']}, {results['cpu_count']} threads, {results['date']}; "
        f"`{results['command']}`; {results['rounds']} rounds of {SECONDS['tiny']:g} s each (B/16: "
        f"{SECONDS['B/16']:g} s), twice as many for eight at a time, medians. Those who ask, in "
        "Python or as h2load, share the cores with the model, or the model has one core and they "
        "have the other (apart); a request is one text, or one JPEG of 320 x 240.",
        "",
        "| model | cores | request | at a time | | requests/s | times the direct call (least, most)"
        " | p50 ms | p95 | p99 | CPU ms | of those who ask |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in results["rows"]:
        low, high = row["ratio_range"]
        lines.append(
            f"| {row['model']} | {row['cores']} | {row['request']} | "
            f"{row['concurrency']} | {row['variant']} | "
            f"{row['per_second']:.0f} | {row['ratio']:.2f} ({low:.2f}, {high:.2f}) | "
            f"{row['p50_ms']:.1f} | {row['p95_ms']:.1f} | {row['p99_ms']:.1f} | "
            f"{row['cpu_ms']:.2f} | {row['asking_cpu_ms']:.2f} |"
        )
    for size, found in results["swaps"].items():
        calm, swapped = found["calm"], found["swapped"]
        lines += [
            "",
            f"{size}: {found['swaps']} swaps under eight clients with texts: p99 "
            f"{swapped['p99_ms']:.0f} ms, {calm['p99_ms']:.0f} ms without; "
            f"{swapped['per_second']:.0f} and {calm['per_second']:.0f} requests a second.",
        ]
    for size, found in results["starts"].items():
        lines += ["", f"{size}: ready {found[BATCHED]:.1f} s after its start."]
    for size, found in results["soak"].items():
        memory = ", ".join(f"{x:.0f}" for x in found["memory_mib"])
        lines += [
            "",
            f"{size}, {found['seconds']:.0f} s of texts, images and {found['bad_requests']} bad "
            f"images: memory {memory} MiB.",
        ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Runs all sizes and writes the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sizes", nargs="*", default=["tiny", "B/16"])
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--soak-seconds", type=float, default=0.0)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--direct", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--write", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.write:
        write_model(Path(arguments.write[0]), arguments.write[1])
        return
    if arguments.direct:
        direct(arguments.direct)
        return
    results = {
        **machine.describe(),
        "command": " ".join(["benchmarks/serving.py", *sys.argv[1:]]),
        "versions": machine.versions("tensorflow", "grpcio"),
        "rounds": arguments.rounds,
        "rows": [],
        "swaps": {},
        "starts": {},
        "soak": {},
    }
    with tempfile.TemporaryDirectory() as scratch:
        for number, size in enumerate(arguments.sizes):
            base = Path(scratch) / str(number) / "versions"
            base.mkdir(parents=True)
            # In a process of its own: what TensorFlow holds would weigh on the others.
            subprocess.run([sys.executable, __file__, "--write", base, size], check=True)
            rows, starts = measure(size, base, arguments.rounds, CONCURRENCY[size], SHARED)
            results["rows"] += rows
            for cores in (H2LOAD, APART) if http2_load.is_installed() else (APART,):
                results["rows"] += measure(size, base, arguments.rounds, (8,), cores)[0]
            results["starts"][size] = starts
            results["swaps"][size] = swaps(base)
            if arguments.soak_seconds and not number:
                results["soak"][size] = soak(base, arguments.soak_seconds)
    machine.write_results(arguments.output, "serving", results, markdown(results))


if __name__ == "__main__":
    main()
