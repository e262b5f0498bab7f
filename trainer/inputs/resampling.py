"""Pillow's resizing of 8-bit pictures in TensorFlow operations, to the very same levels.

Image processors of `transformers` resize by Pillow: always antialiased, columns before rows, with
weights in fixed point and a result rounded to whole levels after each of the two passes. Here the
weights are computed in float64, rounded to the same fixed point and multiplied in int32, so that
results are equal, not only close (Pillow `src/libImaging/Resample.c`).
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf

# Fractional bits of a fixed-point weight: of 32 bits, 8 hold a level, and 2 the sign and the
# overshoot of sums.
_PRECISION_BITS = 32 - 8 - 2
# Largest side that is resized exactly, which no JPEG exceeds. Weights of longer ones would fill
# memory, which a PNG of a single row could ask for.
_LARGEST_SIDE = 65_535
# Pixels that are made 32-bit integers at a time.
_PIXELS_AT_A_TIME = 1 << 20
_CHANNELS = 3


class _Filter(NamedTuple):
    """A filter.

    Attributes:
        radius: Beyond it, at the scale of the output, the weight is zero.
        weigh: Returns weights of distances, both float64.
    """

    radius: float
    weigh: Callable[[tf.Tensor], tf.Tensor]


def _box(x: tf.Tensor) -> tf.Tensor:
    return tf.cast((x > -0.5) & (x <= 0.5), x.dtype)


def _bilinear(x: tf.Tensor) -> tf.Tensor:
    return tf.maximum(1.0 - tf.abs(x), 0.0)


def _hamming(x: tf.Tensor) -> tf.Tensor:
    angle = math.pi * tf.abs(x)
    window = 0.54 + 0.46 * tf.cos(angle)
    return tf.where(tf.abs(x) < 1.0, _sinc(tf.abs(x)) * window, 0.0)


def _bicubic(x: tf.Tensor) -> tf.Tensor:
    """Keys's cubic with a = -0.5; others, such as PyTorch's without antialiasing, have -0.75."""
    a, x = -0.5, tf.abs(x)
    near = ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0
    far = (((x - 5.0) * x + 8.0) * x - 4.0) * a
    return tf.where(x < 1.0, near, tf.where(x < 2.0, far, 0.0))


def _lanczos(x: tf.Tensor) -> tf.Tensor:
    return tf.where((x >= -3.0) & (x < 3.0), _sinc(x) * _sinc(x / 3.0), 0.0)


def _sinc(x: tf.Tensor) -> tf.Tensor:
    angle = math.pi * x
    return tf.math.divide_no_nan(tf.sin(angle), angle) + tf.cast(tf.equal(x, 0.0), x.dtype)


FILTERS = {
    "box": _Filter(0.5, _box),
    "bilinear": _Filter(1.0, _bilinear),
    "hamming": _Filter(1.0, _hamming),
    "bicubic": _Filter(2.0, _bicubic),
    "lanczos": _Filter(3.0, _lanczos),
}


def resize(
    image: tf.Tensor, size: tf.Tensor, interpolation: str, *, window: tf.Tensor | None = None
) -> tf.Tensor:
    """Resizes a picture as Pillow's `Image.resize` does, without regard to the aspect ratio.

    Args:
        image: Shape `(height, width, 3)`, uint8. Sides of more than 65,535 pixels are
            thinned to fewer first.
        size: `(height, width)` afterwards, int64.
        interpolation: A key of `FILTERS`.
        window: Part of the result to return, `(top, left, height, width)`, int64; nothing else is
            computed. None for all.

    Returns:
        Shape `(height, width, 3)`, uint8.
    """
    image = _thinned(image)
    if window is None:
        window = tf.concat([[0, 0], size], 0)
    columns = _weights(tf.shape(image, tf.int64)[1], size[1], window[1], window[3], interpolation)
    rows = _weights(tf.shape(image, tf.int64)[0], size[0], window[0], window[2], interpolation)
    narrow = _narrowed(image, columns, window[3])
    flat = tf.reshape(narrow, tf.stack([tf.shape(narrow)[0], -1]))
    levels = _weighted(rows, tf.cast(flat, tf.int32))
    return tf.reshape(levels, tf.concat([window[2:], [_CHANNELS]], 0))


def _thinned(image: tf.Tensor) -> tf.Tensor:
    steps = (tf.shape(image)[:2] + _LARGEST_SIDE - 1) // _LARGEST_SIDE
    return image[:: steps[0], :: steps[1]]


def _narrowed(image: tf.Tensor, columns: tf.SparseTensor, width: tf.Tensor) -> tf.Tensor:
    """Resizes the columns, a few rows at a time: as 32-bit integers all would need much memory."""
    height = tf.shape(image)[0]
    step = tf.maximum(_PIXELS_AT_A_TIME // tf.maximum(tf.shape(image)[1], 1), 1)

    def narrow(rows: tf.Tensor) -> tf.Tensor:
        count = tf.shape(rows)[0]
        turned = tf.transpose(rows, (1, 0, 2))
        flat = tf.reshape(tf.cast(turned, tf.int32), tf.stack([tf.shape(rows)[1], -1]))
        levels = tf.reshape(
            _weighted(columns, flat), tf.stack([tf.cast(width, tf.int32), count, _CHANNELS])
        )
        return tf.transpose(levels, (1, 0, 2))

    def in_parts() -> tf.Tensor:
        count = (height + step - 1) // step
        parts = tf.TensorArray(tf.uint8, size=count, infer_shape=False)
        _, parts = tf.while_loop(
            lambda i, _: i < count,
            lambda i, parts: (i + 1, parts.write(i, narrow(image[i * step : (i + 1) * step]))),
            (0, parts),
            # One part after the other, since parallel parts would be in memory at once.
            parallel_iterations=1,
        )
        return parts.concat()

    return tf.cond(height <= step, lambda: narrow(image), in_parts)


def _weights(
    size_in: tf.Tensor, size_out: tf.Tensor, begin: tf.Tensor, count: tf.Tensor, interpolation: str
) -> tf.SparseTensor:
    """Returns what each level of a resized line takes of the levels before.

    Args:
        size_in: Levels of a line before, int64.
        size_out: Levels of the whole line afterwards, int64.
        begin: First level of it that is computed, int64.
        count: How many are, int64.
        interpolation: A key of `FILTERS`.

    Returns:
        Shape `(count, size_in)`, int32, in units of `2**-_PRECISION_BITS`.
    """
    radius, weigh = FILTERS[interpolation]
    scale = tf.cast(size_in, tf.float64) / tf.cast(size_out, tf.float64)
    # Shrinking makes the filter wider, which is what antialiasing is.
    widened = tf.maximum(scale, 1.0)
    support = radius * widened
    centers = (tf.cast(begin + tf.range(count), tf.float64) + 0.5) * scale
    # Casts cut towards zero, as in C.
    firsts = tf.maximum(tf.cast(centers - support + 0.5, tf.int64), 0)
    lasts = tf.minimum(tf.cast(centers + support + 0.5, tf.int64), size_in)
    taps = tf.range(2 * tf.cast(tf.math.ceil(support), tf.int64) + 1)
    places = firsts[:, tf.newaxis] + taps
    distances = tf.cast(places, tf.float64) - centers[:, tf.newaxis] + 0.5
    weights = tf.where(places < lasts[:, tf.newaxis], weigh(distances * (1.0 / widened)), 0.0)
    weights = tf.math.divide_no_nan(weights, tf.reduce_sum(weights, axis=1, keepdims=True))
    # Rounded away from zero, as in C.
    fixed = weights * (1 << _PRECISION_BITS)
    fixed = tf.cast(fixed + tf.where(fixed < 0.0, tf.constant(-0.5, tf.float64), 0.5), tf.int32)
    lines = tf.broadcast_to(tf.range(count)[:, tf.newaxis], tf.shape(places, tf.int64))
    kept = tf.not_equal(fixed, 0)
    indices = tf.stack([tf.boolean_mask(lines, kept), tf.boolean_mask(places, kept)], axis=1)
    return tf.SparseTensor(indices, tf.boolean_mask(fixed, kept), tf.stack([count, size_in]))


def _weighted(weights: tf.SparseTensor, levels: tf.Tensor) -> tf.Tensor:
    """Multiplies `(outputs, inputs)` and `(inputs, n)`, int32, to levels `(outputs, n)`, uint8."""
    sums = tf.sparse.sparse_dense_matmul(weights, levels) + (1 << (_PRECISION_BITS - 1))
    rounded = tf.bitwise.right_shift(sums, tf.constant(_PRECISION_BITS, tf.int32))
    return tf.cast(tf.clip_by_value(rounded, 0, 255), tf.uint8)
