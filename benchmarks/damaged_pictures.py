"""Damages pictures at random and asks whether the trainer decodes what ingest accepts.

`python benchmarks/damaged_pictures.py --variants 10000` prints, for each kind of damage, how many
pictures ingest accepts, how many of those the trainer does not decode, which must be none, and how
many of those show something else than the whole picture.
"""

import argparse
import io
import random
import struct
import zlib
from collections import Counter
from collections.abc import Callable, Iterator

import numpy as np
import tensorflow as tf
from PIL import Image, ImageFilter

from sigline.components.ingest import images, integrity
from sigline.trainer.inputs import preprocess

_SIZE = (75, 61)
# A picture is wrong where pixels differ by more than this, in more than this share of it.
_WRONG_VALUE, _WRONG_SHARE = 24, 0.02
_HEADER_BYTES = 600


def _scene() -> Image.Image:
    """Returns a picture with smooth ground, edges and a little noise."""
    rng = np.random.default_rng(0)
    ground = Image.fromarray(rng.integers(0, 256, (5, 6, 3), np.uint8))
    pixels = np.asarray(ground.resize(_SIZE, Image.Resampling.BICUBIC)).astype(np.int16)
    pixels[20:40, 10:30] = (200, 30, 30)
    pixels += rng.integers(-6, 7, pixels.shape)
    image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    return image.filter(ImageFilter.SMOOTH)


def base_pictures() -> dict[str, bytes]:
    """Returns whole pictures by name, of all the forms that are stored as they are."""
    scene, pictures = _scene(), {}

    def _add(name: str, image: Image.Image, form: str, **options) -> None:
        buffer = io.BytesIO()
        image.save(buffer, form, **options)
        pictures[name] = buffer.getvalue()

    exif = Image.Exif()
    exif[0x010F], exif[0x0112] = "A maker of cameras", 1
    alpha = scene.convert("RGBA")
    alpha.putalpha(Image.linear_gradient("L").resize(_SIZE))
    _add("JPEG 4:2:0", scene, "JPEG", quality=85)
    _add("JPEG 4:4:4", scene, "JPEG", quality=92, subsampling=0)
    _add("JPEG progressive", scene, "JPEG", quality=85, progressive=True)
    _add("JPEG grey", scene.convert("L"), "JPEG", quality=85)
    _add("JPEG CMYK", scene.convert("CMYK"), "JPEG", quality=85)
    _add("JPEG restarts", scene, "JPEG", quality=85, restart_marker_blocks=3)
    _add("JPEG EXIF", scene, "JPEG", quality=85, exif=exif)
    _add("JPEG optimised", scene, "JPEG", quality=50, optimize=True)
    rare = bytearray(pictures["JPEG 4:4:4"])
    frame = rare.index(b"\xff\xc0")
    # Another picture, of a ratio of brightness to colour that no other has.
    rare[frame + 11], rare[frame + 14] = 0x22, 0x12
    pictures["JPEG rare"] = bytes(rare)
    _add("PNG", scene, "PNG")
    grey = np.asarray(scene.convert("L")).astype(np.uint16) * 257
    _add("PNG 16 bits", Image.fromarray(grey), "PNG")
    _add("PNG palette", scene.quantize(64), "PNG", exif=exif)
    _add("PNG RGBA", alpha, "PNG")
    pictures["PNG interlaced"] = _interlaced(np.asarray(scene.convert("L")))
    return pictures


def _interlaced(grey: np.ndarray) -> bytes:
    """Returns a PNG in seven passes, which Pillow does not write."""

    def _chunk(name: bytes, content: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(name + content))
        return struct.pack(">I", len(content)) + name + content + checksum

    lines = b"".join(
        b"\0" + row.tobytes()
        for left, top, across, down in integrity.ADAM7
        for row in grey[top::down, left::across]
    )
    header = struct.pack(">IIBBBBB", grey.shape[1], grey.shape[0], 8, 0, 0, 0, 1)
    content = zlib.compress(lines)
    middle = len(content) // 2
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        (
            _chunk(b"IHDR", header),
            _chunk(b"IDAT", content[:middle]),
            _chunk(b"IDAT", content[middle:]),
            _chunk(b"IEND", b""),
        )
    )


def _place(rng: random.Random, encoded: bytes) -> int:
    return rng.randrange(4, len(encoded))


def _cut(rng: random.Random, encoded: bytes) -> bytes:
    return encoded[: _place(rng, encoded)]


def _cut_at_the_end(rng: random.Random, encoded: bytes) -> bytes:
    return encoded[: -rng.randrange(1, 16)]


def _zero_tail(rng: random.Random, encoded: bytes) -> bytes:
    place = _place(rng, encoded)
    return encoded[:place] + bytes(len(encoded) - place)


def _zeros_inside(rng: random.Random, encoded: bytes) -> bytes:
    begin, end = sorted((_place(rng, encoded), _place(rng, encoded)))
    return encoded[:begin] + bytes(end - begin) + encoded[end:]


def _zeros_and_no_end(rng: random.Random, encoded: bytes) -> bytes:
    return _zeros_inside(rng, encoded)[: -rng.randrange(1, 16)]


def _flipped_bits(rng: random.Random, encoded: bytes) -> bytes:
    content = bytearray(encoded)
    for _ in range(rng.choice([1, 1, 1, 2, 8, 64])):
        content[_place(rng, encoded)] ^= 1 << rng.randrange(8)
    return bytes(content)


def _flipped_header(rng: random.Random, encoded: bytes) -> bytes:
    content = bytearray(encoded)
    content[rng.randrange(2, min(_HEADER_BYTES, len(content)))] = rng.randrange(256)
    return bytes(content)


def _swapped_header(rng: random.Random, encoded: bytes) -> bytes:
    content = bytearray(encoded)
    a, b = (rng.randrange(2, min(_HEADER_BYTES, len(content))) for _ in range(2))
    content[a], content[b] = content[b], content[a]
    return bytes(content)


def _doubled_block(rng: random.Random, encoded: bytes) -> bytes:
    begin, end = sorted((_place(rng, encoded), _place(rng, encoded)))
    return encoded[:end] + encoded[begin:]


def _dropped_block(rng: random.Random, encoded: bytes) -> bytes:
    begin, end = sorted((_place(rng, encoded), _place(rng, encoded)))
    return encoded[:begin] + encoded[end:]


def _other_sectors(rng: random.Random, encoded: bytes) -> bytes:
    size = rng.choice([64, 512])
    begin, other = (size * rng.randrange(1 + len(encoded) // size) for _ in range(2))
    content = bytearray(encoded)
    content[begin : begin + size] = encoded[other : other + size]
    return bytes(content)


def _noise_inside(rng: random.Random, encoded: bytes) -> bytes:
    begin = _place(rng, encoded)
    end = min(len(encoded), begin + rng.choice([1, 2, 16, 128]))
    return encoded[:begin] + rng.randbytes(end - begin) + encoded[end:]


DAMAGES: dict[str, Callable[[random.Random, bytes], bytes]] = {
    "cut": _cut,
    "cut at the end": _cut_at_the_end,
    "zero tail": _zero_tail,
    "zeros inside": _zeros_inside,
    "zeros, no end": _zeros_and_no_end,
    "flipped bits": _flipped_bits,
    "changed header": _flipped_header,
    "swapped header": _swapped_header,
    "doubled block": _doubled_block,
    "dropped block": _dropped_block,
    "other sectors": _other_sectors,
    "noise inside": _noise_inside,
}


def variants(count: int, seed: int) -> Iterator[tuple[str, str, bytes]]:
    """Yields names of pictures, kinds of damage, and damaged pictures."""
    rng, pictures = random.Random(seed), base_pictures()
    names, kinds = list(pictures), list(DAMAGES)
    for number in range(count):
        name, kind = names[number % len(names)], kinds[number // len(names) % len(kinds)]
        yield name, kind, DAMAGES[kind](rng, pictures[name])


def decoder(limits: images.ImageLimits) -> Callable[[bytes], np.ndarray | None]:
    """Returns the trainer's decoder; it gives None for what it refuses."""

    @tf.function(input_signature=[tf.TensorSpec([], tf.string)])
    def _decode(encoded: tf.Tensor) -> tf.Tensor:
        return preprocess.decode_image(encoded, max_pixels=limits.max_pixels)

    def _pixels(encoded: bytes) -> np.ndarray | None:
        try:
            return _decode(tf.constant(encoded)).numpy()
        except tf.errors.InvalidArgumentError:
            return None

    return _pixels


def is_wrong(pixels: np.ndarray, whole: np.ndarray) -> bool:
    """Whether a picture shows something else than the whole one."""
    if pixels.shape != whole.shape:
        return True
    off = np.abs(pixels.astype(np.int16) - whole).max(axis=-1) > _WRONG_VALUE
    return bool(off.mean() > _WRONG_SHARE)


def compare(count: int, seed: int) -> tuple[dict[str, Counter], list[tuple[str, str, bytes]]]:
    """Compares ingest with the trainer.

    Returns:
        For each kind of damage: pictures `tried`, `accepted` by ingest, `refused` by the trainer
        though ingest accepts them, and `wrong`; and the disagreements.
    """
    limits = images.ImageLimits()
    pixels_of = decoder(limits)
    whole = {name: pixels_of(encoded) for name, encoded in base_pictures().items()}
    counts: dict[str, Counter] = {kind: Counter() for kind in DAMAGES}
    disagreements = []
    for name, kind, encoded in variants(count, seed):
        counts[kind]["tried"] += 1
        try:
            checked = images.check_image(encoded, limits)
        except images.ImageError:
            continue
        counts[kind]["accepted"] += 1
        pixels = pixels_of(checked.stored)
        if pixels is None:
            counts[kind]["refused"] += 1
            disagreements.append((name, kind, encoded))
            continue
        reference = whole[name]
        assert reference is not None
        counts[kind]["wrong"] += is_wrong(pixels, reference)
    return counts, disagreements


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--variants", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    counts, disagreements = compare(arguments.variants, arguments.seed)
    columns = ("tried", "accepted", "refused", "wrong")
    print(f"{'':16}" + "".join(f"{column:>10}" for column in columns))
    for kind, row in [*counts.items(), ("all", sum(counts.values(), Counter()))]:
        print(f"{kind:16}" + "".join(f"{row[column]:>10}" for column in columns))
    for name, kind, encoded in disagreements[:10]:
        print(f"refused by the trainer: {name}, {kind}, {len(encoded)} bytes")
    raise SystemExit(bool(disagreements))


if __name__ == "__main__":
    main()
