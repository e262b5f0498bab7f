"""Claims: hosts share the reading of a batch, and a run that resumes starts as fast anywhere.

Bytes: each of 4 hosts reads a quarter of what one host reads alone, and at most a shard for each of
its lanes more; together they prepare the records of the one host, each once, in the same order.
Pictures of noise (PNG) go through all that training does; the bytes are those that the process
reads from files, its threads included (`/proc/self/io`). Time: until the first batch is there, from
the call that asks for batches on, with an epoch of a million embedded records, resumed at several
places. Both are measured for lanes and for the order of before them (`data.lanes=none`), where each
variant is a process of its own. Writes `hosts.json` and `hosts.md` below `--output`.
"""

import argparse
import hashlib
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import machine

HOSTS, STEPS, BATCH, SIDE = (1, 2, 4), 100, 128, 64
# Shards and records of each: pictures of 12 KB for the bytes, embedded records for the time.
PICTURES, EMBEDDED = (64, 256), (1968, 508)
HELD, PLACES, DIM = 2048, (0.0, 0.1, 0.5, 0.99), 4
ORDERS = {"16": "16 lanes", "none": "one buffer"}


def write_pictures(split: Path) -> None:
    """Writes pictures of noise as a split with a manifest."""
    import numpy as np
    from PIL import Image

    from sigline.schemas import tf_example
    from sigline.schemas.record import ImageTextRecord

    def _record(number: int) -> bytes:
        pixels = np.random.default_rng(number).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG")
        item = ImageTextRecord(
            key=f"{number:06d}",
            image=buffer.getvalue(),
            text=(f"picture {number}",),
            language=("en",),
            source="benchmark",
            width=SIDE,
            height=SIDE,
            image_sha256=hashlib.sha256(buffer.getvalue()).digest(),
            image_phash=number,
        )
        return tf_example.encode(item)

    _write(split, PICTURES, _record, {})


def write_embedded(split: Path) -> None:
    """Writes a million records whose images are embedded already, all the same."""
    import tensorflow as tf

    from sigline.schemas import record

    example = tf.train.Example()
    example.features.feature[record.TEXT].bytes_list.value.append(b"picture")
    example.features.feature[record.IMAGE_EMBEDDING].float_list.value.extend([0.5] * DIM)
    serialized = example.SerializeToString(deterministic=True)
    _write(split, EMBEDDED, lambda _: serialized, {record.MANIFEST_EMBEDDINGS: {"dim": DIM}})


def _write(split: Path, size: tuple[int, int], record_of, more: dict) -> None:
    from sigline.schemas import tf_example

    split.mkdir(parents=True)
    shards, records = size
    listed = {}
    for shard in range(shards):
        path = split / f"data_tfrecord-{shard:05d}-of-{shards:05d}.gz"
        numbers = range(shard * records, (shard + 1) * records)
        tf_example.write_shard(str(path), map(record_of, numbers))
        listed[path.name] = {"records": records, "bytes": path.stat().st_size, "sha256": ""}
    manifest = {"splits": {"train": {"shards": listed}}} | more
    (split.parent / "manifest.json").write_text(json.dumps(manifest))


def _batches(split: Path, lanes: str, *, first_step: int, **options):
    from sigline.trainer import config
    from sigline.trainer.inputs import data, needs

    settings = config.TrainConfig(
        name="benchmark",
        steps=1,
        global_batch_size=BATCH,
        image=config.ImageTowerConfig(size=SIDE, patch=16),
        data=config.DataConfig(
            lanes=None if lanes == "none" else int(lanes), **options.pop("data")
        ),
    )
    needed = needs.of_pairs(settings.image, None)
    return iter(data.training_batches(split, settings, needed, first_step=first_step, **options))


def _read_bytes() -> int:
    fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(fields["rchar"])


def work_bytes(split: Path, lanes: str, hosts: int, host: int) -> dict:
    """Returns what a host reads in some steps, and digests of its pictures, in their order."""
    options = {"first_step": 0, "data": {"shuffle_records": HELD}}
    # A batch of the same first, so that what is loaded once is loaded.
    next(_batches(split, lanes, **dict(options), num_hosts=hosts, host=host))
    before = _read_bytes()
    batches = _batches(split, lanes, **dict(options), num_hosts=hosts, host=host)
    images = [next(batches)["image"].numpy() for _ in range(STEPS)]
    spent = _read_bytes() - before
    digests = [[hashlib.sha256(x.tobytes()).hexdigest()[:16] for x in batch] for batch in images]
    return {"bytes": spent, "digests": digests}


def work_time(split: Path, lanes: str, place: float) -> dict:
    """Returns how long the first batch takes where an epoch is done up to some place."""
    step = int(place * EMBEDDED[0] * EMBEDDED[1] / BATCH)
    # What is loaded once is loaded before: few records are held to shuffle.
    next(_batches(split, lanes, first_step=0, data={"shuffle_records": 1024}))
    start = time.perf_counter()
    next(_batches(split, lanes, first_step=step, data={}))
    return {"seconds": time.perf_counter() - start}


def _run(*arguments: object) -> dict:
    command = [sys.executable, __file__, "--worker", *map(str, arguments)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def measure_bytes(split: Path, lanes: str) -> list[dict]:
    """Returns a row for each number of hosts."""
    rows: list[dict] = []
    alone: list[list[str]] = []
    for hosts in HOSTS:
        parts = [_run("bytes", split, lanes, hosts, host) for host in range(hosts)]
        joined = [[x for part in parts for x in part["digests"][i]] for i in range(STEPS)]
        alone = alone or joined
        seen = [x for batch in joined for x in batch]
        rows.append(
            {
                "order": lanes,
                "hosts": hosts,
                "bytes": [part["bytes"] for part in parts],
                "prepared": len(seen),
                "prepared_twice": len(seen) - len(set(seen)),
                "order_of_one_host": joined == alone,
            }
        )
    for row in rows:
        row["share"] = max(row["bytes"]) / rows[0]["bytes"][0]
    return rows


def measure_time(split: Path, lanes: str, rounds: int) -> list[dict]:
    """Returns a row for each place; places are measured in turn."""
    answers = [[_run("time", split, lanes, place)["seconds"] for place in PLACES]
               for _ in range(rounds)]  # fmt: skip
    return [
        {
            "order": lanes,
            "place": place,
            "seconds": statistics.median(row[i] for row in answers),
            "over_start": statistics.median(row[i] / row[0] for row in answers),
        }
        for i, place in enumerate(PLACES)
    ]


def markdown(results: dict) -> str:
    """Returns the tables."""
    shard = results["shard_bytes"] / 1e6
    lines = [
        "# Several hosts, and the first batch",
        "",
        f"{results['processor']}, {results['date']}; `{results['command']}`.",
        "",
        f"Bytes that each host reads for {STEPS} steps of {BATCH} pictures, {HELD:,} of them held "
        f"to shuffle; {PICTURES[0]} shards of {shard:.1f} MB.",
        "",
        "| order | hosts | MB each reads | most, of one host's | pictures prepared, twice | "
        "order of one host |",
        "|---|---|---|---|---|---|",
    ]
    for row in results["bytes"]:
        each = ", ".join(f"{count / 1e6:.1f}" for count in row["bytes"])
        lines.append(
            f"| {ORDERS[row['order']]} | {row['hosts']} | {each} | {row['share']:.3f} | "
            f"{row['prepared']:,}, {row['prepared_twice']} | "
            f"{'yes' if row['order_of_one_host'] else 'no'} |"
        )
    lines += [
        "",
        f"Seconds until the first batch of {BATCH}, of {EMBEDDED[0] * EMBEDDED[1]:,} embedded "
        f"records in {EMBEDDED[0]:,} shards; medians of {results['rounds']} rounds.",
        "",
        "| order | part of the epoch that is done | seconds | over that at its start |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {ORDERS[row['order']]} | {100 * row['place']:.0f} % | {row['seconds']:.2f} | "
        f"{row['over_start']:.2f} |"
        for row in results["times"]
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measures both orders and writes the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--worker", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    os.environ.update(TF_CPP_MIN_LOG_LEVEL="3", CUDA_VISIBLE_DEVICES="")
    if arguments.worker:
        kind, split, lanes, *numbers = arguments.worker
        if kind == "bytes":
            answer = work_bytes(Path(split), lanes, *map(int, numbers))
        else:
            answer = work_time(Path(split), lanes, *map(float, numbers))
        print(json.dumps(answer))
        return
    with tempfile.TemporaryDirectory() as scratch:
        pictures, embedded = (Path(scratch) / name / "Split-train" for name in ("a", "b"))
        write_pictures(pictures)
        write_embedded(embedded)
        results = {
            **machine.describe(),
            "command": " ".join(["benchmarks/hosts.py", *sys.argv[1:]]),
            "versions": machine.versions("tensorflow"),
            "rounds": arguments.rounds,
            "shard_bytes": next(pictures.iterdir()).stat().st_size,
            "bytes": [row for lanes in ORDERS for row in measure_bytes(pictures, lanes)],
            "times": [
                row for lanes in ORDERS for row in measure_time(embedded, lanes, arguments.rounds)
            ],
        }
    machine.write_results(arguments.output, "hosts", results, markdown(results))


if __name__ == "__main__":
    main()
