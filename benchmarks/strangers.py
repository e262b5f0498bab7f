"""Measures what keyed clients notice of a thousand strangers that begin and never end requests.

A server with keys answers eight clients, four over gRPC and four over REST, each twenty times a
second: at first alone, then beside strangers of one kind after another, which start again as soon
as the server ends what they began. Writes `strangers.json` and `strangers.md` below `--output`.
"""

import argparse
import asyncio
import contextlib
import multiprocessing
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import machine
import numpy as np

KEY = "a-key-that-is-long-enough"
CLIENTS, STRANGERS = 8, 1000
PAUSE_SECONDS = 0.05
PREDICT = "/tensorflow.serving.PredictionService/Predict"
CHECK = "/grpc.health.v1.Health/Check"
_HEAD = b"POST /v1/models/sigline:predict HTTP/1.1\r\nHost: localhost\r\n"


def main() -> None:
    """Serves, asks and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--minutes", type=float, default=10.0, help="of strangers, all kinds")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        _export(folder / "serving" / "1")
        (folder / "keys.txt").write_text(KEY)
        found = _measure(folder, 60.0 * arguments.minutes / len(KINDS))
    machine.write_results(arguments.output, "strangers", found, _table(found))


def _export(folder: Path) -> None:
    from sigline import quiet

    quiet.import_tensorflow()
    from sigline.components.vocabulary.vocabulary import train_vocabulary
    from sigline.trainer import config
    from sigline.trainer.export import saved_model
    from sigline.trainer.models import two_tower

    tiny = config.tiny(config.load_recipe("siglip_demo"))
    words = train_vocabulary(
        ["a small red square left of a large blue ring"] * 50, vocabulary_size=40
    )
    saved_model.export(folder, two_tower.build(tiny), config=tiny, vocabulary=words)


def _measure(folder: Path, seconds: float) -> dict:
    log = folder / "log"
    command = [sys.executable, "-m", "sigline.cli", "serve", "--base-path", folder / "serving"]
    command += ["--api-key-file", folder / "keys.txt", "--port", "0", "--rest-port", "0"]
    with log.open("wb") as errors:
        server = subprocess.Popen(
            list(map(str, command)), stdout=subprocess.PIPE, stderr=errors, text=True
        )
        try:
            assert server.stdout is not None
            rest = server.stdout.readline().split()[-1]
            address = server.stdout.readline().split()[-1]
            phases = {"alone": _phase(server.pid, address, rest, None, seconds)}
            for name, kind in KINDS.items():
                phases[name] = _phase(server.pid, address, rest, kind, seconds)
                print(name, phases[name], flush=True)
        finally:
            server.terminate()
            server.wait()
    return machine.describe() | {"phases": phases, "log_bytes": log.stat().st_size}


def _phase(pid: int, address: str, rest: str, kind, seconds: float) -> dict:
    context = multiprocessing.get_context("spawn")
    stop, answers = context.Event(), context.Queue()
    processes = [context.Process(target=_clients, args=(address, rest, stop, answers))]
    if kind is not None:
        processes.append(context.Process(target=_strangers, args=(kind, address, rest, stop)))
    for process in processes:
        process.start()
    memory, descriptors, end = [], [], time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(1)
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        memory.append(pages * os.sysconf("SC_PAGE_SIZE") / 2**20)
        descriptors.append(len(os.listdir(f"/proc/{pid}/fd")))
    stop.set()
    times, failures = answers.get()
    for process in processes:
        process.join(30)
        process.kill()
    return {
        "requests": len(times),
        "failed": len(failures),
        "failures": failures[:3],
        "median_ms": 1e3 * float(np.median(times)),
        "p99_ms": 1e3 * float(np.percentile(times, 99)),
        "memory_mib": [round(memory[len(memory) // 4]), round(max(memory)), round(memory[-1])],
        "descriptors": [max(descriptors), descriptors[-1]],
    }


def _clients(address: str, rest: str, stop, answers) -> None:
    from sigline.serving.client import Client

    times, failures, parent = [], [], os.getppid()

    def _ask(target: str) -> None:
        client = Client(target, api_key=KEY, timeout_seconds=10.0, retries=0)
        client.embed_texts(["a red square"])
        while not stop.is_set() and os.getppid() == parent:
            begin = time.perf_counter()
            try:
                client.embed_texts(["a red square"])
            except Exception as error:
                failures.append(repr(error)[:200])
            times.append(time.perf_counter() - begin)
            time.sleep(PAUSE_SECONDS)
        client.close()

    targets = [address, f"http://{rest}"] * (CLIENTS // 2)
    threads = [threading.Thread(target=_ask, args=(target,)) for target in targets]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    answers.put((times, failures))


def _strangers(kind, address: str, rest: str, stop) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    parent = os.getppid()

    async def _all() -> None:
        tasks = [asyncio.ensure_future(_again(kind, address, rest, n)) for n in range(STRANGERS)]
        # They end with whoever started them, too.
        while not stop.is_set() and os.getppid() == parent:
            await asyncio.sleep(0.1)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(_all())


async def _again(kind, address: str, rest: str, number: int) -> None:
    # Not all at once, and not at once again.
    await asyncio.sleep(number / STRANGERS)
    while True:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, EOFError):
            await kind(address, rest, number)
        await asyncio.sleep(1.0)


_CHANNELS: dict[int, Any] = {}


async def _half_open(address: str, rest: str, number: int) -> None:
    """A call whose message never comes."""
    import grpc

    channel = _CHANNELS.setdefault(
        number % 20,
        grpc.aio.insecure_channel(
            address, [("grpc.use_local_subchannel_pool", 1), ("grpc.max_concurrent_streams", 100)]
        ),
    )
    call = channel.stream_unary(CHECK if number % 2 else PREDICT)()
    with contextlib.suppress(grpc.RpcError):
        await call.wait_for_connection()
        await call.code()


async def _written(rest: str, content: bytes) -> None:
    host, _, port = rest.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        writer.write(content)
        await writer.drain()
        # Until the server ends it.
        while await reader.read(4096):
            pass
    finally:
        writer.close()


async def _headers(address: str, rest: str, number: int) -> None:
    """Headers that end in their midst."""
    await _written(rest, _HEAD)


async def _body(address: str, rest: str, number: int) -> None:
    """A body of which one byte comes."""
    await _written(rest, _HEAD + b"Content-Length: 1000\r\n\r\n{")


async def _silent(address: str, rest: str, number: int) -> None:
    """A connection to the port of gRPC on which nothing comes."""
    await _written(address, b"")


async def _lists(address: str, rest: str, number: int) -> None:
    """A body of very many lists; few at a time, since they take the strangers' own cores."""
    if number % 100:
        await asyncio.sleep(3600)
    body = b'{"instances":[' + b"[]," * 1_000_000 + b"[]]}"
    await _written(rest, _HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body)


KINDS = {
    "gRPC calls without a message": _half_open,
    "headers in part": _headers,
    "bodies in part": _body,
    "silent connections to gRPC": _silent,
    "bodies of a million lists": _lists,
}


def _table(found: dict) -> str:
    rows = [
        "| strangers | requests | failed | median | p99 | memory | descriptors |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, phase in found["phases"].items():
        rows.append(
            f"| {name} | {phase['requests']:,} | {phase['failed']} | {phase['median_ms']:.1f} ms | "
            f"{phase['p99_ms']:.1f} ms | {phase['memory_mib'][1]} MiB | {phase['descriptors'][0]} |"
        )
    return "\n".join([*rows, "", f"Log: {found['log_bytes']:,} bytes.", ""])


if __name__ == "__main__":
    main()
