"""Test images in all eight EXIF orientations, which are equal once they are turned upright."""

import io
from collections.abc import Iterator

import numpy as np
from PIL import ExifTags, Image

# The operation that an image is stored with, such that its EXIF orientation undoes it.
_STORED_AS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
# Uniform blocks of the size of JPEG's transform, which JPEG stores alike in each orientation.
_BLOCK, _BLOCKS_DOWN, _BLOCKS_ACROSS = 8, 4, 6
FORMATS = ("JPEG", "PNG")
ORIENTATIONS = range(1, 9)


def oriented_images() -> Iterator[tuple[str, int, bytes]]:
    """Yields formats, EXIF orientations and encoded images, equal per format when upright."""
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


def max_difference(embeddings: np.ndarray) -> tuple[float, str]:
    """Returns the largest difference between embeddings of `oriented_images` and upright ones.

    Args:
        embeddings: An embedding for each image, in their order, shape `(images, dim)`.

    Returns:
        The largest absolute difference of a component, and a description of its image.
    """
    worst = 0.0, ""
    rows = embeddings.astype(np.float64).reshape(len(FORMATS), len(ORIENTATIONS), -1)
    for form, answers in zip(FORMATS, rows, strict=True):
        for orientation, answer in zip(ORIENTATIONS, answers, strict=True):
            difference = float(np.abs(answer - answers[0]).max())
            worst = max(worst, (difference, f"a {form} of EXIF orientation {orientation}"))
    return worst
