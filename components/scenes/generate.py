"""Writes scenes as WebDataset shards in img2dataset's layout, with planted faults on request."""

import io
import json
import shutil
import tarfile
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from sigline.components.scenes.draw import draw_scene
from sigline.components.scenes.grammar import label_set, sample_scene
from sigline.schemas import atomic, ownership, progress, record

TRAIN_SOURCE = "scenes"
HELD_OUT_SOURCE = "scenes-heldout"
FAULTS_FILE = "faults.json"

CORRUPT = "corrupt"
EXACT_DUPLICATE = "exact_duplicate"
REENCODED_DUPLICATE = "reencoded_duplicate"
EMPTY_TEXT = "empty_text"
WRONG_EXTENSION = "wrong_extension"
SHUFFLED_CAPTIONS = "shuffled_captions"
FAULTS = (
    CORRUPT,
    EXACT_DUPLICATE,
    REENCODED_DUPLICATE,
    EMPTY_TEXT,
    WRONG_EXTENSION,
    SHUFFLED_CAPTIONS,
)

_HELD_OUT_SHARE = 0.05
_SHARD_PAIRS = 1000
# Numbers of the independent random streams derived from one seed.
_SCENE_STREAM, _FAULT_STREAM = 0, 1


@dataclass(frozen=True)
class _Pair:
    key: str
    image: bytes
    extension: str
    captions: tuple[str, ...]
    label: int | None
    fault: str | None = None


def parse_faults(text: str) -> dict[str, float]:
    """Reads `name=share,name=share`, shares being fractions of the pairs.

    Raises:
        ValueError: If a name is unknown or a share is not in [0, 1].
    """
    shares = {}
    for part in filter(None, text.split(",")):
        name, _, value = part.partition("=")
        try:
            share = float(value)
        except ValueError:
            share = -1.0
        if name not in FAULTS or not 0 <= share <= 1:
            raise ValueError(
                f"faults reads NAME=SHARE,... with shares in [0, 1]. Received: {part!r}. "
                f"Known names: {', '.join(FAULTS)}"
            )
        shares[name] = share
    return shares


def write_scenes(
    output: str | Path, *, count: int, seed: int, faults: dict[str, float] | None = None
) -> dict[str, int]:
    """Writes shards, `classes.json` and `faults.json` (key to planted fault) to a folder.

    Of `count` pairs one in twenty shows a combination held out from training; these form a source
    of their own, `scenes-heldout`. Planted duplicates replace other pairs, so there are always
    `count` pairs. The output is the same, byte for byte, for the same arguments.

    Args:
        output: Folder to create.
        count: Number of pairs, at least 20.
        seed: Seed of all randomness.
        faults: Share of the training pairs that carries each fault of `FAULTS`.

    Returns:
        The number of planted faults by name.

    Raises:
        ValueError: If `count` is too small, or the folder holds files of these names that an
            earlier call did not write.
    """
    if count < 20:
        raise ValueError(f"count must be at least 20. Received: count={count}")
    output = Path(output)
    folder = ownership.OutputFolder(output, "sigline data scenes")
    num_held_out = round(count * _HELD_OUT_SHARE)
    num_train = count - num_held_out
    train = [_make_pair(seed, index, held_out=False) for index in range(num_train)]
    train = _plant(train, faults or {}, np.random.default_rng([seed, _FAULT_STREAM]))
    held_out = [_make_pair(seed, num_train + i, held_out=True) for i in range(num_held_out)]
    planted = {pair.key: pair.fault for pair in train if pair.fault}
    # Beside the folder: what a killed call leaves must not be read as data.
    scratch = output.with_name(f".tmp-{uuid.uuid4().hex}-{output.name}")
    scratch.mkdir(parents=True)
    try:
        with atomic.named(output):
            for source, pairs in ((TRAIN_SOURCE, train), (HELD_OUT_SOURCE, held_out)):
                for shard, start in enumerate(range(0, len(pairs), _SHARD_PAIRS)):
                    path = scratch / f"{source}-{shard:05d}.tar"
                    _write_shard(path, pairs[start : start + _SHARD_PAIRS])
            (scratch / record.CLASSES_FILE).write_text(label_set().to_json())
            (scratch / FAULTS_FILE).write_text(json.dumps(planted, indent=1, sort_keys=True))
        # Shards of an earlier call are removed, since they would mix with the new ones.
        for source in (TRAIN_SOURCE, HELD_OUT_SOURCE):
            names = {path.name for path in output.glob(f"{source}-[0-9]*")}
            folder.check(sorted(names - {path.name for path in scratch.iterdir()}))
        folder.place(scratch)
    finally:
        shutil.rmtree(scratch)
    return {name: list(planted.values()).count(name) for name in FAULTS}


def _make_pair(seed: int, index: int, *, held_out: bool) -> _Pair:
    rng = np.random.default_rng([seed, _SCENE_STREAM, index])
    scene = sample_scene(rng, held_out=held_out)
    image = _encode(draw_scene(scene, rng), "PNG")
    progress.advance(1, "pairs")
    return _Pair(f"{index:09d}", image, "png", scene.captions(), scene.label)


def _encode(image: Image.Image, form: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def _plant(pairs: list[_Pair], shares: dict[str, float], rng: np.random.Generator) -> list[_Pair]:
    pairs = list(pairs)
    free = iter(rng.permutation(len(pairs)))
    for name in FAULTS[:-1]:
        for _ in range(round(shares.get(name, 0.0) * len(pairs))):
            index = int(next(free))
            # A duplicate copies a pair without a fault; such pairs come last in the order.
            pairs[index] = _spoil(pairs[index], name, other=pairs[int(next(free))])
    shuffled = shares.get(SHUFFLED_CAPTIONS, 0.0)
    if shuffled:
        chosen = rng.permutation(len(pairs))[: round(shuffled * len(pairs))]
        taken = [pairs[i].captions for i in np.roll(chosen, 1)]
        for i, captions in zip(chosen, taken, strict=True):
            fault = pairs[i].fault or SHUFFLED_CAPTIONS
            pairs[i] = replace(pairs[i], captions=captions, fault=fault)
    return pairs


def _spoil(pair: _Pair, name: str, *, other: _Pair) -> _Pair:
    if name == CORRUPT:
        middle = len(pair.image) // 2
        return replace(pair, image=pair.image[:middle] + b"\0" * 16, fault=name)
    if name == EMPTY_TEXT:
        return replace(pair, captions=(" ",), fault=name)
    if name == WRONG_EXTENSION:
        image = _encode(Image.open(io.BytesIO(pair.image)), "JPEG", quality=95)
        return replace(pair, image=image, fault=name)
    copy = replace(pair, image=other.image, captions=other.captions, label=other.label, fault=name)
    if name == EXACT_DUPLICATE:
        return copy
    image = _encode(Image.open(io.BytesIO(other.image)), "JPEG", quality=92)
    return replace(copy, image=image, extension="jpg")


def _members(pair: _Pair) -> Iterator[tuple[str, bytes]]:
    meta = {
        "key": pair.key,
        "caption": pair.captions[0],
        "captions": {"en": list(pair.captions)},
        "status": "success",
    }
    if pair.label is not None:
        meta["label"] = pair.label
    yield f"{pair.key}.{pair.extension}", pair.image
    yield f"{pair.key}.txt", pair.captions[0].encode()
    yield f"{pair.key}.json", json.dumps(meta, sort_keys=True).encode()


def _write_shard(path: Path, pairs: list[_Pair]) -> None:
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        for pair in pairs:
            for name, content in _members(pair):
                # A new TarInfo has a fixed time, owner and mode: the bytes are always the same.
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    stats = {"count": len(pairs), "successes": len(pairs), "status_dict": {"success": len(pairs)}}
    path.with_name(path.stem + "_stats.json").write_text(json.dumps(stats))
