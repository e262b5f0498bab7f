"""Pictures turned as a camera noted, by Pillow, as `sigline.trainer.inputs.orientation` does."""

from PIL import ExifTags, Image

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def turn_of(image: Image.Image) -> Image.Transpose | None:
    """Returns what sets an opened image upright; None if nothing does, or its EXIF is broken.

    Raises:
        Exception: Whatever Pillow's decoder raises, if it has to decode a PNG for that.
    """
    if image.format == "PNG":
        # EXIF may follow the pixels in the file, so the image is loaded first.
        image.load()
    try:
        return _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # Pillow may raise anything on malformed EXIF.
        return None


def upright(image: Image.Image) -> Image.Image:
    """Returns an opened image as it is to be seen."""
    turn = turn_of(image)
    return image if turn is None else image.transpose(turn)
