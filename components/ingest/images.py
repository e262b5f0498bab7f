"""Checks, normalises and fingerprints encoded images."""

import functools
import hashlib
import io
import warnings
import zlib
from dataclasses import dataclass

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from sigline.components.ingest import fingerprints, reasons
from sigline.components.ingest.fingerprints import View

ACCEPTED_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "AVIF")
_STORED_FORMATS = ("JPEG", "PNG")
# Pillow and TensorFlow see the same in images of these.
_PLAIN_MODES = ("1", "L", "P", "RGB")
# What sets upright, by the EXIF orientation.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Of libjpeg.
_MAX_JPEG_SIDE = 65_500
_PNG_SIGNATURE_BYTES = 8
_PNG_CRITICAL = (b"IHDR", b"PLTE", b"IDAT", b"IEND")
# Where the passes of an interlaced PNG begin, and their steps: left, top, across, down.
_ADAM7 = (
    (0, 0, 8, 8),
    (4, 0, 8, 8),
    (0, 4, 4, 8),
    (2, 0, 4, 4),
    (0, 2, 2, 4),
    (1, 0, 2, 2),
    (0, 1, 1, 2),
)
# Of a PNG that is checked, at a time.
_INFLATED_BYTES = 2**20


class ImageError(Exception):
    """An image that is rejected; `reason` is one of `reasons`."""

    def __init__(self, reason: str, detail: str):
        super().__init__(detail)
        self.reason = reason


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
        quality: Of JPEG, as in libjpeg.
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
    if image.format == "PNG":
        _check_png(encoded, width, height)
    longest = storage.max_side
    try:
        turn = _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
        target = None
        if longest is not None and max(width, height) > longest:
            target = _scaled_size(width, height, longest)
        opaque = image.mode in _PLAIN_MODES and not image.has_transparency_data
        upright = turn is None and opaque
        kept = upright and target is None and image.format in _STORED_FORMATS
        # All of a JPEG is parsed, but no more pixels are computed than are needed.
        needed = fingerprints.working_size(width, height) if kept else target
        drafted = image.draft(None, needed) if needed else None
        rgb = _to_rgb(image)
        if target is not None:
            # The whole picture in what was computed, which may reach beyond it.
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
    except Exception as error:  # As above.
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


def _check_png(encoded: bytes, width: int, height: int) -> None:
    """Checks what Pillow takes on trust: checksums of pixels, and that none of them is missing.

    TensorFlow refuses what fails here; Pillow leaves the rest of the picture black.
    """
    inflate, size, place = zlib.decompressobj(), 0, _PNG_SIGNATURE_BYTES
    expected, name = None, b""
    while place + 12 <= len(encoded) and name != b"IEND":
        length = int.from_bytes(encoded[place : place + 4], "big")
        name = encoded[place + 4 : place + 8]
        content = encoded[place + 8 : place + 8 + length]
        checksum = encoded[place + 8 + length : place + 12 + length]
        if zlib.crc32(name + content) != int.from_bytes(checksum.ljust(5, b"x"), "big") >> 8:
            raise ImageError(
                reasons.CORRUPT_IMAGE, f"the checksum of the part at byte {place} is wrong"
            )
        if name == b"IHDR" and length == 13:
            expected = _png_bytes(width, height, content[8], content[9], content[12])
        elif name == b"IDAT" and expected is not None:
            while content and not inflate.eof and size <= expected:
                try:
                    size += len(inflate.decompress(content, _INFLATED_BYTES))
                except zlib.error as error:
                    raise ImageError(reasons.CORRUPT_IMAGE, _first_line(error)) from error
                content = inflate.unconsumed_tail
        elif name not in _PNG_CRITICAL and not name[0] & 32:
            raise ImageError(reasons.CORRUPT_IMAGE, f"a part that nobody knows: {name!r}")
        place += 12 + length
    if name != b"IEND" or not inflate.eof or size != expected:
        raise ImageError(reasons.CORRUPT_IMAGE, "the pixels are not complete")


def _png_bytes(width: int, height: int, depth: int, color: int, interlaced: int) -> int:
    """Returns how many bytes the lines of a PNG take, each behind a byte for its filter."""
    bits = depth * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}.get(color, 0)
    passes = _ADAM7 if interlaced else ((0, 0, 1, 1),)
    sizes = [
        (-(-max(0, width - left) // across), -(-max(0, height - top) // down))
        for left, top, across, down in passes
    ]
    return sum(rows * (1 + -(-columns * bits // 8)) for columns, rows in sizes if columns)


def _encode(rgb: Image.Image, storage: ImageStorage) -> bytes:
    # What the source says of its colours is no longer true.
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


# Pillow warns of what our own limit refuses a line later.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
