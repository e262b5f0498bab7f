"""Benchmarks as CLIP_benchmark lays them out in WebDatasets (`clip_benchmark_export_wds`).

    FOLDER/SPLIT/nshards.txt, 0.tar, 1.tar, ...
    FOLDER/dataset_type.txt   classification, also without the file; multilabel; or retrieval
    FOLDER/classnames.txt     a class in each line
    FOLDER/zeroshot_classification_templates.txt   a prompt in each line, with {c} for the class

Nothing is left out: what cannot be read is an error, since every example counts.
"""

import io
import posixpath
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sigline.components.ingest import images, reasons
from sigline.components.ingest.captions import is_visible, normalize_text
from sigline.components.ingest.readers.webdataset import WebDatasetReader
from sigline.components.ingest.sources import (
    Files,
    Part,
    PassedOver,
    RawPair,
    SourceConfig,
)
from sigline.schemas import record
from sigline.schemas.labels import LabelSet
from sigline.schemas.record import ImageTextRecord

CLASSIFICATION, MULTILABEL, RETRIEVAL = "classification", "multilabel", "retrieval"
TEST_SPLIT = "test"
_COUNT_FILE = "nshards.txt"
_TYPE_FILE = "dataset_type.txt"
_CLASSES_FILE = "classnames.txt"
_TEMPLATES_FILE = "zeroshot_classification_templates.txt"
_NAMED = 5


@dataclass(frozen=True)
class Benchmark:
    """A split of a benchmark.

    Attributes:
        folder: Where it lies.
        split: Name of the split.
        type: `CLASSIFICATION`, `MULTILABEL` or `RETRIEVAL`.
        shards: Paths of its tar files, in order.
        labels: The classes, without those whose name another has before them; None for retrieval,
            or if they are not named.
        class_ids: Position in `labels` of each of the benchmark's own class ids.
    """

    folder: Path
    split: str
    type: str
    shards: tuple[Path, ...]
    labels: LabelSet | None = None
    class_ids: tuple[int, ...] = ()


def has_split(folder: Path, split: str) -> bool:
    """Whether a folder holds a split in this layout."""
    return (folder / split / _COUNT_FILE).is_file()


def open_split(folder: Path, split: str) -> Benchmark:
    """Reads what a benchmark says of itself.

    Raises:
        ValueError: If a shard is missing, or one of the text files is not as it should be.
    """
    count_file = folder / split / _COUNT_FILE
    count = count_file.read_text().strip()
    if not count.isdecimal() or not 0 < int(count) < 10**6:
        raise ValueError(f"{count_file} must hold the number of shards. Received: {count[:50]!r}")
    shards = tuple(folder / split / f"{number}.tar" for number in range(int(count)))
    missing = [path.name for path in shards if not path.is_file()]
    if missing:
        raise ValueError(
            f"{folder / split} must have {count} shards, as {_COUNT_FILE} says. Missing: "
            f"{len(missing)}, such as {', '.join(missing[:_NAMED])}"
        )
    type_file = folder / _TYPE_FILE
    kind = type_file.read_text().strip().lower() if type_file.is_file() else CLASSIFICATION
    if kind not in (CLASSIFICATION, MULTILABEL, RETRIEVAL):
        raise ValueError(
            f"{type_file} must hold {CLASSIFICATION}, {MULTILABEL} or {RETRIEVAL}. "
            f"Received: {kind[:50]!r}"
        )
    classes = folder / _CLASSES_FILE
    if kind == RETRIEVAL or not classes.is_file():
        return Benchmark(folder, split, kind, shards)
    names = [line.strip() for line in classes.read_text(encoding="utf-8").splitlines()]
    # Classes of one name have the same prompts, so they are merged; ImageNet has two such pairs.
    distinct = list(dict.fromkeys(names))
    position = {name: number for number, name in enumerate(distinct)}
    try:
        labels = LabelSet(tuple(distinct), _templates(folder / _TEMPLATES_FILE))
    except ValueError as error:
        raise ValueError(f"The classes or prompts in {folder} cannot be read: {error}") from None
    return Benchmark(folder, split, kind, shards, labels, tuple(position[name] for name in names))


def _templates(path: Path) -> tuple[str, ...]:
    if not path.is_file():
        return LabelSet.templates
    lines = path.read_text(encoding="utf-8").splitlines()
    return tuple(line.strip().replace("{c}", "{}") for line in lines if line.strip())


def records(benchmark: Benchmark, shard: Path, files: Files) -> Iterator[ImageTextRecord]:
    """Yields the examples of a shard in order; without captions the first prompt is one.

    Keys begin with the shard's number. Images are kept as they are, or without loss.

    Raises:
        ValueError: If samples cannot be read, with their keys and reasons.
    """
    reader = WebDatasetReader({"npy": "label"} if benchmark.type == MULTILABEL else {})
    limits, problems, total = images.ImageLimits(), [], 0
    for pair in reader.scan(Part(str(shard)), files, SourceConfig(), limits.max_bytes):
        if isinstance(pair, PassedOver) and pair.reason not in reasons.EXPECTED:
            problems.append(f"{pair.path}: {pair.reason}")
        if not isinstance(pair, RawPair):
            continue
        total += 1
        key = posixpath.join(shard.stem, pair.key)
        try:
            yield _record(benchmark, pair, key, limits)
        except (images.ImageError, ValueError) as error:
            problems.append(f"{key}: {error}")
    if problems or not total:
        raise ValueError(
            f"Every sample of {shard} must be readable, and there must be one. Received: "
            f"{len(problems)} bad ones of {total}: {'; '.join(problems[:_NAMED])}"
        )


def _record(
    benchmark: Benchmark, pair: RawPair, key: str, limits: images.ImageLimits
) -> ImageTextRecord:
    if pair.problem is not None:
        raise ValueError(f"{pair.problem.reason}: {pair.problem.detail}")
    if pair.image is None:
        raise ValueError("there is no image")
    label: tuple[int, ...] = ()
    if benchmark.type == RETRIEVAL:
        lines = (pair.text or b"").decode().splitlines()
        captions = tuple(dict.fromkeys(filter(is_visible, map(normalize_text, lines))))
        if not captions:
            raise ValueError("there is no caption")
    else:
        label = _label(benchmark, pair.label)
        captions = (_first_prompt(benchmark, label),)
    image = images.check_image(pair.image, limits)
    return ImageTextRecord(
        key=key,
        image=image.stored,
        text=captions,
        language=(record.UNKNOWN_LANGUAGE,) * len(captions),
        source=benchmark.folder.resolve().name,
        width=image.width,
        height=image.height,
        image_sha256=image.sha256,
        image_phash=image.views[0].phash,
        label=label,
    )


def _first_prompt(benchmark: Benchmark, label: tuple[int, ...]) -> str:
    if benchmark.labels is None or not label:
        return "a photo"
    return benchmark.labels.templates[0].replace("{}", benchmark.labels.names[label[0]])


def _label(benchmark: Benchmark, content: bytes | None) -> tuple[int, ...]:
    if content is None:
        raise ValueError("there is no label")
    if benchmark.type == MULTILABEL:
        numbers = _multi_hot(content)
    else:
        text = content.decode().strip()
        if not text.isdecimal() or len(text) > 9:
            raise ValueError(f"the label must be a class id, not {text[:50]!r}")
        numbers = [int(text)]
    ids, known = benchmark.class_ids, len(benchmark.class_ids)
    if ids and numbers and max(numbers) >= known:
        raise ValueError(f"the label must be one of {known} classes, not {max(numbers)}")
    return tuple(dict.fromkeys(ids[number] if ids else number for number in numbers))


def _multi_hot(content: bytes) -> list[int]:
    """Returns the positions of the classes in a saved vector of 0 and 1; it is never unpickled."""
    stream = io.BytesIO(content)
    major, _ = np.lib.format.read_magic(stream)
    read_header = {1: np.lib.format.read_array_header_1_0, 2: np.lib.format.read_array_header_2_0}
    if major not in read_header:
        raise ValueError(f"labels must be a .npy of version 1 or 2, not {major}")
    shape, _, dtype = read_header[major](stream)
    # The real length is checked first: the header could claim any, and memory be allocated for it.
    if (
        dtype.kind not in "biuf"
        or len(shape) != 1
        or shape[0] * dtype.itemsize != len(stream.getbuffer()) - stream.tell()
    ):
        raise ValueError(f"labels must be a vector of numbers, not {dtype} of shape {shape}")
    return np.flatnonzero(np.frombuffer(stream.read(), dtype) > 0).tolist()
