"""Measures a model's signatures with one thread an operation, and with one a core.

What `sigline serve --intra-op-parallelism` chooses: texts and pictures, one, four and sixteen at a
time, by the server's session, without a server around it. Models have random weights and go from
that of the demo to SigLIP B/16. Each variant is a process of its own; they take turns, and are
compared within a turn. By default the server has one thread for models below 32 MiB of weights,
and one a core for others. Writes `operation_threads.json` and `operation_threads.md` below
`--output`.
"""

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import machine
import workers

import serving

# Image size, patch, text length, and of both towers width, layers and heads; the recipe's own ones.
SIZES = {
    "demo": None,
    "128 x 6": (64, 8, 16, 128, 6, 2),
    "Ti/16": (224, 16, 64, 192, 12, 3),
    "B/16": None,
}
BATCHES = (1, 4, 16)
# One thread an operation, or one a core.
ONE, EACH = 1, 0
# Seconds of each measurement, at least, beside one that is not counted.
SECONDS = 1.0
ROUNDS = 3


def write_model(base: Path, size: str) -> None:
    """Exports a model with random weights as version 1."""
    shape = SIZES[size]
    if shape is None:
        serving.write_model(base, size)
        return
    os.environ.update(TF_CPP_MIN_LOG_LEVEL="3", CUDA_VISIBLE_DEVICES="")
    from sigline.components.vocabulary.vocabulary import train_vocabulary
    from sigline.trainer import config
    from sigline.trainer.export import saved_model
    from sigline.trainer.models import two_tower

    pixels, patch, length, width, depth, heads = shape
    recipe = config.load_recipe("siglip_b16")
    tower = {"width": width, "depth": depth, "mlp_dim": 4 * width, "num_heads": heads}
    image = dataclasses.replace(recipe.image, size=pixels, patch=patch, **tower)
    text = dataclasses.replace(recipe.text, vocabulary_size=8000, length=length, **tower)
    recipe = dataclasses.replace(recipe, image=image, text=text)
    texts = [f"a picture of number {i}, of {i % 7} colors" for i in range(200)]
    vocabulary = train_vocabulary(texts, vocabulary_size=80)
    saved_model.export(base / "1", two_tower.build(recipe), config=recipe, vocabulary=vocabulary)


def run(base: Path, threads: int) -> None:
    """Answers each line on standard input, a kind and a number of rows, by milliseconds."""
    os.environ.update(TF_CPP_MIN_LOG_LEVEL="3", CUDA_VISIBLE_DEVICES="")
    import numpy as np

    from sigline.serving.server.engine import LoadedVersion

    engine = LoadedVersion(base / "1", 1, intra_op_parallelism=threads)
    pictures = [serving.picture(i) for i in range(max(BATCHES))]
    texts = [f"a picture of number {i}".encode() for i in range(max(BATCHES))]
    workers.answer({})
    for line in sys.stdin:
        kind, rows = json.loads(line)
        name, values = ("text", texts) if kind == serving.TEXT else ("image_bytes", pictures)
        inputs = {name: np.array(values[:rows], object)}
        engine.run(f"embed_{kind}", inputs)
        calls, begin, spent = 0, time.perf_counter(), time.process_time()
        while time.perf_counter() < begin + SECONDS:
            engine.run(f"embed_{kind}", inputs)
            calls += 1
        took, spent = time.perf_counter() - begin, time.process_time() - spent
        workers.answer({"ms": 1e3 * took / calls, "cpu_ms": 1e3 * spent / calls})


def measure(base: Path, size: str, rounds: int) -> list[dict]:
    """Returns a row for each kind and number of rows."""
    weights = sum(x.stat().st_size for x in (base / "1" / "variables").iterdir())
    processes = {n: workers.start(__file__, 1, "--run", base, n) for n in (ONE, EACH)}
    for process in processes.values():
        workers.read(process, size)
    rows = []
    for kind in serving.KINDS:
        for batch in BATCHES:
            found: dict[int, list[dict]] = {ONE: [], EACH: []}
            for turn in range(rounds):
                for threads in (ONE, EACH) if turn % 2 else (EACH, ONE):
                    process = processes[threads]
                    assert process.stdin is not None
                    process.stdin.write(json.dumps([kind, batch]) + "\n")
                    process.stdin.flush()
                    found[threads].append(workers.read(process, size))
            ratios = [x["ms"] / y["ms"] for x, y in zip(found[ONE], found[EACH], strict=True)]
            row = {"model": size, "weights_mib": weights / 2**20, "request": kind, "rows": batch}
            row |= {"ratio": statistics.median(ratios), "ratio_range": [min(ratios), max(ratios)]}
            for name, threads in (("one", ONE), ("each", EACH)):
                for key in ("ms", "cpu_ms"):
                    row[f"{name}_{key}"] = statistics.median(x[key] for x in found[threads])
            rows.append(row)
            print(row, file=sys.stderr, flush=True)
    for process in processes.values():
        assert process.stdin is not None
        process.stdin.close()
        process.wait()
    return rows


def markdown(results: dict) -> str:
    """Returns the table."""
    lines = [
        "# Threads of an operation",
        "",
        f"{results['processor']}, {results['cpu_count']} threads, {results['date']}; "
        f"`{results['command']}`; {results['rounds']} rounds of {SECONDS:g} s each, medians. "
        "A call of a model's signature alone on the machine, with one thread an operation "
        "(`--intra-op-parallelism 1`) and with one a core (`0`). By default the server has one "
        "below 32 MiB of weights, and one a core above.",
        "",
        "| model | weights, MiB | request | rows | ms with one | with one a core "
        "| times (least, most) | CPU ms with one | with one a core |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in results["rows"]:
        low, high = row["ratio_range"]
        lines.append(
            f"| {row['model']} | {row['weights_mib']:.0f} | {row['request']} | {row['rows']} | "
            f"{row['one_ms']:.1f} | {row['each_ms']:.1f} | "
            f"{row['ratio']:.2f} ({low:.2f}, {high:.2f}) | "
            f"{row['one_cpu_ms']:.1f} | {row['each_cpu_ms']:.1f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Runs all sizes and writes the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sizes", nargs="*", default=list(SIZES), choices=list(SIZES))
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--run", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--write", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.write:
        write_model(Path(arguments.write[0]), arguments.write[1])
        return
    if arguments.run:
        run(Path(arguments.run[0]), int(arguments.run[1]))
        return
    results = {
        **machine.describe(),
        "command": " ".join(["benchmarks/operation_threads.py", *sys.argv[1:]]),
        "versions": machine.versions("tensorflow"),
        "rounds": arguments.rounds,
        "rows": [],
    }
    with tempfile.TemporaryDirectory() as scratch:
        for number, size in enumerate(arguments.sizes):
            base = Path(scratch) / str(number)
            base.mkdir()
            subprocess.run([sys.executable, __file__, "--write", base, size], check=True)
            results["rows"] += measure(base, size, arguments.rounds)
    machine.write_results(arguments.output, "operation_threads", results, markdown(results))


if __name__ == "__main__":
    main()
