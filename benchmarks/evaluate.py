"""Claim: retrieval is evaluated exactly in a fraction of CLIP_benchmark's time and memory.

Both get the same embeddings: images, and five captions of each, unit vectors with noise between
them. CLIP_benchmark's own `evaluate` is given them as if a model had just made them; it holds all
scores of texts and images and compares them by one-hot vectors. sigline walks over blocks of the
scores once for both directions. The recalls must be equal to the last digit that CLIP_benchmark has
(float32), or the benchmark fails.

Each is a process of its own, asked in turn; compared is wall time within a round, and the most
memory that each has held. Writes `evaluate.json` and `evaluate.md` below `--output`.
"""

import argparse
import resource
import statistics
import sys
import time
from pathlib import Path

import machine
import workers

DIM, CAPTIONS = 512, 5
# Scale of the noise between an image and its captions, so that recalls lie away from 0 and 1.
NOISE = 5.0
SIGLINE, PEER = "sigline", "clip-benchmark"
# Images, rounds, recalls, and whether CLIP_benchmark takes part; its time grows with the sum of the
# recalls, 5 is its default.
SIZES = ((2_000, 5, (1, 5, 10), True), (20_000, 1, (5,), True), (100_000, 1, (5,), False))
_BATCH = 64


def embeddings(count: int):
    """Returns unit vectors of images `(count, dim)` and of their captions, in a row, float32."""
    import numpy as np

    rng = np.random.default_rng(0)
    image = rng.standard_normal((count, DIM), dtype=np.float32)
    image /= np.linalg.norm(image, axis=1, keepdims=True)
    text = np.repeat(image, CAPTIONS, axis=0)
    text += NOISE / DIM**0.5 * rng.standard_normal(text.shape, dtype=np.float32)
    text /= np.linalg.norm(text, axis=1, keepdims=True)
    return image, text


def _sigline(count: int, recall_at: tuple[int, ...]):
    import numpy as np

    from sigline.components.evaluate.metrics import retrieval

    image, text = embeddings(count)
    pairs = np.stack([np.repeat(np.arange(count), CAPTIONS), np.arange(len(text))], axis=1)

    def evaluate() -> dict[str, float]:
        to_text, to_image = retrieval.ranks(image, text, pairs)
        return {
            f"{name}_retrieval_recall@{k}": float(np.mean(ranks < k))
            for name, ranks in (("image", to_image), ("text", to_text))
            for k in recall_at
        }

    return evaluate


def _clip_benchmark(count: int, recall_at: tuple[int, ...]):
    import torch
    from clip_benchmark.metrics import zeroshot_retrieval

    image, text = (torch.from_numpy(x) for x in embeddings(count))

    class Model:
        """Embeds what is embedded already."""

        def encode_image(self, x):
            return x

        encode_text = encode_image

    # Texts are given by their numbers.
    batches = [
        (
            image[start : start + _BATCH],
            [
                range(CAPTIONS * i, CAPTIONS * (i + 1))
                for i in range(start, min(start + _BATCH, count))
            ],
        )
        for start in range(0, count, _BATCH)
    ]

    def evaluate() -> dict[str, float]:
        return zeroshot_retrieval.evaluate(
            Model(),
            batches,
            tokenizer=lambda numbers: text[torch.tensor(numbers)],
            device="cpu",
            amp=False,
            recall_k_list=list(recall_at),
        )

    return evaluate


def work(variant: str, count: int, recall_at: tuple[int, ...]) -> None:
    """Serves one variant: answers each line on standard input by time, memory and recalls."""
    evaluate = (_sigline if variant == SIGLINE else _clip_benchmark)(count, recall_at)
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    workers.answer({})
    for _ in sys.stdin:
        start = time.perf_counter()
        recalls = evaluate()
        seconds = time.perf_counter() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        workers.answer(
            {"seconds": seconds, "gib": peak / 2**20, "start_gib": held / 2**20, "recalls": recalls}
        )


def measure(count: int, rounds: int, recall_at: tuple[int, ...], peer: bool) -> dict:
    """Returns what one size took."""
    processes, ks = {}, ",".join(map(str, recall_at))
    for variant in (SIGLINE, PEER) if peer else (SIGLINE,):
        processes[variant] = workers.start(__file__, 2, "--worker", variant, count, ks)
        workers.read(processes[variant], variant)
    answers = workers.rounds(processes, rounds)
    found = {
        "images": count,
        "texts": CAPTIONS * count,
        "rounds": rounds,
        "recalls": answers[SIGLINE][0]["recalls"],
    }
    for variant, given in answers.items():
        found[variant] = {
            "seconds": statistics.median(x["seconds"] for x in given),
            "peak_gib": max(x["gib"] for x in given),
            "start_gib": given[0]["start_gib"],
        }
    if peer:
        for name, value in answers[PEER][0]["recalls"].items():
            other = found["recalls"][name]
            if abs(value - other) > 1e-6:
                raise RuntimeError(f"{name} differs: {other} and, by CLIP_benchmark, {value}")
        pairs = zip(answers[PEER], answers[SIGLINE], strict=True)
        ratios = [x["seconds"] / y["seconds"] for x, y in pairs]
        found["ratio"] = {
            "median": statistics.median(ratios),
            "least": min(ratios),
            "most": max(ratios),
        }
    return found


def markdown(results: dict) -> str:
    """Returns the table."""
    lines = [
        "# Evaluating retrieval",
        "",
        f"{results['processor']}, {results['cpu_count']} threads, {results['date']}; "
        f"`{results['command']}`; embeddings of {DIM} numbers, medians. Peak memory, with the "
        "embeddings and the libraries.",
        "",
        "| images x texts | rounds | sigline: s | GiB | CLIP_benchmark: s | GiB | its time over "
        "sigline's (least, most) | image to text and text to image recall@5 |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in results["rows"]:
        own, peer, ratio = row[SIGLINE], row.get(PEER), row.get("ratio")
        other = f"{peer['seconds']:.1f} | {peer['peak_gib']:.2f}" if peer else "not run |"
        times = (
            f"{ratio['median']:.1f} ({ratio['least']:.1f}, {ratio['most']:.1f})" if ratio else ""
        )
        recalls = row["recalls"]
        lines.append(
            f"| {row['images']:,} x {row['texts']:,} | {row['rounds']} | {own['seconds']:.1f} | "
            f"{own['peak_gib']:.2f} | {other} | {times} | "
            f"{recalls['text_retrieval_recall@5']:.4f}, {recalls['image_retrieval_recall@5']:.4f} |"
        )
    lines += ["", "Where both ran, all recalls (at 1, 5 and 10 of the smallest) were equal."]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Runs all sizes and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--largest", type=int, default=100_000, help="most images")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        variant, count, ks = arguments.worker
        work(variant, int(count), tuple(map(int, ks.split(","))))
        return
    rows = [measure(*size) for size in SIZES if size[0] <= arguments.largest]
    results = {
        **machine.describe(),
        "command": " ".join(["benchmarks/evaluate.py", *sys.argv[1:]]),
        "versions": machine.versions("numpy", "torch", "clip-benchmark"),
        "rows": rows,
    }
    machine.write_results(arguments.output, "evaluate", results, markdown(results))


if __name__ == "__main__":
    main()
