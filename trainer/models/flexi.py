"""FlexiViT: a patch kernel and positions of one size, resized to any grid of patches.

Source: arXiv 2212.08013, section 3. Matrices are computed in float64 NumPy from their definition
and applied in float32, along one axis after the other: the pseudo-inverse of a Kronecker product is
the Kronecker product of the pseudo-inverses.
"""

import functools

import numpy as np
import tensorflow as tf


def resize_kernel(kernel: tf.Tensor, old: int, new: int) -> tf.Tensor:
    """Resizes the kernel of a patch embedding by the pseudo-inverse of a bilinear resize (PI).

    Of all kernels the result is the one whose products with resized patches are nearest to those
    of `kernel` with the patches: the same, where patches are enlarged. Always resize the kernel
    that is stored: to another size and back is not the same kernel.

    Args:
        kernel: Shape `(old * old * 3, width)`, by row, column and channel.
        old: Side of its patches in pixels.
        new: Side of the patches afterwards.

    Returns:
        Shape `(new * new * 3, width)`, float32; `kernel` itself at its own size.
    """
    if new == old:
        return kernel
    resized = _along_both(kernel, pseudo_inverse(old, new), (old, old, -1))
    return tf.reshape(resized, (new * new * 3, kernel.shape[-1]))


def resize_positions(positions: tf.Tensor, old: int, new: int) -> tf.Tensor:
    """Resizes positions of patches by a triangle filter, which is antialiased where it shrinks.

    This is `tf.image.resize(..., antialias=True)`. Positions of weights that a run starts from are
    resampled otherwise, see `models.positions.resample`.

    Args:
        positions: Shape `(1, old * old, width)`, row by row.
        old: Patches along a side.
        new: Patches along a side afterwards.

    Returns:
        Shape `(1, new * new, width)`, float32; `positions` themselves at their own size.
    """
    if new == old:
        return positions
    resized = _along_both(positions, triangle(old, new), (old, old, -1))
    return tf.reshape(resized, (1, new * new, positions.shape[-1]))


def _along_both(values: tf.Tensor, matrix: np.ndarray, shape: tuple[int, int, int]) -> tf.Tensor:
    """Multiplies rows and columns `(old, old, channels)` by a matrix `(new, old)`."""
    # Read a variable once. A layer that computes in bfloat16 stores float32, too.
    values = tf.reshape(tf.convert_to_tensor(values), shape)
    constant = tf.constant(matrix, tf.float32)
    old, new = shape[0], matrix.shape[0]
    rows = tf.matmul(constant, tf.reshape(values, (old, -1)))
    return tf.matmul(constant, tf.reshape(rows, (new, old, values.shape[-1])))


@functools.cache
def pseudo_inverse(old: int, new: int) -> np.ndarray:
    """Returns pinv(R^T) `(new, old)`, float64, for the resize R of `bilinear`."""
    return _kept(np.linalg.pinv(bilinear(old, new).T))


def bilinear(old: int, new: int) -> np.ndarray:
    """Returns the matrix `(new, old)` of a bilinear resize along one side, float64.

    Centres are at half pixels, edges are repeated, and nothing is antialiased, as
    `tf.image.resize` does by default.
    """
    places = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0.0, old - 1.0)
    return _hats(places, old, 1.0)


@functools.cache
def triangle(old: int, new: int) -> np.ndarray:
    """Returns the matrix `(new, old)` of an antialiased bilinear resize, float64; rows sum to 1."""
    scale = max(old / new, 1.0)
    weights = _hats((np.arange(new) + 0.5) * old / new - 0.5, old, scale)
    return _kept(weights / weights.sum(axis=1, keepdims=True))


def _hats(places: np.ndarray, count: int, scale: float) -> np.ndarray:
    distances = np.abs(places[:, np.newaxis] - np.arange(count))
    return np.maximum(0.0, 1.0 - distances / scale)


def _kept(matrix: np.ndarray) -> np.ndarray:
    """Makes a matrix that is kept for all callers read-only."""
    matrix.flags.writeable = False
    return matrix
