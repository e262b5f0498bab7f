"""Checks, normalises and fingerprints encoded images."""

import functools
import hashlib
import io
import warnings
from dataclasses import dataclass

import numpy as np
from PIL import Image, UnidentifiedImageError

from sigline.components.ingest import fingerprints, integrity, reasons
from sigline.components.ingest.fingerprints import View
from sigline.components.shared.upright import turn_of

ACCEPTED_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "AVIF")
_STORED_FORMATS = ("JPEG", "PNG")
# Modes that Pillow and TensorFlow decode to the same pixels.
_PLAIN_MODES = ("1", "L", "P", "RGB")
# The largest side that libjpeg supports (JPEG_MAX_DIMENSION).
_MAX_JPEG_SIDE = 65_500


class ImageError(reasons.Refusal):
    """An image that is rejected."""


@dataclass(frozen=True)
class ImageLimits:
    """Bounds that hold before anything is decoded.

    Attributes:
        max_bytes: Largest encoded size.
        max_pixels: Largest width times height.
        min_side: Smallest width and height.
        max_aspect: Largest ratio of the longer side to the shorter; None for any.
    """

    max_bytes: int = 32 * 2**20
    max_pixels: int = 25_000_000
    min_side: int = 1
    max_aspect: float | None = None


@dataclass(frozen=True)
class ImageStorage:
    """How images are stored.

    The source's own bytes are kept wherever they need nothing: an upright, opaque JPEG or PNG of no
    more than `max_side`.

    Attributes:
        max_side: Images with a longer side are scaled down to it, their aspect kept; None for none.
        form: What others are encoded as: `png`, without loss, or `jpeg`.
        quality: JPEG quality, as in libjpeg.
    """

    max_side: int | None = None
    form: str = "png"
    quality: int = 95

    def __post_init__(self) -> None:
        if self.form not in ("png", "jpeg"):
            raise ValueError(f"storage.form must be png or jpeg. Received: {self.form!r}")
        if not 1 <= self.quality <= 100:
            raise ValueError(f"storage.quality must be 1 to 100. Received: {self.quality}")
        if self.max_side is not None and self.max_side < 1:
            raise ValueError(f"storage.max_side must be at least 1. Received: {self.max_side}")


@dataclass(frozen=True)
class CheckedImage:
    """An image that decodes.

    Attributes:
        stored: The bytes to store, the source's own if they need nothing.
        width: Width in pixels, of what is stored.
        height: Height in pixels, of what is stored.
        views: What tells it from other pictures; the first is the picture as it is.
    """

    stored: bytes
    width: int
    height: int
    views: tuple[View, ...]

    @functools.cached_property
    def sha256(self) -> bytes:
        """SHA-256 of the stored bytes."""
        return hashlib.sha256(self.stored).digest()


def check_image(
    encoded: bytes,
    limits: ImageLimits,
    storage: ImageStorage | None = None,
    *,
    mirrored: bool = False,
) -> CheckedImage:
    """Decodes an image fully and fingerprints it.

    The format is told by content, never by file name, and the limits are applied to what the header
    says, before anything is decoded. Transparent pixels are composed on white, images that a camera
    held askew are turned, colours that are no RGB or grey of 8 bits converted; of moving pictures
    the first is taken.

    Args:
        encoded: The bytes.
        limits: Bounds.
        storage: How it is stored.
        mirrored: Whether a mirrored copy counts as the same picture.

    Raises:
        ImageError: If the image is refused; no other exception escapes, whatever the bytes.
    """
    image = _open(encoded, limits)
    width, height = image.size
    storage = storage or ImageStorage()
    longest = storage.max_side
    try:
        turn = turn_of(image)
        target = None
        if longest is not None and max(width, height) > longest:
            target = _scaled_size(width, height, longest)
        opaque = image.mode in _PLAIN_MODES and not image.has_transparency_data
        upright = turn is None and opaque
        kept = upright and target is None and image.format in _STORED_FORMATS
        # A JPEG is parsed completely, so that damage shows, but decoded at the lowest scale that
        # suffices.
        needed = fingerprints.working_size(width, height) if kept else target
        drafted = image.draft(None, needed) if needed else None
        rgb = _to_rgb(image)
        damaged = integrity.damage(encoded, width, height)
        if damaged is not None:
            raise ValueError(damaged)
        if target is not None:
            # The scaled JPEG may be padded: the box covers the picture without the padding.
            box = drafted[1] if drafted else None
            rgb = rgb.resize(target, Image.Resampling.HAMMING, box=box, reducing_gap=1.0)
        if turn is not None:
            rgb = rgb.transpose(turn)
        width, height = (width, height) if kept else rgb.size
        stored = encoded if kept else _encode(rgb, storage)
        views = fingerprints.views(rgb, mirrored=mirrored)
    except Exception as error:  # A decoder may raise anything on hostile bytes.
        raise ImageError(reasons.CORRUPT_IMAGE, _first_line(error)) from error
    return CheckedImage(stored, width, height, views)


def _open(encoded: bytes, limits: ImageLimits) -> Image.Image:
    """Reads the header of an image and applies the limits to it."""
    if len(encoded) > limits.max_bytes:
        raise ImageError(
            reasons.TOO_MANY_BYTES, f"{len(encoded)} bytes, the limit is {limits.max_bytes}"
        )
    try:
        image = Image.open(io.BytesIO(encoded), formats=ACCEPTED_FORMATS)
    except Image.DecompressionBombError as error:
        raise ImageError(reasons.TOO_MANY_PIXELS, _first_line(error)) from error
    except UnidentifiedImageError:
        raise ImageError(
            reasons.UNSUPPORTED_IMAGE, f"no image of a known format; begins with {encoded[:8]!r}"
        ) from None
    except Exception as error:  # A decoder may raise anything, as above.
        raise ImageError(reasons.CORRUPT_IMAGE, _first_line(error)) from error
    width, height = image.size
    if width * height > limits.max_pixels:
        raise ImageError(
            reasons.TOO_MANY_PIXELS, f"{width}x{height} pixels, the limit is {limits.max_pixels}"
        )
    if min(width, height) < limits.min_side:
        raise ImageError(
            reasons.TOO_SMALL, f"{width}x{height} pixels, the least side is {limits.min_side}"
        )
    longer, shorter = max(width, height), max(min(width, height), 1)
    if limits.max_aspect is not None and longer > limits.max_aspect * shorter:
        raise ImageError(
            reasons.EXTREME_ASPECT, f"{width}x{height}, the limit is {limits.max_aspect} to 1"
        )
    return image


def _encode(rgb: Image.Image, storage: ImageStorage) -> bytes:
    # Colour profiles and gamma of the source no longer apply to the converted pixels.
    rgb.info = {}
    buffer = io.BytesIO()
    if storage.form == "jpeg" and max(rgb.size) <= _MAX_JPEG_SIDE:
        rgb.save(buffer, "JPEG", quality=storage.quality)
    else:
        rgb.save(buffer, "PNG")
    return buffer.getvalue()


def _scaled_size(width: int, height: int, longest: int) -> tuple[int, int]:
    """Returns a size of the same aspect with a longest side, as near as whole numbers allow."""
    scale = longest / max(width, height)
    return max(1, round(width * scale)), max(1, round(height * scale))


def _to_rgb(image: Image.Image) -> Image.Image:
    """Returns an opaque RGB image."""
    image.load()
    if image.mode.startswith("I"):
        # Pillow would clip 16 bits instead of scaling them; TensorFlow takes the upper 8.
        pixels = np.asarray(image).astype(np.uint32)
        grey = (pixels >> 8).astype(np.uint8)
        grey[pixels == image.info.get("transparency", -1)] = 255
        return Image.fromarray(grey).convert("RGB")
    return compose_on_white(image) if image.has_transparency_data else image.convert("RGB")


def compose_on_white(image: Image.Image) -> Image.Image:
    """Composes transparent pixels on white; rounds exactly as the served model does."""
    rgba = np.asarray(image.convert("RGBA"), dtype=np.int32)
    color, alpha = rgba[..., :3], rgba[..., 3:]
    mixed = (color * alpha + 255 * (255 - alpha) + 127) // 255
    return Image.fromarray(mixed.astype(np.uint8))


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:200]


# Pillow's own limit would warn first; ours rejects the image a line later.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
