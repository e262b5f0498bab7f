"""RandAugment as AugReg's ViTs were trained with (arXiv 1909.13719; arXiv 2106.10270, section 3.2).

Each of the layers draws one of 16 operations, all equally likely, and applies it. Operations work
on uint8 pictures that are cropped, flipped and at the tower's size already. Bytes equal those of
the published code (big_vision, `pp/archive/randaug.py`), whose odd behaviours are switches of
`RandAugmentConfig`. Everything follows from the seed, and pixels are computed element by element in
one order, so that neither workers nor processors change them.

`keras.layers.RandAugment` is not used. It draws from a seed generator, which is a variable: a
resumed run would see other pictures than an uninterrupted one. It has 11 operations, reflects at
the borders, returns fractions, and computes all branches for each layer: 38 CPU ms a picture at 224
pixels, where this takes about one.
"""

import functools
import math
from collections.abc import Iterable

import numpy as np
import tensorflow as tf

from sigline.trainer.config import RandAugmentConfig

OPERATIONS = (
    "AutoContrast",
    "Equalize",
    "Invert",
    "Rotate",
    "Posterize",
    "Solarize",
    "Color",
    "Contrast",
    "Brightness",
    "Sharpness",
    "ShearX",
    "ShearY",
    "TranslateX",
    "TranslateY",
    "Cutout",
    "SolarizeAdd",
)
# Resampled by one matrix each; the sign of the magnitude is drawn.
_AFFINE = ("Rotate", "ShearX", "ShearY", "TranslateX", "TranslateY")
# What is behind the borders, and what Cutout fills in.
_FILL = 128
# Side that pixels are counted at, if they are scaled.
_SIDE = 224
# Levels of grey by channel, as `tf.image.rgb_to_grayscale` has them.
_LUMA = (0.2989, 0.587, 0.114)


def augment(image: tf.Tensor, config: RandAugmentConfig, *, seed: tf.Tensor) -> tf.Tensor:
    """Applies `config.layers` operations, each drawn anew.

    Args:
        image: Shape `(height, width, 3)`, uint8, with static sides.
        config: What is drawn from, and how strong it is.
        seed: Two integers; the same give the same picture.

    Returns:
        As `image`.

    Raises:
        ValueError: If the sides are not static.
    """
    height, width = _sides(image)

    def _layer(image: tf.Tensor, draws: tf.Tensor) -> tf.Tensor:
        kind, sign, row, column = tf.unstack(draws)
        return operation(
            image,
            tf.cast(kind * len(OPERATIONS), tf.int32),
            config,
            negative=sign < 0.5,
            center=(tf.cast(row * height, tf.int32), tf.cast(column * width, tf.int32)),
        )

    # Traced once for all layers.
    apply = tf.function(_layer, autograph=False)
    for draws in tf.unstack(tf.random.stateless_uniform((config.layers, 4), seed)):
        image = apply(image, draws)
    return image


def operation(
    image: tf.Tensor,
    number: tf.Tensor,
    config: RandAugmentConfig,
    *,
    negative: tf.Tensor,
    center: tuple[tf.Tensor, tf.Tensor],
) -> tf.Tensor:
    """Applies one operation.

    Args:
        image: Shape `(height, width, 3)`, uint8, with static sides.
        number: Place of the operation in `OPERATIONS`, an int32 scalar.
        config: The magnitude, and how operations behave.
        negative: Whether rotations, shears and translations go the other way, a scalar.
        center: Row and column of the middle of what Cutout fills, int32 scalars.

    Returns:
        As `image`.
    """
    # Strengths are of magnitudes over 10, in the order of the published code: rounding decides.
    level = config.magnitude / 10
    # 1.9 at a magnitude of 10; 1, at 5, leaves the picture as it is.
    factor = level * 1.8 + 0.1
    branches = {
        "AutoContrast": lambda: _auto_contrast(image),
        "Equalize": lambda: _equalize(image),
        "Invert": lambda: 255 - image,
        "Posterize": lambda: _posterize(image, int(level * 4)),
        "Solarize": lambda: _solarize(image, _threshold(level, config)),
        "SolarizeAdd": lambda: _solarize_add(image, int(level * 110)),
        "Color": lambda: _blend(tf.expand_dims(_grey(image), 2), image, factor),
        "Contrast": lambda: _blend(_mean(image, config), image, factor),
        "Brightness": lambda: _blend(tf.constant(0, tf.uint8), image, factor),
        "Sharpness": lambda: _blend(_smooth(image), image, factor),
        "Cutout": lambda: _cutout(image, int(level * 40 * _scale(image, config)), center),
        "affine": lambda: _affine(image, number, level, negative, _scale(image, config)),
    }
    # Operations of one matrix are one branch, which leaves a graph of fewer functions to trace.
    names = list(branches)
    places = [names.index("affine" if name in _AFFINE else name) for name in OPERATIONS]
    changed = tf.switch_case(tf.gather(tf.constant(places), number), list(branches.values()))
    return tf.ensure_shape(changed, image.shape)


def _sides(image: tf.Tensor) -> tuple[int, int]:
    height, width, _ = image.shape.as_list()
    if height is None or width is None:
        raise ValueError(f"image must have static sides. Received: image.shape={image.shape}")
    return height, width


def _scale(image: tf.Tensor, config: RandAugmentConfig) -> float:
    """Returns how many pixels stand for one of the published ones."""
    height, width = _sides(image)
    return math.sqrt(height * width) / _SIDE if config.scale_pixels else 1.0


def _threshold(level: float, config: RandAugmentConfig) -> int:
    threshold = int(level * 256)
    return threshold % 256 if config.solarize == "wrapped" else threshold


def _blend(zero: tf.Tensor, one: tf.Tensor, factor: float) -> tf.Tensor:
    """Returns the picture from `zero` through `one` to beyond it, cut to whole levels."""
    if factor == 1.0:
        return one
    zero, one = tf.cast(zero, tf.float32), tf.cast(one, tf.float32)
    blended = zero + np.float32(factor) * (one - zero)
    if factor > 1.0:
        blended = tf.clip_by_value(blended, 0.0, 255.0)
    return tf.cast(blended, tf.uint8)


def _posterize(image: tf.Tensor, bits: int) -> tf.Tensor:
    # No bits still leave the highest one, as a shift by 8 does in TensorFlow.
    dropped = min(max(8 - bits, 0), 7)
    return tf.bitwise.bitwise_and(image, tf.constant(0xFF << dropped & 0xFF, tf.uint8))


def _solarize(image: tf.Tensor, threshold: int) -> tf.Tensor:
    if threshold > 255:
        return image
    # Exclusive or with 255 is what selecting 255 - x comes to, at a fifth of its time.
    inverted = tf.cast(image >= tf.constant(threshold, tf.uint8), tf.uint8) * 255
    return tf.bitwise.bitwise_xor(image, inverted)


def _solarize_add(image: tf.Tensor, addition: int) -> tf.Tensor:
    added = tf.minimum(255 - image, tf.constant(min(addition, 255), tf.uint8))
    return image + added * tf.cast(image < 128, tf.uint8)


def _grey(image: tf.Tensor) -> tf.Tensor:
    """Returns levels of grey, `(height, width)`, uint8."""
    # Not by `tf.image.rgb_to_grayscale`, whose product may add up in another order elsewhere.
    levels = tf.cast(image, tf.float32) * np.float32(1 / 255)
    channels = zip(tf.unstack(levels, axis=2), _LUMA, strict=True)
    return tf.cast(_sum(x * np.float32(-weight) for x, weight in channels) * 255.5, tf.uint8)


def _sum(negated: Iterable[tf.Tensor]) -> tf.Tensor:
    """Returns minus the sum of what it is given, added up in this order.

    TensorFlow turns a chain of additions into one of many terms, which begins with the term whose
    memory it takes for the result. The last bit then depends on what else is computed, and with it
    the level that is cut off. A chain of subtractions it leaves as it is.
    """
    return functools.reduce(tf.subtract, negated, tf.constant(0.0))


def _mean(image: tf.Tensor, config: RandAugmentConfig) -> tf.Tensor:
    """Returns the level of grey that contrast is reduced to, a uint8 scalar."""
    height, width = _sides(image)
    if config.contrast == "pixels":
        # The published code takes the mean of a histogram for that of the picture.
        pixels = _SIDE**2 if config.scale_pixels else height * width
        return tf.constant(min(pixels // 256, 255), tf.uint8)
    total = tf.reduce_sum(tf.cast(_grey(image), tf.int64))
    count = height * width
    return tf.cast((2 * total + count) // (2 * count), tf.uint8)


def _by_channel(image: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
    """Returns rows of `width * 3` numbers, to which a row is added faster than three numbers."""
    height, width = _sides(image)
    return tf.reshape(tf.cast(image, dtype), (height, 3 * width))


def _auto_contrast(image: tf.Tensor) -> tf.Tensor:
    _, width = _sides(image)
    low = tf.cast(tf.reduce_min(image, axis=(0, 1)), tf.float32)
    high = tf.cast(tf.reduce_max(image, axis=(0, 1)), tf.float32)
    # A channel of one level stays as it is.
    flat = tf.equal(low, high)
    scale = tf.where(flat, 1.0, 255.0 / tf.where(flat, 1.0, high - low))
    offset = tf.where(flat, 0.0, -low * scale)
    levels = _by_channel(image, tf.float32) * tf.tile(scale, [width]) + tf.tile(offset, [width])
    levels = tf.cast(tf.clip_by_value(levels, 0.0, 255.0), tf.uint8)
    return tf.reshape(levels, image.shape)


def _equalize(image: tf.Tensor) -> tf.Tensor:
    height, width = _sides(image)
    places = _by_channel(image, tf.int32) + tf.tile(tf.constant([0, 256, 512]), [width])
    counts = tf.reshape(tf.math.bincount(places, minlength=768, maxlength=768), (3, 256))
    levels = tf.range(256)
    largest = tf.reduce_max(tf.where(counts > 0, levels, 0), axis=1, keepdims=True)
    step = (height * width - tf.gather(counts, largest, batch_dims=1)) // 255
    below = tf.cumsum(counts, axis=1, exclusive=True)
    table = tf.minimum((below + step // 2) // tf.maximum(step, 1), 255)
    # A channel of few levels stays as it is.
    table = tf.cast(tf.where(step > 0, table, levels), tf.uint8)
    return tf.reshape(tf.gather(tf.reshape(table, [-1]), places), image.shape)


def _smooth(image: tf.Tensor) -> tf.Tensor:
    """Returns means over 3 x 3 pixels, the middle one five times; borders stay as they are."""
    height, width = _sides(image)
    if min(height, width) < 3:
        return image
    # In the order of the published convolution, which TensorFlow's of today does not keep.
    levels = tf.cast(image, tf.float32)
    once, five_times = levels * np.float32(-1 / 13), levels * np.float32(-5 / 13)
    negated = [
        (five_times if y == x == 1 else once)[y : height - 2 + y, x : width - 2 + x]
        for y in range(3)
        for x in range(3)
    ]
    inner = tf.cast(tf.clip_by_value(_sum(negated), 0.0, 255.0), tf.uint8)
    rows = tf.concat([image[1:-1, :1], inner, image[1:-1, -1:]], axis=1)
    return tf.concat([image[:1], rows, image[-1:]], axis=0)


def _cutout(image: tf.Tensor, half: int, center: tuple[tf.Tensor, tf.Tensor]) -> tf.Tensor:
    """Fills a square of twice `half`, less what is outside."""
    height, width = _sides(image)
    top, left = (tf.maximum(x - half, 0) for x in center)
    bottom, right = tf.minimum(center[0] + half, height), tf.minimum(center[1] + half, width)
    # Cut and put together, which takes a tenth of the time of a mask.
    square = tf.fill((bottom - top, right - left, 3), tf.constant(_FILL, tf.uint8))
    band = image[top:bottom]
    band = tf.concat([band[:, :left], square, band[:, right:]], axis=1)
    return tf.concat([image[:top], band, image[bottom:]], axis=0)


def _affine(
    image: tf.Tensor, number: tf.Tensor, level: float, negative: tf.Tensor, scale: float
) -> tf.Tensor:
    """Samples the nearest pixel, halves away from zero; grey outside."""
    height, width = _sides(image)
    both = [_matrices(height, width, sign * level, scale) for sign in (1, -1)]
    negated = -np.array([[signed[name] for name in _AFFINE] for signed in both], np.float32)
    places = [_AFFINE.index(name) if name in _AFFINE else 0 for name in OPERATIONS]
    place = tf.gather(tf.constant(places), number)
    matrix = tf.constant(negated)[tf.cast(negative, tf.int32), place]
    y, x = tf.range(height, dtype=tf.float32)[:, tf.newaxis], tf.range(width, dtype=tf.float32)
    column, row = (_sum((m[0] * x, m[1] * y, m[2])) for m in (matrix[:3], matrix[3:]))
    (row, row_inside), (column, column_inside) = _nearest(row, height), _nearest(column, width)
    # The last one of the pixels stands for all that is outside.
    outside = tf.fill((1, 3), tf.constant(_FILL, tf.uint8))
    pixels = tf.concat([tf.reshape(image, (-1, 3)), outside], axis=0)
    inside = row_inside & column_inside
    return tf.gather(pixels, tf.where(inside, row * width + column, height * width))


def _nearest(places: tf.Tensor, side: int) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns whole places, int32, and whether they are inside of `side`; halves go outwards."""
    rounded = tf.cast(tf.floor(tf.abs(places) + 0.5), tf.int32)
    return rounded, (rounded < side) & ((places >= 0) | (rounded < 1))


def _matrices(height: int, width: int, level: float, scale: float) -> dict[str, list]:
    """Returns what gives the column and the row to sample, from column, row and one."""
    radians = np.float32(level * 30) * np.float32(math.pi / 180)
    cos, sin = np.float32(math.cos(radians)), np.float32(math.sin(radians))
    right, bottom, two = np.float32(width - 1), np.float32(height - 1), np.float32(2)
    shear, shift = level * 0.3, level * 100 * scale
    return {
        # About the middle.
        "Rotate": [
            cos,
            -sin,
            (right - (cos * right - sin * bottom)) / two,
            sin,
            cos,
            (bottom - (sin * right + cos * bottom)) / two,
        ],
        "ShearX": [1, shear, 0, 0, 1, 0],
        "ShearY": [1, 0, 0, shear, 1, 0],
        "TranslateX": [1, 0, shift, 0, 1, 0],
        "TranslateY": [1, 0, 0, 0, 1, shift],
    }
