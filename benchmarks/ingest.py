"""Claim: ingest examines and writes pairs at a small multiple of the cost of decoding them once.

Compares, interleaved in one process group and by CPU time, the full ingest of generated scenes with
decoding the same images by Pillow alone, which is the least that verifying them can cost. Prints
one table; `--output` writes it as JSON with date, versions and hardware.
"""

import argparse
import json
import statistics
import subprocess
import sys
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
from sigline.components.files import BeamFiles
from sigline.components.ingest import readers, rules, sources, transforms
from sigline.schemas import tf_example
mode, base = sys.argv[1:]
files = transforms.input_files(base, sources.SourceConfig())
before = resource.getrusage(resource.RUSAGE_SELF)
if mode == "decode":
    import io
    from PIL import Image
    for path in files:
        reader, config = readers.READERS["webdataset"], sources.SourceConfig()
        for pair in reader.scan(sources.Part(path), BeamFiles(), config, 2**25):
            Image.open(io.BytesIO(pair.image)).convert("RGB").load()
else:
    out = tempfile.mkdtemp()
    for name in ("examples", "report"):
        (Path(out) / name).mkdir()
    with beam.Pipeline(runner="FnApiRunner") as pipeline:
        folders = (out + "/examples", out + "/report")
        pipeline | transforms.Ingest(base, *folders, rules.IngestConfig())
after = resource.getrusage(resource.RUSAGE_SELF)
print(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, after.ru_maxrss / 1024)
"""


def _measure(mode: str, base: str) -> tuple[float, float]:
    command = [sys.executable, "-c", _CHILD, mode, base]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    cpu_seconds, peak_mib = done.stdout.split()[-2:]
    return float(cpu_seconds), float(peak_mib)


def main() -> None:
    """Runs the benchmark."""
    from sigline.components.scenes import generate

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=4000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as base:
        generate.write_scenes(base, count=arguments.count, seed=0)
        runs: dict[str, list[tuple[float, float]]] = {"decode": [], "ingest": []}
        for _ in range(arguments.rounds):
            for mode, measured in runs.items():
                measured.append(_measure(mode, base))
    rows = {
        mode: {
            "cpu_seconds": statistics.median(cpu for cpu, _ in measured),
            "pairs_per_cpu_second": arguments.count / statistics.median(cpu for cpu, _ in measured),
            "peak_rss_mib": statistics.median(peak for _, peak in measured),
        }
        for mode, measured in runs.items()
    }
    rows["ratio"] = {"cpu": rows["ingest"]["cpu_seconds"] / rows["decode"]["cpu_seconds"]}
    result = {
        **machine.describe(),
        "command": f"benchmarks/ingest.py --count {arguments.count} --rounds {arguments.rounds}",
        "results": rows,
    }
    text = json.dumps(result, indent=1)
    print(text)
    if arguments.output:
        arguments.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
