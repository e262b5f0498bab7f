"""What the learned positions of patches tell of the pictures that they belong to."""

import math

import numpy as np

# Patches along a side, and of which side, of released models whose pictures have pixels to spare:
# SigLIP and SigLIP 2 So400m/14 at 384.
_RELEASED_SIZES = {(27, 14): 384}
# How much clearer rows of another length must stand out than those of the square.
_CLEARER = 1.25
_STANDARD_ERRORS = 5.0
_NEARLY_AS_CLEAR = 0.8


def side(count: int) -> int:
    """Returns the patches along a side of a square of `count` patches.

    Raises:
        ValueError: If no square has as many.
    """
    grid = math.isqrt(count)
    if grid * grid != count or not count:
        raise ValueError(
            "Only towers of square pictures can be read, whose patches are a square number. "
            f"Received: positions of {count} patches"
        )
    return grid


def size(grid: int, patch: int) -> int:
    """Returns the side in pixels of pictures of `grid * grid` patches, if nothing else tells it."""
    return _RELEASED_SIZES.get((grid, patch), grid * patch)


def check_square(table: np.ndarray) -> None:
    """Refuses positions whose number is a square, but whose grid is none.

    Neighbours in a row are alike, and the last of a row and the first of the next are not. So rows
    show where learned positions are read in their order. Positions at random show nothing.

    Args:
        table: Shape `(patches, width)`; a square number of patches.

    Raises:
        ValueError: If rows of another length stand out.
    """
    count, width = table.shape
    square = math.isqrt(count)
    centered = table.astype(np.float64) - table.mean(axis=0, dtype=np.float64)
    units = centered / np.maximum(np.linalg.norm(centered, axis=1, keepdims=True), 1e-12)
    alike = (units[:-1] * units[1:]).sum(axis=1)
    lengths = [n for n in range(2, count // 2 + 1) if count % n == 0]
    breaks = {n: _break(alike, n) for n in lengths if n != square}
    if not breaks:
        return
    limit = _CLEARER * max(_break(alike, square), 0.0)
    # Against cosines at random, averaged over the ends of rows.
    clear = {
        length: value
        for length, value in breaks.items()
        if value > limit + _STANDARD_ERRORS / math.sqrt(width * (count // length - 1))
    }
    if clear:
        # Every other end of a row stands out as they all do, so the shortest such rows are meant.
        least = _NEARLY_AS_CLEAR * max(clear.values())
        row = min(length for length, value in clear.items() if value >= least)
        raise ValueError(
            "Only towers of square pictures can be read, and these positions are as those of "
            f"{count // row} x {row} patches. If they are of {square} x {square}, give the size "
            f"of the pictures by --set image.size=N. Received: positions of {count} patches"
        )


def _break(alike: np.ndarray, length: int) -> float:
    """Returns how much less alike neighbours are at the ends of rows than inside of them."""
    ends = np.arange(len(alike)) % length == length - 1
    return float(alike[~ends].mean() - alike[ends].mean())
