"""Checks, normalises and fingerprints encoded images."""

import hashlib
import io
import warnings
from dataclasses import dataclass

import numpy as np
from PIL import Image, UnidentifiedImageError

# The closed set of reasons why an image is rejected.
UNSUPPORTED_IMAGE = "unsupported_image"
CORRUPT_IMAGE = "corrupt_image"
TOO_MANY_PIXELS = "too_many_pixels"
TOO_MANY_BYTES = "too_many_bytes"

THUMBNAIL_SIZE = 8
_ACCEPTED_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
_STORED_FORMATS = ("JPEG", "PNG")
_PHASH_SIZE = 32
_PHASH_KEPT = 8


class ImageError(Exception):
    """An image that is rejected; `reason` is one of this module's constants."""

    def __init__(self, reason: str, detail: str):
        super().__init__(detail)
        self.reason = reason


@dataclass(frozen=True)
class ImageLimits:
    """Bounds that hold before anything is decoded.

    Attributes:
        max_bytes: Largest encoded size.
        max_pixels: Largest width times height.
    """

    max_bytes: int = 32 * 2**20
    max_pixels: int = 25_000_000


@dataclass(frozen=True)
class CheckedImage:
    """An image that decodes.

    Attributes:
        stored: The bytes to store: the source's own if they are an opaque JPEG or PNG, else a PNG.
        width: Width in pixels.
        height: Height in pixels.
        phash: Perceptual hash, a signed 64-bit integer.
        thumbnail: `THUMBNAIL_SIZE` squared RGB values, which confirm near-duplicates.
    """

    stored: bytes
    width: int
    height: int
    phash: int
    thumbnail: bytes

    @property
    def sha256(self) -> bytes:
        """SHA-256 of the stored bytes."""
        return hashlib.sha256(self.stored).digest()


def check_image(encoded: bytes, limits: ImageLimits) -> CheckedImage:
    """Decodes an image fully and fingerprints it.

    The format is told by content, never by file name. Transparent pixels are composed on white and
    formats other than JPEG and PNG are transcoded, both to PNG, without loss.

    Raises:
        ImageError: If the image is refused; no other exception escapes, whatever the bytes.
    """
    if len(encoded) > limits.max_bytes:
        raise ImageError(TOO_MANY_BYTES, f"{len(encoded)} bytes, the limit is {limits.max_bytes}")
    try:
        image = Image.open(io.BytesIO(encoded), formats=_ACCEPTED_FORMATS)
    except Image.DecompressionBombError as error:
        raise ImageError(TOO_MANY_PIXELS, _first_line(error)) from error
    except UnidentifiedImageError:
        raise ImageError(
            UNSUPPORTED_IMAGE, f"no image of a known format; begins with {encoded[:8]!r}"
        ) from None
    except Exception as error:  # A decoder may raise anything on hostile bytes.
        raise ImageError(CORRUPT_IMAGE, _first_line(error)) from error
    width, height = image.size
    if width * height > limits.max_pixels:
        raise ImageError(
            TOO_MANY_PIXELS, f"{width}x{height} pixels, the limit is {limits.max_pixels}"
        )
    try:
        image.load()
        transparent = image.has_transparency_data
        rgb = compose_on_white(image) if transparent else image.convert("RGB")
    except Exception as error:  # As above.
        raise ImageError(CORRUPT_IMAGE, _first_line(error)) from error
    stored = encoded
    if transparent or image.format not in _STORED_FORMATS:
        buffer = io.BytesIO()
        rgb.save(buffer, "PNG")
        stored = buffer.getvalue()
    thumbnail = rgb.resize((THUMBNAIL_SIZE, THUMBNAIL_SIZE), Image.Resampling.BOX)
    return CheckedImage(stored, width, height, perceptual_hash(rgb), thumbnail.tobytes())


def compose_on_white(image: Image.Image) -> Image.Image:
    """Composes transparent pixels on white; rounds exactly as the served model does."""
    rgba = np.asarray(image.convert("RGBA"), dtype=np.int32)
    color, alpha = rgba[..., :3], rgba[..., 3:]
    mixed = (color * alpha + 255 * (255 - alpha) + 127) // 255
    return Image.fromarray(mixed.astype(np.uint8))


def perceptual_hash(image: Image.Image) -> int:
    """Returns the 64-bit DCT hash of an image as a signed integer.

    Each bit says whether one of the 8 x 8 lowest frequencies of the 32 x 32 grey image lies above
    their median. Equal pictures that were encoded or scaled differently differ in few bits.
    """
    grey = image.convert("L").resize((_PHASH_SIZE, _PHASH_SIZE), Image.Resampling.BOX)
    pixels = np.asarray(grey, dtype=np.float64)
    low = _DCT @ pixels @ _DCT.T
    bits = (low > np.median(low)).ravel()
    return int(np.packbits(bits).view(">i8")[0])


def hamming_distance(a: int, b: int) -> int:
    """Returns the number of bits in which two hashes differ."""
    return ((a ^ b) & (2**64 - 1)).bit_count()


def _dct_rows() -> np.ndarray:
    """Returns the first rows of the type-II cosine transform, `(_PHASH_KEPT, _PHASH_SIZE)`."""
    frequency = np.arange(_PHASH_KEPT)[:, None]
    position = np.arange(_PHASH_SIZE)[None] + 0.5
    return np.cos(np.pi * frequency * position / _PHASH_SIZE)


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:200]


_DCT = _dct_rows()
# Pillow warns of what our own limit refuses a line later.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
