"""What ingest costs: beside decoding, beside img2dataset on the same files, and as data grows.

Three tables. The cost: ingest of drawn scenes (PNG, 64 pixels), to decoding them by Pillow alone,
which is the least that looking at them can cost. The peer: photo-like JPEGs in files of their own
and a table of their paths, read by ingest and by img2dataset, kept as they are or scaled to 256
pixels; both decode every picture and write shards, ingest also finds copies and splits. The growth:
CPU time a pair and the peak of memory for more and more scenes.

CPU time counts all threads and child processes; of the peer it is the slope between two sizes, so
that starting up does not count. Writes `ingest.json` and `ingest.md` below `--output`.
"""

import argparse
import csv
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import machine

_CHILD = """
import sys, tempfile
from pathlib import Path
import resource
from sigline import quiet
quiet.silence()
import apache_beam as beam
from sigline.components.shared.files import BeamFiles
from sigline.components.ingest import component, input_files, readers, sources, transforms
from sigline.schemas import tf_example
mode, base, config = sys.argv[1:]
files = input_files.input_files(base, sources.SourceConfig())
before = resource.getrusage(resource.RUSAGE_SELF)
if mode == "decode":
    import io
    from PIL import Image
    for path in files:
        reader, config = readers.READERS["webdataset"], sources.SourceConfig()
        for pair in reader.scan(sources.Part(path), BeamFiles(), config, 2**25):
            if isinstance(pair, sources.RawPair):
                Image.open(io.BytesIO(pair.image)).convert("RGB").load()
else:
    with tempfile.TemporaryDirectory() as out:
        for name in ("examples", "report"):
            (Path(out) / name).mkdir()
        with beam.Pipeline(runner="FnApiRunner") as pipeline:
            folders = (out + "/examples", out + "/report")
            pipeline | transforms.Ingest(base, *folders, component.config_from_json(config))
after = resource.getrusage(resource.RUSAGE_SELF)
print(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, after.ru_maxrss / 1024)
"""
_PEER = Path(__file__).parent / "img2dataset" / "run.py"
_SCALED = '{"storage": {"max_side": 256, "form": "jpeg", "quality": 95}}'


def _measure(mode: str, base: Path, config: str = "{}") -> tuple[float, float]:
    """Returns CPU seconds and the peak of memory in MiB."""
    command = [sys.executable, "-c", _CHILD, mode, str(base), config]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    cpu_seconds, peak_mib = done.stdout.split()[-2:]
    return float(cpu_seconds), float(peak_mib)


def cost(count: int, rounds: int) -> dict:
    """Compares ingest with decoding alone."""
    from sigline.components.scenes import generate

    with tempfile.TemporaryDirectory() as base:
        generate.write_scenes(base, count=count, seed=0)
        runs: dict[str, list[float]] = {"decode": [], "ingest": []}
        for _ in range(rounds):
            for mode, measured in runs.items():
                measured.append(_measure(mode, Path(base))[0])
    pairs = zip(runs["ingest"], runs["decode"], strict=True)
    return {
        "scenes": count,
        "pairs_per_cpu_second": {
            mode: count / statistics.median(measured) for mode, measured in runs.items()
        },
        "cpu_over_decoding": statistics.median(x / y for x, y in pairs),
    }


def _write_files(folder: Path, count: int) -> None:
    """Writes pictures in files of their own, and a table with what both tools read."""
    import importlib

    images = folder / "images"
    images.mkdir(parents=True)
    importlib.import_module("input").write_photos(folder / "photos.tar", count)
    texts = {}
    with tarfile.open(folder / "photos.tar") as tar:
        for member in tar:
            content = tar.extractfile(member)
            assert content is not None
            if member.name.endswith(".txt"):
                texts[member.name.removesuffix(".txt")] = content.read().decode()
            else:
                (images / member.name).write_bytes(content.read())
    (folder / "photos.tar").unlink()
    with (folder / "pairs.csv").open("w", newline="") as handle:
        table = csv.writer(handle)
        table.writerow(("image", "url", "caption"))
        for name, text in sorted(texts.items()):
            path = images / f"{name}.jpg"
            table.writerow((f"images/{path.name}", path.as_uri(), text))


def _measure_peer(python: Path, folder: Path, mode: str) -> float:
    """Returns the CPU seconds of a process and its children."""
    with tempfile.TemporaryDirectory() as output:
        arguments = [str(python), str(_PEER), str(folder / "pairs.csv"), f"{output}/out", mode]
        environment = os.environ | {"NO_ALBUMENTATIONS_UPDATE": "1"}
        process = subprocess.Popen(
            arguments, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment
        )
        assert process.stderr is not None
        said = process.stderr.read().decode()
        _, status, usage = os.wait4(process.pid, 0)
        written = sum(_pictures(path) for path in Path(output).rglob("*.tar"))
        expected = sum(1 for _ in (folder / "images").iterdir())
        if status or written != expected:
            raise RuntimeError(f"img2dataset wrote {written} of {expected} pictures.\n{said}")
    return usage.ru_utime + usage.ru_stime


def _pictures(path: Path) -> int:
    with tarfile.open(path) as tar:
        return sum(member.name.endswith(".jpg") for member in tar)


def peer(python: Path, counts: tuple[int, int], rounds: int) -> dict:
    """Compares ingest with img2dataset."""
    with tempfile.TemporaryDirectory() as base:
        folders = [Path(base) / str(count) for count in counts]
        for folder, count in zip(folders, counts, strict=True):
            _write_files(folder, count)
        rows = {}
        for mode, config in (("kept", "{}"), ("scaled", _SCALED)):
            found: dict[str, list[float]] = {"sigline": [], "img2dataset": []}
            for _ in range(rounds):
                ours = [_measure("ingest", folder, config)[0] for folder in folders]
                theirs = [_measure_peer(python, folder, mode) for folder in folders]
                for name, (few, many) in (("sigline", ours), ("img2dataset", theirs)):
                    found[name].append(1e3 * (many - few) / (counts[1] - counts[0]))
            ratios = [x / y for x, y in zip(found["img2dataset"], found["sigline"], strict=True)]
            rows[mode] = {
                "cpu_ms_per_pair": {name: statistics.median(x) for name, x in found.items()},
                "img2dataset_over_sigline": statistics.median(ratios),
                "img2dataset_over_sigline_range": [min(ratios), max(ratios)],
            }
    return {"pictures": counts, "rows": rows}


def growth(counts: list[int]) -> list[dict]:
    """Returns CPU time a pair and the peak of memory by the number of scenes."""
    from sigline.components.scenes import generate

    rows = []
    for count in counts:
        with tempfile.TemporaryDirectory() as base:
            generate.write_scenes(base, count=count, seed=0)
            cpu_seconds, peak_mib = _measure("ingest", Path(base))
        rows.append(
            {"scenes": count, "cpu_ms_per_pair": 1e3 * cpu_seconds / count, "peak_mib": peak_mib}
        )
    return rows


def markdown(results: dict) -> str:
    """Returns the tables."""
    found = results["cost"]
    rates = found["pairs_per_cpu_second"]
    lines = [
        "# Ingest",
        "",
        f"{results['processor']}, {results['date']}; `{results['command']}`; "
        f"{results['rounds']} rounds, medians. CPU time counts all threads and processes.",
        "",
        f"Of {found['scenes']} scenes ingest takes {found['cpu_over_decoding']:.1f} times the CPU "
        f"time of decoding them by Pillow alone: {rates['ingest']:.0f} pairs a CPU second to "
        f"{rates['decode']:.0f}.",
    ]
    if results["peer"]:
        few, many = results["peer"]["pictures"]
        lines += [
            "",
            f"Photo-like JPEGs of 640 x 480 in files, slope between {few} and {many} pictures:",
            "",
            "| pictures are | sigline, CPU ms a pair | img2dataset | img2dataset's over sigline's "
            "(least, most) |",
            "|---|---|---|---|",
        ]
        for mode, row in results["peer"]["rows"].items():
            times = row["cpu_ms_per_pair"]
            low, high = row["img2dataset_over_sigline_range"]
            lines.append(
                f"| {mode} | {times['sigline']:.2f} | {times['img2dataset']:.2f} | "
                f"{row['img2dataset_over_sigline']:.2f} ({low:.2f}, {high:.2f}) |"
            )
    lines += ["", "| scenes | CPU ms a pair | peak of memory, MiB |", "|---|---|---|"]
    for row in results["growth"]:
        lines.append(f"| {row['scenes']} | {row['cpu_ms_per_pair']:.2f} | {row['peak_mib']:.0f} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=4000, help="scenes for the cost")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peer", type=Path, help="Python of an environment with img2dataset")
    parser.add_argument("--pictures", type=int, nargs=2, default=(1000, 4000), help="of the peer")
    parser.add_argument("--growth", type=int, nargs="*", default=[1_000, 10_000, 100_000])
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args()
    # No process is to compile libraries anew, which takes long and not always as long.
    with tempfile.TemporaryDirectory() as bytecode:
        os.environ["PYTHONPYCACHEPREFIX"] = bytecode
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
        results = _measured(arguments)
    machine.write_results(arguments.output, "ingest", results, markdown(results))


def _measured(arguments: argparse.Namespace) -> dict:
    results = {
        **machine.describe(),
        "command": " ".join(["benchmarks/ingest.py", *sys.argv[1:]]),
        "versions": machine.versions("apache-beam", "pillow", "tensorflow"),
        "rounds": arguments.rounds,
        "cost": cost(arguments.count, arguments.rounds),
        "peer": None,
        "growth": growth(arguments.growth),
    }
    if arguments.peer:
        results["peer"] = peer(arguments.peer, tuple(arguments.pictures), arguments.rounds)
    return results


if __name__ == "__main__":
    main()
