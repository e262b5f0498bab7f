"""Claim: lanes and blocks shuffle as well as a buffer of the same size, in what training needs.

Records that lie beside each other in the files are alike in most data sets (one site, one album),
so what counts is how far apart training sees them, and from how many files a batch comes. Tiny
records that hold their own places go through the orders of training: one shuffle buffer (the order
of before lanes, `data.lanes=none`), and lanes, that hold as many records. For a measure without
memory there is a uniform permutation. Writes `shuffle.json` and `shuffle.md` below `--output`.
"""

import argparse
import os
import statistics
import sys
import tempfile
from pathlib import Path

import machine

BATCH, EPOCHS = 1024, 3
# Shards, records of each, records held to shuffle: a large set, one that fits into what is held
# twice, and one of two shards.
SETS = {"large": (256, 512, 8192), "small": (16, 512, 16384), "two shards": (2, 4096, 16384)}
ORDERS = {
    "permutation": "uniform permutation of the epoch",
    "none": "one buffer",
    "1": "1 lane",
    "4": "4 lanes",
    "16": "16 lanes",
    "64": "64 lanes",
}


def _places(folder: Path, lanes: str, held: int, epoch: int, count: int):
    """Returns the places in the files of an epoch's records, in the order of training."""
    import numpy as np

    from sigline.trainer import config
    from sigline.trainer.inputs import buffer_order, order, shards

    if lanes == "permutation":
        return np.random.default_rng(epoch).permutation(count)
    settings = config.TrainConfig(
        name="benchmark",
        steps=1,
        global_batch_size=BATCH,
        data=config.DataConfig(lanes=None if lanes == "none" else int(lanes), shuffle_records=held),
        seed=epoch,
    )
    read = buffer_order.records if lanes == "none" else order.records
    dataset = read([shards.open_split(folder)], settings, [BATCH], first_step=0)
    batches = dataset.take(count).batch(BATCH).as_numpy_iterator()
    return np.concatenate([records for _, records in batches]).astype(np.int64)


def figures(places, shard_records: int) -> dict[str, float]:
    """Returns how well an epoch is shuffled.

    Args:
        places: Where each record of the epoch lies in the files, in the order of training.
        shard_records: Records of a shard.
    """
    import numpy as np

    position = np.empty(len(places), np.int64)
    position[places] = np.arange(len(places))
    beside = np.arange(len(places) - 1)
    beside = beside[beside % shard_records != shard_records - 1]
    distances = np.abs(position[beside] - position[beside + 1])
    together = position[beside] // BATCH == position[beside + 1] // BATCH
    batches = places[: len(places) // BATCH * BATCH].reshape(-1, BATCH) // shard_records
    return {
        "mean_distance": float(distances.mean()),
        "median_distance": float(np.median(distances)),
        "in_one_batch": float(together.mean()),
        "shards_in_a_batch": float(np.mean([len(set(row)) for row in batches.tolist()])),
    }


def measure(name: str, folder: Path) -> list[dict]:
    """Returns a row per order for one set."""
    from sigline.schemas import tf_example

    num_shards, shard_records, held = SETS[name]
    count = num_shards * shard_records
    split = folder / name
    split.mkdir()
    for shard in range(num_shards):
        first = shard * shard_records
        records = [b"%d" % place for place in range(first, first + shard_records)]
        tf_example.write_shard(str(split / f"{shard:05d}.gz"), records)
    rows = []
    for lanes in ORDERS:
        epochs = [
            figures(_places(split, lanes, held, epoch, count), shard_records)
            for epoch in range(EPOCHS)
        ]
        values = {key: statistics.median(epoch[key] for epoch in epochs) for key in epochs[0]}
        rows.append({"set": name, "order": lanes, "records": count, "held": held, **values})
    return rows


def markdown(results: dict) -> str:
    """Returns the table."""
    lines = [
        "# How well records are shuffled",
        "",
        f"{results['processor']}, {results['date']}; `{results['command']}`; batches of {BATCH}, "
        f"medians of {EPOCHS} epochs. Distances are those of records in training that lie beside "
        "each other in a shard. All orders hold the same number of records in memory.",
        "",
        "| data | order | mean distance | median | neighbours in one batch | shards in a batch |",
        "|---|---|---|---|---|---|",
    ]
    for row in results["rows"]:
        num_shards, shard_records, held = SETS[row["set"]]
        lines.append(
            f"| {num_shards} shards of {shard_records}, {held:,} held | {ORDERS[row['order']]} | "
            f"{row['mean_distance']:,.0f} | {row['median_distance']:,.0f} | "
            f"{100 * row['in_one_batch']:.1f} % | {row['shards_in_a_batch']:.1f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measures all orders on all sets and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args()
    os.environ.update(TF_CPP_MIN_LOG_LEVEL="3", CUDA_VISIBLE_DEVICES="")
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for name in SETS:
            rows += measure(name, Path(scratch))
    results = {
        **machine.describe(),
        "command": " ".join(["benchmarks/shuffle.py", *sys.argv[1:]]),
        "versions": machine.versions("tensorflow"),
        "rows": rows,
    }
    machine.write_results(arguments.output, "shuffle", results, markdown(results))


if __name__ == "__main__":
    main()
