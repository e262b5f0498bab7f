"""Claim: reading training pairs costs at most half the CPU time of open_clip's webdataset loader.

The same images lie in WebDataset tars and in sigline's TFRecords. Each variant reads them all, in
shuffled order and ahead of the step, and gives batches at the size the tower takes: sigline as it
trains; open_clip as it trains, by its own function that makes a loader of webdataset, with its
transform and tokenizer; and, as a bound, webdataset with the least that Pillow and SentencePiece
need (decode, RGB, bilinear resize, array; pieces, filled up to their length), which nobody's
training script is. Each reads with and without random crops.

What is compared is CPU time, all threads and worker processes counted, so that it is the throughput
of a core; each variant is a process of its own (webdataset's with one worker that reads ahead), the
driver runs them in turn, and compares within a round. The sets are drawn scenes (PNG, 64 pixels)
and photo-like pictures (JPEG, 640 x 480), or `--shards`. Writes `input.json` and `input.md` below
`--output`.
"""

import argparse
import io
import multiprocessing
import os
import statistics
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import machine
import workers

BATCH, SIZE, PATCH, LENGTH = 64, 224, 16, 64
SIGLINE = "sigline"
VARIANTS = {
    SIGLINE: "sigline",
    "open-clip": "open_clip's loader (webdataset, Pillow)",
    "webdataset": "bare loop of webdataset, Pillow, SentencePiece",
}
# Least area that a crop keeps: that of SigLIP's relatives that crop, and of open_clip.
CROP = 0.05


def write_scenes(path: Path, count: int) -> None:
    """Writes drawn scenes with captions as a WebDataset tar."""
    import numpy as np

    from sigline.components.scenes import draw, grammar

    def sample(index: int):
        rng = np.random.default_rng(index)
        scene = grammar.sample_scene(rng, held_out=False)
        return draw.draw_scene(scene, rng), scene.captions()[0]

    _write_tar(path, (sample(i) for i in range(count)), "png", {})


def write_photos(path: Path, count: int) -> None:
    """Writes pictures whose detail falls with its frequency, as that of photos does, as JPEG."""
    import numpy as np
    from PIL import Image

    height, width = 480, 640
    y, x = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None]
    # Chosen for the size of files: 2.0 bits a pixel. Seven photographs of this size, those in color
    # that scikit-image and scikit-learn hold, take 1.4 to 2.9 at this quality, the middle one 2.1.
    falloff = 1.0 / np.maximum(np.hypot(y, x), 1.0 / width) ** 1.5

    def sample(index: int):
        rng = np.random.default_rng(index)
        noise = np.fft.rfft2(rng.standard_normal((3, height, width)))
        # The channels of photos differ far less from each other than places do.
        noise = noise[:1] + 0.25 * noise
        pixels = np.fft.irfft2(noise * falloff, (height, width)).transpose(1, 2, 0)
        pixels = 128 + 48 * pixels / pixels.std()
        image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
        return image, f"a picture of noise, number {index}, that looks like a cloud"

    _write_tar(path, (sample(i) for i in range(count)), "jpg", {"quality": 90})


def _write_tar(path: Path, samples, suffix: str, options: dict) -> None:
    with tarfile.open(path, "w") as tar:
        for index, (image, text) in enumerate(samples):
            buffer = io.BytesIO()
            image.save(buffer, "JPEG" if suffix == "jpg" else "PNG", **options)
            for name, content in ((suffix, buffer.getvalue()), ("txt", text.encode())):
                info = tarfile.TarInfo(f"{index:06d}.{name}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))


def write_records(tars: list[Path], folder: Path) -> int:
    """Writes the pairs of tars as a split of sigline's records and returns their number."""
    import hashlib

    import webdataset
    from PIL import Image

    from sigline.schemas import tf_example
    from sigline.schemas.record import ImageTextRecord

    folder.mkdir(parents=True)
    count = 0

    def records():
        nonlocal count
        for sample in webdataset.WebDataset([str(x) for x in tars], shardshuffle=False):
            data = next(sample[suffix] for suffix in ("jpg", "png") if suffix in sample)
            width, height = Image.open(io.BytesIO(data)).size
            count += 1
            yield tf_example.encode(
                ImageTextRecord(
                    key=f"{count:06d}",
                    image=data,
                    text=(sample.get("txt", b"a picture").decode(),),
                    language=("en",),
                    source="benchmark",
                    width=width,
                    height=height,
                    image_sha256=hashlib.sha256(data).digest(),
                    image_phash=0,
                )
            )

    tf_example.write_shard(str(folder / "data_tfrecord-00000-of-00001.gz"), records())
    return count


def _sigline(folder: Path, vocabulary: Path, crop: bool):
    os.environ.update(TF_CPP_MIN_LOG_LEVEL="3", CUDA_VISIBLE_DEVICES="")
    from sigline.trainer import config
    from sigline.trainer.inputs import data, needs, preprocess

    settings = config.TrainConfig(
        name="benchmark",
        steps=1,
        global_batch_size=BATCH,
        image=config.ImageTowerConfig(size=SIZE, patch=PATCH),
        text=config.TextTowerConfig(length=LENGTH),
        data=config.DataConfig(shuffle_records=1_000, crop_min_area=CROP if crop else None),
    )
    tokenizer = preprocess.Tokenizer(vocabulary.read_bytes(), settings.text)
    wanted = needs.of_pairs(settings.image, tokenizer)
    return _reads(iter(data.training_batches(folder, settings, wanted, first_step=0)))


def _tars(folder: Path) -> list[str]:
    return (folder / "tars").read_text().split("\n")


def _open_clip(folder: Path, crop: bool):
    workers.stub_torchvision()
    import open_clip
    import torch
    from open_clip_train.data import get_wds_dataset

    torch.set_num_threads(1)
    transform = open_clip.transform.image_transform_v2(
        open_clip.transform.PreprocessCfg(size=SIZE),
        is_train=crop,
        aug_cfg={"scale": (CROP, 1.0)} if crop else None,
    )
    arguments = argparse.Namespace(
        train_data="::".join(_tars(folder)),
        train_num_samples=1 << 40,
        train_data_upsampling_factors=None,
        dataset_resampled=False,
        seed=0,
        batch_size=BATCH,
        workers=1,
        world_size=1,
    )
    tokenizer = open_clip.SimpleTokenizer(context_length=LENGTH)
    found = get_wds_dataset(arguments, transform, is_train=True, tokenizer=tokenizer)
    return _reads(iter(found.dataloader))


def _webdataset(folder: Path, crop: bool):
    import numpy as np
    import sentencepiece
    import webdataset
    from PIL import Image

    rng = np.random.default_rng(0)
    vocabulary = sentencepiece.SentencePieceProcessor(
        model_proto=(folder / "vocabulary").read_bytes()
    )

    def prepare(sample):
        image, text = sample
        box = None
        if crop:
            area = rng.uniform(CROP, 1.0) * image.width * image.height
            aspect = np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
            width = min(round((area * aspect) ** 0.5), image.width)
            height = min(round((area / aspect) ** 0.5), image.height)
            left = rng.integers(image.width - width + 1)
            top = rng.integers(image.height - height + 1)
            box = (left, top, left + width, top + height)
        image = image.resize((SIZE, SIZE), Image.Resampling.BILINEAR, box=box)
        tokens = np.full([LENGTH], vocabulary.eos_id(), np.int32)
        pieces = vocabulary.encode(text.lower())[:LENGTH]
        tokens[: len(pieces)] = pieces
        return np.asarray(image), tokens

    dataset = (
        webdataset.WebDataset(_tars(folder), shardshuffle=False)
        .repeat()
        .shuffle(1_000)
        .decode("pilrgb")
        .to_tuple("jpg;png", "txt")
        .map(prepare)
        .batched(BATCH)
    )
    return _reads(iter(webdataset.WebLoader(dataset, batch_size=None, num_workers=1)))


def _reads(batches):
    def read(count: int) -> None:
        for _ in range(count // BATCH):
            next(batches)

    return read


def _cpu_seconds() -> float:
    """Returns the CPU time of this process and of its workers."""
    found = time.process_time()
    for worker in multiprocessing.active_children():
        fields = Path(f"/proc/{worker.pid}/stat").read_text().rpartition(")")[2].split()
        found += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return found


def work(variant: str, folder: Path, crop: bool, count: int) -> None:
    """Serves one variant: answers each line on standard input by the time of one pass."""
    if variant == SIGLINE:
        read = _sigline(folder / "Split-train", folder / "vocabulary", crop)
    else:
        read = (_open_clip if variant == "open-clip" else _webdataset)(folder, crop)
    read(4 * BATCH)
    workers.answer({})
    spent = _cpu_seconds()
    for _ in sys.stdin:
        wall, earlier = time.perf_counter(), spent
        read(count)
        # From the last pass on: what was read ahead while others had their turn counts too.
        spent = _cpu_seconds()
        workers.answer({"wall": time.perf_counter() - wall, "cpu": spent - earlier})


def measure(name: str, folder: Path, tars: list[Path], crop: bool, rounds: int) -> list[dict]:
    """Returns a row per variant for one set of images."""
    split = folder / "Split-train"
    if not split.exists():
        (folder / "count").write_text(str(write_records(tars, split)))
        (folder / "tars").write_text("\n".join(map(str, tars)))
        (folder / "vocabulary").write_bytes(make_vocabulary())
    count = int((folder / "count").read_text()) // BATCH * BATCH
    processes = {}
    for variant in VARIANTS:
        processes[variant] = workers.start(
            __file__, 1, "--worker", variant, folder, int(crop), count
        )
        workers.read(processes[variant], variant)
    times = workers.rounds(processes, rounds)
    rows = []
    for variant, found in times.items():
        ratios = [x["cpu"] / y["cpu"] for x, y in zip(found, times[SIGLINE], strict=True)]
        rows.append(
            {
                "set": name,
                "crop": crop,
                "variant": variant,
                "images": count,
                "cpu_ms_per_image": statistics.median(1e3 * x["cpu"] / count for x in found),
                "images_per_wall_second": statistics.median(count / x["wall"] for x in found),
                "cpu_over_sigline": statistics.median(ratios),
                "cpu_over_sigline_range": [min(ratios), max(ratios)],
            }
        )
    return rows


def make_vocabulary() -> bytes:
    """Returns a small vocabulary: what it holds does not matter here."""
    from sigline.components.vocabulary.vocabulary import train_vocabulary

    texts = [f"a picture of noise, number {i}, that looks like a cloud" for i in range(100)]
    return train_vocabulary(texts, vocabulary_size=60)


def markdown(results: dict) -> str:
    """Returns the table."""
    lines = [
        "# Reading training pairs",
        "",
        f"{results['processor']}, {results['date']}; `{results['command']}`; to {SIZE} x {SIZE}, "
        f"batches of {BATCH}, {results['rounds']} rounds, medians. CPU time counts all threads "
        "and worker processes.",
        "",
        "| images | crop | | CPU ms an image | images a second | CPU time over sigline's (least, "
        "most) |",
        "|---|---|---|---|---|---|",
    ]
    for row in results["rows"]:
        low, high = row["cpu_over_sigline_range"]
        lines.append(
            f"| {row['set']} | {'yes' if row['crop'] else 'no'} | {VARIANTS[row['variant']]} | "
            f"{row['cpu_ms_per_image']:.2f} | {row['images_per_wall_second']:.0f} | "
            f"{row['cpu_over_sigline']:.2f} ({low:.2f}, {high:.2f}) |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Runs all variants on all sets and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shards", nargs="*", type=Path, help="WebDataset tars of your own")
    parser.add_argument("--count", type=int, default=1024, help="generated pairs a set")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--worker", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        variant, folder, crop, count = arguments.worker
        work(variant, Path(folder), bool(int(crop)), int(count))
        return
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        sets: dict[str, list[Path]] = {}
        if arguments.shards:
            sets["own shards"] = [path.resolve() for path in arguments.shards]
        else:
            writers = {
                "scenes, PNG 64 x 64": write_scenes,
                "photo-like, JPEG 640 x 480": write_photos,
            }
            for number, (name, write) in enumerate(writers.items()):
                path = Path(scratch) / f"{number}.tar"
                write(path, arguments.count)
                sets[name] = [path]
        for number, (name, tars) in enumerate(sets.items()):
            for crop in (False, True):
                folder = Path(scratch) / str(number)
                rows += measure(name, folder, tars, crop, arguments.rounds)
    results = {
        **machine.describe(),
        "command": " ".join(["benchmarks/input.py", *sys.argv[1:]]),
        "versions": machine.versions("tensorflow", "pillow", "webdataset", "open-clip-torch"),
        "rounds": arguments.rounds,
        "rows": rows,
    }
    machine.write_results(arguments.output, "input", results, markdown(results))


if __name__ == "__main__":
    main()
