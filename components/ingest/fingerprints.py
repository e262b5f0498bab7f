"""Fingerprints that tell pictures apart, however they were encoded, scaled or framed.

A picture has views: as it is, without its frame if it has one, and mirrored if that is asked for. A
view is a perceptual hash, by which candidates are found, and a thumbnail, which decides. Thresholds
are stated with what they find in `docs/data.md`.
"""

from collections.abc import Iterable, Iterator
from itertools import combinations, pairwise
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

# Larger pictures are first reduced to about this side, by an integer factor, which is fast ...
_WORKING_SIDE = 128
# ... JPEGs down to this side by powers of two, which the decoder does while it decodes.
_LEAST_SIDE = 96
_HASH_SIDE = 32
_HASH_KEPT = 8
_THUMBNAIL_SIDE = 16
# Two views show the same picture if their hashes differ in at most so many bits ...
_NEAR_BITS = 8
# ... and no value of their thumbnails differs by this much. The maximum decides, not a mean:
# encoding and scaling move all values a little, variants of a drawing differ in a few by much.
_NEAR_VALUE = 20
# A sketch holds the thumbnail's means over blocks of this side. A mean cannot differ by more than
# the largest difference of single values, so comparing sketches first loses no pair.
_SKETCH_BLOCK = 4
# Keys are pairs of six parts of the hash. Four differing bits touch at most four parts, so that the
# other two still form a common key.
_HASH_BITS = 64
_NUM_PARTS = 6
# Up to this number of views with one key, all pairs are compared. Larger buckets would take
# quadratic time, so there each view is compared with the next ones in an order by hash ...
_MAX_BUCKET = 256
_WINDOW = 32
# ... for several orders: by hashes rotated by so many bits.
_TURNS = (0, 16, 32, 48)
# A frame is lines of one colour, up to a tolerance and a share of stray pixels. It takes at most
# `_FRAME_SHARE` of a side, and after at most `_FRAME_BLUR` lines of transition comes a line mostly
# of other colours. The wide tolerance finds frames with strong artefacts of encoding, the narrow
# one, tried second, black frames around dark pictures.
_FRAME_TOLERANCES = (40, 12)
_FRAME_STRAY = 0.02
_FRAME_SHARE = 0.25
_FRAME_BLUR = 2
_FRAME_EDGE = 0.6
# What remains inside a frame must vary at least this much: a plain area is no picture.
_PLAIN_DEVIATION = 8.0


class View(NamedTuple):
    """A picture as it is compared.

    Attributes:
        phash: Perceptual hash, a signed 64-bit integer.
        thumbnail: RGB values of the picture at 16 x 16.
    """

    phash: int
    thumbnail: bytes


class Item(NamedTuple):
    """The part of a view that is compared first.

    Attributes:
        phash: The view's perceptual hash.
        sketch: A coarse thumbnail, small enough to be sent to all the keys of the view.
        name: Name of the picture.
    """

    phash: int
    sketch: bytes
    name: bytes


def items(name: bytes, pictures: Iterable[View]) -> list[Item]:
    """Returns the items by which the views of a picture are compared first."""
    blocks = _THUMBNAIL_SIDE // _SKETCH_BLOCK
    shape = (blocks, _SKETCH_BLOCK, blocks, _SKETCH_BLOCK, 3)
    compared = []
    for view in pictures:
        means = np.frombuffer(view.thumbnail, np.uint8).reshape(shape).mean(axis=(1, 3))
        compared.append(Item(view.phash, means.astype(np.uint8).tobytes(), name))
    return compared


def working_size(width: int, height: int) -> tuple[int, int]:
    """Returns the least size, in pixels, at which `views` may be given a picture of a size."""
    shorter = min(width, height)
    return width * _LEAST_SIDE // shorter, height * _LEAST_SIDE // shorter


def views(image: Image.Image, *, mirrored: bool) -> tuple[View, ...]:
    """Returns the views of an RGB picture, the plain one first.

    Args:
        image: The picture.
        mirrored: Whether a picture and its mirror image are to be the same.
    """
    factor = max(1, min(image.size) // _WORKING_SIDE)
    image = image.reduce(factor) if factor > 1 else image
    pictures = [image]
    inner = _without_frame(image)
    if inner is not None:
        pictures.append(inner)
    if mirrored:
        pictures += [ImageOps.mirror(picture) for picture in pictures]
    return tuple(View(perceptual_hash(picture), _thumbnail(picture)) for picture in pictures)


def perceptual_hash(image: Image.Image) -> int:
    """Returns the 64-bit DCT hash of an image as a signed integer.

    Each bit says whether one of the 8 x 8 lowest frequencies of the 32 x 32 grey image lies above
    their median. Equal pictures that were encoded or scaled differently differ in few bits.
    """
    side = (_HASH_SIDE, _HASH_SIDE)
    # Not BOX: unless the size is a multiple of the side, its boxes differ in size, and the hashes
    # of two scales of a picture would differ more.
    grey = image.convert("L").resize(side, Image.Resampling.BILINEAR)
    low = _DCT @ np.asarray(grey, dtype=np.float64) @ _DCT.T
    bits = low.ravel() > _median(low.ravel())
    return int(np.packbits(bits).view(">i8")[0])


def _median(values: np.ndarray) -> np.ndarray:
    """Returns the median along the first axis, as `np.median` does, which takes longer."""
    ordered = np.sort(values, axis=0)
    return (ordered[(len(values) - 1) // 2].astype(np.float64) + ordered[len(values) // 2]) / 2


def _dct_rows() -> np.ndarray:
    """Returns the first rows of the type-II cosine transform, `(_HASH_KEPT, _HASH_SIDE)`."""
    frequency = np.arange(_HASH_KEPT)[:, None]
    position = np.arange(_HASH_SIDE)[None] + 0.5
    return np.cos(np.pi * frequency * position / _HASH_SIDE)


_DCT = _dct_rows()


def _thumbnail(image: Image.Image) -> bytes:
    side = (_THUMBNAIL_SIDE, _THUMBNAIL_SIDE)
    return image.resize(side, Image.Resampling.BILINEAR).tobytes()


def _without_frame(image: Image.Image) -> Image.Image | None:
    """Returns what a frame of one colour surrounds, None without a frame.

    Where the picture begins, its edge must be straight: the ground that a drawing stands on is no
    frame. Where it was scaled, lines between may be of both; they count by their share.
    """
    pixels = np.asarray(image)
    height, width = pixels.shape[:2]
    lines = np.concatenate((pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]))
    color = _median(lines)
    # Cheap test first: the outermost lines show that most pictures have no frame.
    outermost = _distance(lines, color)
    across, upright = outermost[: 2 * width], outermost[2 * width :]
    tolerances = [
        tolerance
        for tolerance in _FRAME_TOLERANCES
        if _is_frame(across.reshape(2, -1), tolerance).any()
        or _is_frame(upright.reshape(2, -1), tolerance).any()
    ]
    if not tolerances:
        return None
    other = _distance(pixels, color)
    for tolerance in tolerances:
        margins = _margins(other, tolerance)
        if margins is not None:
            break
    else:
        return None
    top, bottom, left, right = margins
    box = (left, top, width - right, height - bottom)
    inner = pixels[int(top) : height - int(bottom), int(left) : width - int(right)]
    if inner.std(axis=(0, 1)).max() < _PLAIN_DEVIATION:
        return None
    size = (max(1, round(box[2] - box[0])), max(1, round(box[3] - box[1])))
    return image.resize(size, Image.Resampling.BILINEAR, box=box)


def _margins(other: np.ndarray, tolerance: int) -> list[float] | None:
    """Returns what a frame takes from the top, bottom, left and right; None without a frame.

    A side that is too like the frame to tell where it begins has the margin of the others, if they
    agree and all its lines up to there are of the frame's colour.

    Args:
        other: How far each pixel is from the frame's colour, `(height, width)`.
        tolerance: How far pixels of the frame may be.
    """
    sides = (other, other[::-1], other.T, other.T[::-1])
    margins = [_margin(side, tolerance) for side in sides]
    clear = [margin for margin in margins if margin]
    if not clear:
        return None
    if None in margins:
        if len(clear) < 3 or max(clear) - min(clear) > _FRAME_BLUR:
            return None
        usual = float(np.mean(clear))
        for place, side in enumerate(sides):
            if margins[place] is None:
                if not _is_frame(side[: int(usual)], tolerance).all():
                    return None
                margins[place] = usual
    return [margin or 0.0 for margin in margins]


def _distance(pixels: np.ndarray, color: np.ndarray) -> np.ndarray:
    """Returns the largest difference of pixels from a colour, over the channels."""
    red, green, blue = (np.abs(pixels[..., i] - color[i]) for i in range(3))
    return np.maximum(np.maximum(red, green), blue)


def _is_frame(other: np.ndarray, tolerance: int) -> np.ndarray:
    """Whether lines, `(lines, length)`, are of the frame's colour."""
    return (other > tolerance).mean(axis=1) <= _FRAME_STRAY


def _margin(other: np.ndarray, tolerance: int) -> float | None:
    """Returns how much of the lines a frame takes from the first on, None if its edge is no edge.

    Args:
        other: How far each pixel is from the frame's colour, `(lines, length)`.
        tolerance: How far pixels of the frame may be.
    """
    lines, length = other.shape
    clean = _is_frame(other, tolerance)
    begin = int(np.argmin(clean)) if not clean.all() else lines
    if begin == 0:
        return 0.0
    if begin > _FRAME_SHARE * lines or begin + _FRAME_BLUR >= lines:
        return None
    # Only the middle half of each line: its ends may belong to the frame of the other sides.
    middle = other[:, length // 4 : length - length // 4]
    edge = middle[begin + _FRAME_BLUR]
    if (edge > tolerance).mean() < _FRAME_EDGE:
        return None
    # A scaled frame ends between two lines. How far each line of the transition is from the frame's
    # colour, relative to the edge, gives the share of it that is picture.
    first = max(0, begin - 1)
    shares = middle[first : begin + _FRAME_BLUR].mean(axis=1) / edge.mean()
    return begin + _FRAME_BLUR - float(np.minimum(shares, 1.0).sum())


def hamming_distance(a: int, b: int) -> int:
    """Returns the number of bits in which two hashes differ."""
    return ((a ^ b) & (2**_HASH_BITS - 1)).bit_count()


def band_keys(phash: int) -> list[int]:
    """Returns the keys below which a hash meets its likes: all pairs of parts of it."""
    value = phash & (2**_HASH_BITS - 1)
    edges = [_HASH_BITS * i // _NUM_PARTS for i in range(_NUM_PARTS + 1)]
    parts = [value >> low & ((1 << high - low) - 1) for low, high in pairwise(edges)]
    # Parts have at most 11 bits, so the fields do not overlap; `pair` tells equal values of
    # different parts apart.
    return [
        (pair << 11 | parts[i]) << 11 | parts[j]
        for pair, (i, j) in enumerate(combinations(range(_NUM_PARTS), 2))
    ]


def candidates(bucket: Iterable[Item]) -> Iterator[tuple[bytes, bytes]]:
    """Returns the pairs of pictures, among those that share a key, that may be the same.

    Hashes and sketches are near; of small buckets none is left out that `same_picture` would find.

    In large buckets, such as that of plain pictures, each is compared only with those next to it
    in several orders of hashes: work grows with their number, equal pictures still form a chain,
    and others may be missed.

    Args:
        bucket: Views that share a key.

    Returns:
        Pairs of names, the smaller first; a pair may come more than once.
    """
    distinct = sorted(set(bucket))
    if len(distinct) < 2:
        return
    hashes = np.array([item.phash for item in distinct], np.int64).view(np.uint64)
    joined = b"".join(item.sketch for item in distinct)
    sketches = np.frombuffer(joined, np.uint8).reshape(len(distinct), -1).astype(np.int16)
    whole = len(distinct) <= _MAX_BUCKET
    window = len(distinct) if whole else _WINDOW
    for turn in (0,) if whole else _TURNS:
        # Two copies sort close to each other unless a leading bit differs. Rotating the hash puts
        # other bits first, so that one differing bit separates them in one order only.
        turned = hashes << np.uint64(turn) | hashes >> np.uint64(-turn % _HASH_BITS)
        order = np.lexsort((np.arange(len(distinct)), turned))
        for place, number in enumerate(order):
            others = order[place + 1 : place + 1 + window]
            near = np.bitwise_count(hashes[others] ^ hashes[number]) <= _NEAR_BITS
            near &= np.abs(sketches[others] - sketches[number]).max(axis=1) <= _NEAR_VALUE
            for other in others[near]:
                pair = distinct[number].name, distinct[other].name
                if pair[0] != pair[1]:
                    yield min(pair), max(pair)


def same_picture(a: Iterable[View], b: Iterable[View]) -> bool:
    """Whether any view of a picture shows the same as any view of another."""
    b = list(b)
    return any(_same_view(x, y) for x in a for y in b)


def _same_view(a: View, b: View) -> bool:
    if hamming_distance(a.phash, b.phash) > _NEAR_BITS:
        return False
    x, y = (np.frombuffer(view.thumbnail, np.uint8).astype(np.int16) for view in (a, b))
    return int(np.abs(x - y).max()) < _NEAR_VALUE
