import io
import random

import camera_files as files
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageOps

from sigline.serving.checks import oriented_images
from sigline.trainer.inputs import orientation, preprocess

# Pillow warns of broken EXIF, and of more than one value.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

_XMP = b'<x tiff:Orientation="8"/>'
_FILES = {
    "none": (files.into_jpeg(), 1),
    "none, PNG": (files.into_png(), 1),
    "little-endian": (files.into_jpeg(files.exif_segment(files.orientation_tiff("<", 6))), 6),
    "big-endian": (files.into_jpeg(files.exif_segment(files.orientation_tiff(">", 6))), 6),
    "zero": (files.into_jpeg(files.exif_segment(files.orientation_tiff("<", 0))), 1),
    "nine": (files.into_jpeg(files.exif_segment(files.orientation_tiff("<", 9))), 1),
    "behind other segments and filling": (
        files.into_jpeg(
            files.segment(0xE2, b"ICC_PROFILE" + bytes(60_000)),
            b"\xff" * 50,
            files.exif_segment(files.orientation_tiff(">", 5)),
        ),
        5,
    ),
    "before the scan": (
        files.into_jpeg(
            files.exif_segment(files.orientation_tiff("<", 3)),
            at=files.plain("JPEG").index(b"\xff\xda"),
        ),
        3,
    ),
    "in a comment": (
        files.into_jpeg(files.segment(0xFE, b"Exif\0\0" + files.orientation_tiff("<", 6))),
        1,
    ),
    "behind the picture": (
        files.plain("JPEG") + files.exif_segment(files.orientation_tiff("<", 6)),
        1,
    ),
    "64 KiB": (
        files.into_jpeg(files.exif_segment(files.orientation_tiff("<", 7) + bytes(65_000))),
        7,
    ),
    "in two segments": (
        files.into_jpeg(
            files.exif_segment(files.orientation_tiff("<", 4)[:15]),
            files.exif_segment(files.orientation_tiff("<", 4)[15:]),
        ),
        4,
    ),
    "cut": (files.into_jpeg(files.exif_segment(files.orientation_tiff("<", 6)[:20])), 1),
    "offset outside": (
        files.into_jpeg(files.exif_segment(b"II*\0\xff\xff\xff\xff" + bytes(30))),
        1,
    ),
    "behind a value that lies outside": (
        files.into_jpeg(
            files.exif_segment(
                files.tiff(
                    "<",
                    [(0x10F, 2, 9, b"x", 10**6), (0x112, 3, 1, b"\x06\0", None)],
                )
            )
        ),
        1,
    ),
    "no TIFF": (files.into_jpeg(files.exif_segment(b"hello, world")), 1),
    "XMP alone": (files.into_jpeg(files.xmp_segment(_XMP)), 8),
    "XMP and EXIF": (
        files.into_jpeg(
            files.xmp_segment(_XMP), files.exif_segment(files.orientation_tiff("<", 1))
        ),
        1,
    ),
    "XMP and EXIF without the tag": (
        files.into_jpeg(files.exif_segment(files.tiff(">", [])), files.xmp_segment(_XMP)),
        8,
    ),
    "chunk": (files.into_png(files.chunk(b"eXIf", files.orientation_tiff(">", 6))), 6),
    "chunk behind the pixels": (
        files.into_png(files.chunk(b"eXIf", files.orientation_tiff("<", 6)), behind=True),
        6,
    ),
    "chunk with the prefix of JPEG": (
        files.into_png(files.chunk(b"eXIf", b"Exif\0\0" + files.orientation_tiff("<", 2))),
        2,
    ),
    "ImageMagick's text": (
        files.into_png(
            files.text_chunk(
                "zTXt",
                b"Raw profile type exif",
                files.raw_profile(b"Exif\0\0" + files.orientation_tiff("<", 6)),
            )
        ),
        6,
    ),
    "XMP of a PNG": (files.into_png(files.text_chunk("iTXt", b"XML:com.adobe.xmp", _XMP)), 8),
    "XMP of a PNG, compressed": (
        files.into_png(files.text_chunk("iTXt", b"XML:com.adobe.xmp", _XMP, compressed=True)),
        8,
    ),
    "damaged text": (
        files.into_png(files.chunk(b"zTXt", b"XML:com.adobe.xmp\0\0no zlib at all")),
        1,
    ),
}


@pytest.fixture(scope="module")
def read():
    @tf.function(input_signature=[tf.TensorSpec([], tf.string)], autograph=False)
    def read_one(encoded):
        return orientation.read(encoded, tf.equal(tf.strings.substr(encoded, 0, 1), b"\xff"))

    return lambda encoded: int(read_one(tf.constant(encoded)))


def _pillow(encoded):
    """Returns the orientation that Pillow turns by; None for a file that it does not read."""
    try:
        image = Image.open(io.BytesIO(encoded))
        image.load()
    except Exception:
        return None
    try:
        value = image.getexif().get(0x0112, 1)
    except Exception:  # Broken EXIF turns nothing.
        return 1
    return int(value) if any(value == number for number in range(2, 9)) else 1


@pytest.mark.parametrize("name", _FILES)
def test_orientation_is_that_of_pillow(read, name):
    encoded, expected = _FILES[name]
    assert _pillow(encoded) == expected
    assert read(encoded) == expected


@pytest.mark.parametrize("kind", sorted(files.TYPE_BYTES))
@pytest.mark.parametrize("order", ["<", ">"])
def test_orientation_of_every_type_of_number_is_that_of_pillow(read, order, kind):
    for number, count, below in ((6, 1, 1), (3, 2, 1), (8, 5, 2), (1, 1, 1), (6, 0, 1), (6, 1, 0)):
        content = files.orientation_tiff(order, number, kind=kind, count=count, below=below)
        encoded = files.into_jpeg(files.exif_segment(content))
        assert read(encoded) == _pillow(encoded)


@pytest.mark.parametrize("make", [files.random_jpeg, files.random_png])
def test_orientation_of_random_files_is_that_of_pillow(read, make):
    rng = random.Random(4)
    seen = set()
    for _ in range(120):
        encoded = make(rng)
        expected = _pillow(encoded)
        found = read(encoded)
        assert expected is None or found == expected
        seen.add(expected)
    assert {1, 3, 5, 6, 8} <= seen


@pytest.mark.parametrize("form", ["JPEG", "PNG"])
def test_cut_files_fail_nothing(read, form):
    make = files.into_jpeg if form == "JPEG" else files.into_png
    content = files.orientation_tiff("<", 6)
    part = files.exif_segment(content) if form == "JPEG" else files.chunk(b"eXIf", content)
    encoded = make(part)
    for length in range(3, len(encoded) - 10, 7):
        assert read(encoded[:length]) in (1, 6)


def test_hostile_files_end(read):
    parts = files.segment(0xE0, b"") * 40_000
    assert read(files.into_jpeg(parts, files.exif_segment(files.orientation_tiff("<", 6)))) == 1
    many = files.exif_segment(bytes(500)) * 3_000
    assert read(files.into_jpeg(many)) == 1
    bomb = files.text_chunk("zTXt", b"XML:com.adobe.xmp", bytes(1 << 27))
    assert read(files.into_png(bomb)) == 1


def _decode(encoded, **options):
    return preprocess.decode_image(tf.constant(encoded), max_pixels=10**6, **options).numpy()


@pytest.mark.parametrize("form", ["JPEG", "PNG"])
def test_pictures_are_turned_as_pillow_turns_them(form):
    whole = files.plain(form, (24, 16))
    stored = _decode(whole)
    for number in range(1, 9):
        exif = files.orientation_tiff(">", number)
        if form == "JPEG":
            tagged = whole[:2] + files.exif_segment(exif) + whole[2:]
        else:
            tagged = whole[:33] + files.chunk(b"eXIf", exif) + whole[33:]
        reference = Image.fromarray(stored)
        reference.getexif()[0x0112] = number
        expected = np.asarray(ImageOps.exif_transpose(reference))
        np.testing.assert_array_equal(_decode(tagged), expected)


def test_pictures_stored_in_eight_ways_are_one_picture():
    pictures = {(form, number): x for form, number, x in oriented_images.oriented_images()}
    for (form, number), encoded in pictures.items():
        opened = Image.open(io.BytesIO(encoded))
        assert opened.getexif().get(0x0112) == number
        np.testing.assert_array_equal(_decode(encoded), _decode(pictures[form, 1]))
        assert number == 1 or not np.array_equal(
            opened, np.asarray(Image.open(io.BytesIO(pictures[form, 1])))
        )


@pytest.mark.parametrize("form", ["JPEG", "PNG"])
def test_crop_is_of_the_upright_picture(form):
    window, seen = (3, 9, 8, 10), []

    def crop(sides):
        seen.append(sides.numpy().tolist())
        return tf.constant(window)

    for _, _, encoded in (x for x in oriented_images.oriented_images() if x[0] == form):
        whole = _decode(encoded)
        expected = whole[3:11, 9:19]
        np.testing.assert_array_equal(_decode(encoded, crop=crop), expected)
    assert seen == [[32, 48]] * 8


def test_pictures_of_unequal_sizes_share_a_batch():
    encoded = [x for _, _, x in oriented_images.oriented_images()] + [files.plain("JPEG")]

    @tf.function(autograph=False)
    def sizes(items):
        return tf.map_fn(
            lambda item: tf.shape(preprocess.decode_image(item, max_pixels=10**6)),
            items,
            fn_output_signature=tf.TensorSpec((3,), tf.int32),
        )

    assert sizes(tf.constant(encoded)).numpy().tolist() == [[32, 48, 3]] * 16 + [[5, 7, 3]]
