"""Positions of the patches of an image: fixed sines, and learned ones at another resolution."""

import math

import numpy as np


def sincos_2d(grid: int, width: int) -> np.ndarray:
    """Returns fixed embeddings of the patches of a square image, row by row.

    The first half of the channels depends on the column, the second on the row; each is sines, then
    cosines, at frequencies 10000^(-k / (width / 4 - 1)).

    Args:
        grid: Patches along a side.
        width: Channels; a multiple of 4, at least 8.

    Returns:
        Shape `(1, grid * grid, width)`, float32.

    Source: arXiv 2104.02057 (MoCo v3); used by arXiv 2205.01580.
    """
    if width % 4 or width < 8:
        raise ValueError(
            "The width must be a multiple of 4, at least 8, for positions=sincos2d. "
            f"Received: width={width}"
        )
    y, x = np.mgrid[:grid, :grid]
    frequencies = 1.0 / 10_000 ** np.linspace(0.0, 1.0, width // 4)
    angles_x = x.reshape(-1, 1) * frequencies
    angles_y = y.reshape(-1, 1) * frequencies
    parts = [np.sin(angles_x), np.cos(angles_x), np.sin(angles_y), np.cos(angles_y)]
    return np.concatenate(parts, axis=1)[np.newaxis].astype(np.float32)


def resample(positions: np.ndarray, grid: int) -> np.ndarray:
    """Returns learned positions of a square image at another resolution.

    Bilinear with the corners aligned, as big_vision does (`scipy.ndimage.zoom` of order 1).

    Args:
        positions: Shape `(1, old * old, width)`, row by row.
        grid: Patches along a side afterwards.

    Returns:
        Shape `(1, grid * grid, width)`, of the same type.
    """
    _, count, width = positions.shape
    old = math.isqrt(count)
    if old * old != count:
        raise ValueError(
            "Only positions of a square image can be resampled. "
            f"Received: positions.shape={positions.shape}"
        )
    if old == grid:
        return positions
    weights = _linear_weights(old, grid)
    square = positions.reshape(old, old, width).astype(np.float64)
    resized = np.einsum("yi,xj,ijd->yxd", weights, weights, square)
    return resized.reshape(1, grid * grid, width).astype(positions.dtype)


def _linear_weights(old: int, new: int) -> np.ndarray:
    """Returns the matrix `(new, old)` that interpolates along one side."""
    places = np.linspace(0.0, old - 1.0, new)
    return np.maximum(0.0, 1.0 - np.abs(places[:, np.newaxis] - np.arange(old)))
