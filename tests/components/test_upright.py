import io

import camera_files as files
import numpy as np
import pytest
from PIL import Image

from sigline.components.evaluate import corruptions
from sigline.components.index import corpus
from sigline.components.ingest import images
from sigline.components.shared import upright
from sigline.serving.checks import oriented_images


def _opened(encoded):
    return Image.open(io.BytesIO(encoded))


def test_pictures_stored_in_eight_ways_are_turned_upright():
    pictures = {(form, number): x for form, number, x in oriented_images.oriented_images()}
    for (form, _), encoded in pictures.items():
        expected = np.asarray(_opened(pictures[form, 1]))
        np.testing.assert_array_equal(upright.upright(_opened(encoded)), expected)
        # What is stored, and what evaluation and the search page make of a picture that others
        # stored with its tag.
        stored = _opened(images.check_image(encoded, images.ImageLimits()).stored)
        np.testing.assert_array_equal(stored, expected)
        contrast = corruptions.Corruption("contrast", 1, 0)
        shown, reference = (
            _opened(corruptions.corrupt(x, contrast, key="a")) for x in (encoded, pictures[form, 1])
        )
        np.testing.assert_array_equal(shown, reference)
        assert _opened(corpus.thumbnail(encoded)).size == (48, 32)


@pytest.mark.parametrize(
    "encoded",
    [
        files.into_jpeg(files.exif_segment(b"hello, world")),
        files.into_jpeg(files.exif_segment(b"II*\0")),
        files.into_png(files.chunk(b"eXIf", b"no TIFF at all")),
    ],
    ids=["text", "short", "chunk"],
)
def test_picture_with_broken_exif_is_kept_as_it_is(encoded):
    assert images.check_image(encoded, images.ImageLimits()).stored is encoded
    assert upright.turn_of(_opened(encoded)) is None


def test_orientation_behind_the_pixels_is_seen():
    chunk = files.chunk(b"eXIf", files.orientation_tiff("<", 6))
    checked = images.check_image(files.into_png(chunk, behind=True), images.ImageLimits())
    assert (checked.width, checked.height) == (5, 7)
