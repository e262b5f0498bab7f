"""Seeded corruptions of images: how far a model holds where pictures are worse than its own.

After Hendrycks and Dietterich (arXiv 1903.12261): the kinds of which Pillow and NumPy are enough,
at five severities each. Strengths are for the shorter side of the picture where they are lengths.
"""

import io
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import PIL
from PIL import Image, ImageEnhance, ImageFilter

from sigline.components.shared.upright import upright
from sigline.schemas import digests

SEVERITIES = (1, 2, 3, 4, 5)
# Increases whenever a corruption changes, so that cached results of older ones are not reused.
_VERSION = 1


@dataclass(frozen=True)
class Corruption:
    """A kind of corruption and how strong it is, from 1 to 5."""

    kind: str
    severity: int
    seed: int = 0

    def __post_init__(self) -> None:
        if self.kind not in KINDS or self.severity not in SEVERITIES:
            raise ValueError(
                f"kind must be one of {', '.join(KINDS)}, and severity 1 to 5. "
                f"Received: kind={self.kind!r}, severity={self.severity}"
            )

    @property
    def name(self) -> str:
        """The name that metrics use."""
        return f"{self.kind}@{self.severity}"


def identity(corruption: Corruption) -> list:
    """Returns all that decides what a corruption makes of a picture."""
    return [_VERSION, PIL.__version__, corruption.kind, corruption.severity, corruption.seed]


def corrupt(encoded: bytes, corruption: Corruption, *, key: str) -> bytes:
    """Returns the corrupted image as PNG, the same for the same key, kind, severity and seed.

    Args:
        encoded: A picture that ingest has stored: JPEG or PNG. One that does not decode is returned
            as it is, for the model to refuse.
        corruption: What to do to it.
        key: The record's key.
    """
    try:
        image = Image.open(io.BytesIO(encoded), formats=("JPEG", "PNG"))
        image = upright(image)
        image.load()
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return encoded
    white = Image.new("RGBA", image.size, "white")
    image = Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    name = digests.text_digest(f"{corruption.kind}/{corruption.seed}/{key}")
    rng = np.random.default_rng(int(name[:16], 16))
    changed = KINDS[corruption.kind](image, corruption.severity - 1, rng)
    buffer = io.BytesIO()
    changed.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _of_pixels(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8))


def _gaussian_noise(image: Image.Image, level: int, rng: np.random.Generator) -> Image.Image:
    pixels = np.asarray(image, np.float64)
    spread = 255 * (0.08, 0.12, 0.18, 0.26, 0.38)[level]
    return _of_pixels(pixels + spread * rng.standard_normal(pixels.shape))


def _shot_noise(image: Image.Image, level: int, rng: np.random.Generator) -> Image.Image:
    photons = (60, 25, 12, 5, 3)[level]
    return _of_pixels(rng.poisson(np.asarray(image, np.float64) / 255 * photons) / photons * 255)


def _impulse_noise(image: Image.Image, level: int, rng: np.random.Generator) -> Image.Image:
    pixels = np.array(image, np.float64)
    hit = rng.random(pixels.shape) < (0.03, 0.06, 0.09, 0.17, 0.27)[level]
    pixels[hit] = 255.0 * rng.integers(2, size=np.count_nonzero(hit))
    return _of_pixels(pixels)


def _blur(image: Image.Image, level: int, rng: np.random.Generator) -> Image.Image:
    del rng
    # Radii of 2, 3, 4, 6 and 8 pixels at a shorter side of 224, scaled to the image's size.
    radius = min(image.size) / 224 * (2, 3, 4, 6, 8)[level]
    return image.filter(ImageFilter.GaussianBlur(radius))


def _pixelate(image: Image.Image, level: int, rng: np.random.Generator) -> Image.Image:
    del rng
    share = (0.6, 0.5, 0.4, 0.3, 0.25)[level]
    small = [max(1, round(side * share)) for side in image.size]
    return image.resize(small, Image.Resampling.BOX).resize(image.size, Image.Resampling.NEAREST)


def _jpeg(image: Image.Image, level: int, rng: np.random.Generator) -> Image.Image:
    del rng
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=(25, 18, 15, 10, 7)[level])
    return Image.open(buffer)


def _contrast(image: Image.Image, level: int, rng: np.random.Generator) -> Image.Image:
    del rng
    return ImageEnhance.Contrast(image).enhance((0.4, 0.3, 0.2, 0.1, 0.05)[level])


def _brightness(image: Image.Image, level: int, rng: np.random.Generator) -> Image.Image:
    del rng
    hsv = np.array(image.convert("HSV"), np.float64)
    hsv[..., 2] = np.clip(hsv[..., 2] + 255 * (0.1, 0.2, 0.3, 0.4, 0.5)[level], 0, 255)
    return Image.fromarray(np.rint(hsv).astype(np.uint8), "HSV").convert("RGB")


def _occlusion(image: Image.Image, level: int, rng: np.random.Generator) -> Image.Image:
    pixels = np.array(image, np.float64)
    height, width = pixels.shape[:2]
    side = (0.2, 0.3, 0.4, 0.5, 0.6)[level]
    top = int(rng.integers(height - int(height * side) + 1))
    left = int(rng.integers(width - int(width * side) + 1))
    pixels[top : top + int(height * side), left : left + int(width * side)] = 127.0
    return _of_pixels(pixels)


KINDS: dict[str, Callable[[Image.Image, int, np.random.Generator], Image.Image]] = {
    "blur": _blur,
    "brightness": _brightness,
    "contrast": _contrast,
    "gaussian_noise": _gaussian_noise,
    "impulse_noise": _impulse_noise,
    "jpeg": _jpeg,
    "occlusion": _occlusion,
    "pixelate": _pixelate,
    "shot_noise": _shot_noise,
}
