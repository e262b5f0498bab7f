"""RandAugment's operations in NumPy, written from their description.

Levels are float32 in the order that the published code adds them up in, since levels are cut off.
"""

import numpy as np

GREY = 128
NAMES = (
    *("AutoContrast", "Equalize", "Invert", "Rotate", "Posterize", "Solarize", "Color"),
    *("Contrast", "Brightness", "Sharpness", "ShearX", "ShearY", "TranslateX", "TranslateY"),
    *("Cutout", "SolarizeAdd"),
)
_ONE = np.float32(1.0)


def picture(height: int, width: int) -> np.ndarray:
    """Returns a picture with all levels in it, `(height, width, 3)`, uint8."""
    y, x, c = np.indices((height, width, 3))
    return ((7 * y * y + 13 * x + 29 * c * (x + 1) + 31 * x * y) % 256).astype(np.uint8)


def operation(
    image: np.ndarray,
    name: str,
    magnitude: float,
    *,
    negative: bool = False,
    center: tuple[int, int] = (0, 0),
    wrapped: bool = True,
    mean: bool = False,
    scale: float = 1.0,
) -> np.ndarray:
    """Applies an operation.

    Args:
        image: Shape `(height, width, 3)`, uint8.
        name: One of `NAMES`.
        magnitude: Its strength.
        negative: Whether rotations, shears and translations go the other way.
        center: Row and column of the middle of Cutout.
        wrapped: Whether Solarize's threshold is of eight bits.
        mean: Whether Contrast is reduced to the mean, not to a level of the number of pixels.
        scale: Pixels that stand for a published one.
    """
    height, width, _ = image.shape
    strength, sign = magnitude / 10, -1 if negative else 1
    levels = np.arange(256)
    if name == "AutoContrast":
        return _by_channel(image, _stretched)
    if name == "Equalize":
        return _by_channel(image, _equalized)
    if name == "Invert":
        return levels[::-1].astype(np.uint8)[image]
    if name == "Posterize":
        unit = 2 ** min(max(8 - int(strength * 4), 0), 7)
        return (levels // unit * unit).astype(np.uint8)[image]
    if name == "Solarize":
        threshold = int(strength * 256) % 256 if wrapped else int(strength * 256)
        return np.where(levels < threshold, levels, 255 - levels).astype(np.uint8)[image]
    if name == "SolarizeAdd":
        brighter = np.minimum(levels + int(strength * 110), 255)
        return np.where(levels < 128, brighter, levels).astype(np.uint8)[image]
    if name in ("Color", "Contrast", "Brightness", "Sharpness"):
        if name == "Contrast":
            count = round(height * width / scale**2)
            level = int(_luma(image).mean() + 0.5) if mean else min(count // 256, 255)
            other = np.full_like(image, level)
        elif name == "Color":
            other = np.stack([_luma(image)] * 3, axis=2)
        else:
            other = np.zeros_like(image) if name == "Brightness" else _softened(image)
        return _between(other, image, strength * 1.8 + 0.1)
    if name == "Cutout":
        y, x = np.indices((height, width))
        half = int(strength * 40 * scale)
        inside = [(p >= c - half) & (p < c + half) for p, c in zip((y, x), center, strict=True)]
        return np.where((inside[0] & inside[1])[..., None], np.uint8(GREY), image)
    if name == "Rotate":
        return _sampled(image, _rotation(height, width, sign * strength * 30))
    shear, shift = sign * strength * 0.3, sign * strength * 100 * scale
    matrix = {
        "ShearX": ((1, shear, 0), (0, 1, 0)),
        "ShearY": ((1, 0, 0), (shear, 1, 0)),
        "TranslateX": ((1, 0, shift), (0, 1, 0)),
        "TranslateY": ((1, 0, 0), (0, 1, shift)),
    }[name]
    return _sampled(image, matrix)


def _by_channel(image, table_of):
    channels = [table_of(image[..., c])[image[..., c]] for c in range(3)]
    return np.stack(channels, axis=2)


def _stretched(channel):
    levels, low, high = (
        np.arange(256, dtype=np.float32),
        *np.float32([channel.min(), channel.max()]),
    )
    if low == high:
        return levels.astype(np.uint8)
    factor = np.float32(255) / (high - low)
    return np.clip(levels * factor + (-low * factor), 0, 255).astype(np.uint8)


def _equalized(channel):
    counts = np.array([(channel == level).sum() for level in range(256)])
    step = (channel.size - counts[channel.max()]) // 255
    if step == 0:
        return np.arange(256, dtype=np.uint8)
    below = [counts[:level].sum() for level in range(256)]
    return np.array([min((n + step // 2) // step, 255) for n in below], np.uint8)


def _luma(image):
    unit = image.astype(np.float32) * np.float32(1 / 255)
    red, green, blue = (unit[..., c] * np.float32(w) for c, w in enumerate((0.2989, 0.587, 0.114)))
    return (((red + green) + blue) * np.float32(255.5)).astype(np.uint8)


def _softened(image):
    height, width, _ = image.shape
    padded = np.pad(image, ((1, 1), (1, 1), (0, 0))).astype(np.float32)
    total = np.zeros(image.shape, np.float32)
    for y in range(3):
        for x in range(3):
            weight = np.float32((5 if y == x == 1 else 1) / 13)
            total += padded[y : y + height, x : x + width] * weight
    soft = image.copy()
    soft[1:-1, 1:-1] = np.clip(total[1:-1, 1:-1], 0, 255).astype(np.uint8)
    return soft


def _between(zero, one, factor):
    if factor in (0.0, 1.0):
        return one if factor else zero
    zero, one = zero.astype(np.float32), one.astype(np.float32)
    levels = zero + np.float32(factor) * (one - zero)
    return (levels if 0 < factor < 1 else np.clip(levels, 0, 255)).astype(np.uint8)


def _rotation(height, width, degrees):
    # The angle's sine and cosine are those nearest in float32.
    radians = np.float64(np.float32(degrees) * np.float32(np.pi / 180))
    c, s = np.float32(np.cos(radians)), np.float32(np.sin(radians))
    x, y = np.float32(width - 1), np.float32(height - 1)
    two = _ONE + _ONE
    return ((c, -s, (x - (c * x - s * y)) / two), (s, c, (y - (s * x + c * y)) / two))


def _sampled(image, matrix):
    height, width, _ = image.shape
    result = np.full_like(image, GREY)
    y, x = np.indices((height, width)).astype(np.float32)
    column, row = (np.float32(a) * x + np.float32(b) * y + np.float32(c) for a, b, c in matrix)
    # Halves go away from zero.
    row, column = (np.trunc(v + np.copysign(np.float32(0.5), v)).astype(int) for v in (row, column))
    for target in np.ndindex(height, width):
        if 0 <= row[target] < height and 0 <= column[target] < width:
            result[target] = image[row[target], column[target]]
    return result
