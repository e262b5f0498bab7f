"""Pictures that a camera held askew: stored in eight ways, the same once they are upright."""

import io
from collections.abc import Iterator

import numpy as np
from PIL import ExifTags, Image

# What stores a picture so that a camera's note of an orientation sets it upright again.
_STORED_AS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
# Blocks of one colour, of the size that JPEG transforms: it keeps them whichever way they lie.
_BLOCK, _BLOCKS_DOWN, _BLOCKS_ACROSS = 8, 4, 6
FORMATS = ("JPEG", "PNG")
ORIENTATIONS = range(1, 9)


def turned_pictures() -> Iterator[tuple[str, int, bytes]]:
    """Yields formats, EXIF orientations and pictures; those of a format are equal when upright."""
    colors = np.random.default_rng(0).integers(0, 256, (_BLOCKS_DOWN, _BLOCKS_ACROSS, 3), np.uint8)
    upright = Image.fromarray(np.kron(colors, np.ones((_BLOCK, _BLOCK, 1), np.uint8)))
    for form in FORMATS:
        for orientation in ORIENTATIONS:
            method = _STORED_AS.get(orientation)
            stored = upright if method is None else upright.transpose(method)
            exif = Image.Exif()
            exif[ExifTags.Base.Orientation] = orientation
            buffer = io.BytesIO()
            options = {"quality": 100, "subsampling": 0} if form == "JPEG" else {}
            stored.save(buffer, form, exif=exif, **options)
            yield form, orientation, buffer.getvalue()


def difference(embeddings: np.ndarray) -> tuple[float, str]:
    """Returns how far answers to `turned_pictures` are from the upright picture's, at most.

    Args:
        embeddings: One for each of the pictures, in their order, `(pictures, dim)`.

    Returns:
        The largest difference of a number, and which picture has it.
    """
    worst = 0.0, ""
    rows = embeddings.astype(np.float64).reshape(len(FORMATS), len(ORIENTATIONS), -1)
    for form, answers in zip(FORMATS, rows, strict=True):
        for orientation, answer in zip(ORIENTATIONS, answers, strict=True):
            off = float(np.abs(answer - answers[0]).max())
            worst = max(worst, (off, f"a {form} of EXIF orientation {orientation}"))
    return worst
