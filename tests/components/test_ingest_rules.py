import io
import json

import numpy as np
import pytest
from PIL import Image

from sigline.components.ingest import (
    fingerprints,
    groups,
    images,
    placement,
    reasons,
    rules,
    sources,
)
from sigline.components.ingest.options import IngestConfig

LIMITS = images.ImageLimits(max_bytes=100_000, max_pixels=10_000)
CONFIG = IngestConfig(limits=LIMITS)


def _image(mode="RGB", size=(24, 16), seed=0):
    channels = {"RGB": 3, "RGBA": 4, "L": 1}[mode]
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], channels), np.uint8)
    return Image.fromarray(pixels.squeeze(), mode)


def _encode(image, form="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def _pair(**changes):
    values = {
        "key": "k",
        "source": "s",
        "shard": "s-0.tar",
        "image": _encode(_image()),
        "text": b"a",
    }
    return sources.RawPair(**(values | changes))


def _examine(**changes):
    found = rules.examine(_pair(**changes), CONFIG)
    return found if isinstance(found, rules.Rejection) else found[0]


def test_good_pair_keeps_the_sources_own_bytes():
    pair = _pair(text="ein  Hu\u0308ndchen".encode(), place=sources.Place("s-0.tar", 512, 9))
    row, image = rules.examine(pair, CONFIG)
    assert image is pair.image
    assert row.place == pair.place
    assert (row.text, row.language) == (("ein Hündchen",), ("und",))
    assert (row.width, row.height) == (24, 16)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"image": None}, reasons.MISSING_IMAGE),
        ({"image": b"plain text"}, reasons.UNSUPPORTED_IMAGE),
        ({"image": b""}, reasons.UNSUPPORTED_IMAGE),
        ({"image": _encode(_image())[:300]}, reasons.CORRUPT_IMAGE),
        ({"image": _encode(_image(size=(200, 100)))}, reasons.TOO_MANY_PIXELS),
        ({"image": bytes(100_001)}, reasons.TOO_MANY_BYTES),
        ({"text": None}, reasons.MISSING_TEXT),
        ({"text": b" \t\n"}, reasons.EMPTY_TEXT),
        ({"text": b"\x00"}, reasons.EMPTY_TEXT),
        ({"text": b"caf\xe9"}, reasons.INVALID_UTF8),
        ({"metadata": b"{"}, reasons.INVALID_METADATA),
        ({"metadata": b"[1]"}, reasons.INVALID_METADATA),
        ({"metadata": b'{"captions": [3]}'}, reasons.INVALID_METADATA),
        ({"metadata": b'{"caption": "\\ud800"}'}, reasons.INVALID_UTF8),
        ({"metadata": b"[" * 100_000}, reasons.INVALID_METADATA),
        ({"metadata": b'{"exif": "\\ud800"}'}, reasons.INVALID_UTF8),
        ({"metadata": b'{"captions": {"\\ud800": "x"}}'}, reasons.INVALID_UTF8),
        ({"problem": sources.Problem(reasons.DAMAGED_ARCHIVE, "cut")}, reasons.DAMAGED_ARCHIVE),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_bad_pair_is_rejected_with_its_reason(changes, reason):
    rejection = _examine(**changes)
    assert isinstance(rejection, rules.Rejection)
    assert rejection.reason == reason
    assert reason in reasons.ALL
    assert json.loads(rejection.to_json())["key"] == "k"


def test_columns_that_json_lacks_are_kept_as_it_can():
    import datetime

    deep = value = []
    for _ in range(3):
        value.append([])
        value = value[0]
    row = _examine(
        extra={
            "n": float("nan"),
            "b": b"\xff\xfe",
            "t": b"text",
            "d": datetime.date(2026, 1, 2),
            "x": deep,
        },
        metadata=b'{"m": NaN}',
    )
    assert json.loads(row.meta) == {
        "n": None,
        "b": "2 bytes",
        "t": "text",
        "d": "2026-01-02",
        "x": [[[[]]]],
        "m": None,
    }


def test_nested_and_large_metadata_is_refused():
    value = deep = []
    for _ in range(5000):
        value.append([])
        value = value[0]
    for extra in ({"x": deep}, {"x": "y" * 2**21}):
        rejection = _examine(extra=extra)
        assert rejection.reason == reasons.INVALID_METADATA


def test_long_caption_is_refused_before_it_costs():
    assert _examine(text=("\u0301\u0323" * 200_000).encode()).reason == reasons.TEXT_TOO_LONG


def test_key_that_is_no_unicode_is_rejected_and_written_down():
    rejection = _examine(key="caf\udce9")
    assert rejection.reason == reasons.INVALID_UTF8
    assert json.loads(rejection.to_json().encode())["key"] == "caf\udce9"


@pytest.mark.parametrize("side", [12_000, 20_000])
def test_bomb_is_refused_from_its_header(side):
    buffer = io.BytesIO()
    Image.new("1", (side, side)).save(buffer, "PNG")
    assert _examine(image=buffer.getvalue()).reason == reasons.TOO_MANY_PIXELS


def test_byte_order_mark_is_no_part_of_the_text():
    assert _examine(text=b"\xef\xbb\xbfa dog").text == ("a dog",)


def test_captions_of_file_and_metadata_are_joined_without_repeats():
    metadata = {"caption": "a dog", "captions": {"en": ["a dog", "one dog"], "de": "ein Hund"}}
    row = _examine(text=b"a dog", metadata=json.dumps(metadata).encode())
    assert row.text == ("a dog", "one dog", "ein Hund")
    assert row.language == ("en", "en", "de")


def test_label_and_other_metadata_are_kept():
    row = _examine(metadata=b'{"label": 3, "url": "x", "key": "y", "caption": "a"}')
    assert row.label == (3,)
    assert json.loads(row.meta) == {"url": "x"}


def test_pair_without_key_is_named_by_its_image():
    row = _examine(key="")
    assert row.key == row.image_sha256.hex()


def test_transparent_image_is_stored_on_white():
    image = _image("RGBA")
    stored = images.check_image(_encode(image), LIMITS).stored
    rgba = np.asarray(image).astype(float)
    alpha = rgba[..., 3:] / 255
    expected = rgba[..., :3] * alpha + 255 * (1 - alpha)
    np.testing.assert_allclose(np.asarray(Image.open(io.BytesIO(stored))), expected, atol=0.51)


def test_palette_without_transparency_passes_through():
    encoded = _encode(_image().quantize(16))
    assert images.check_image(encoded, LIMITS).stored is encoded


@pytest.mark.parametrize("form", ["WEBP", "GIF", "BMP"])
def test_other_formats_are_transcoded_without_loss(form):
    encoded = _encode(_image(), form)
    stored = images.check_image(encoded, LIMITS).stored
    expected = np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB"))
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(stored))), expected)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["JPEG", "PNG"])
def test_image_held_askew_is_turned(form, orientation):
    from PIL import ImageOps

    image = _image(size=(24, 16))
    exif = Image.Exif()
    exif[0x0112] = orientation
    encoded = _encode(image, form, exif=exif)
    checked = images.check_image(encoded, LIMITS)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(encoded)))
    assert (checked.width, checked.height) == upright.size
    assert (checked.stored is encoded) == (orientation == 1)
    stored = Image.open(io.BytesIO(checked.stored))
    assert stored.getexif().get(0x0112, 1) == 1
    np.testing.assert_array_equal(np.asarray(stored), np.asarray(upright))


def test_avif_is_transcoded():
    encoded = _encode(_image(size=(64, 64)), "AVIF", quality=90)
    stored = Image.open(io.BytesIO(images.check_image(encoded, LIMITS).stored))
    assert (stored.format, stored.size) == ("PNG", (64, 64))


def test_progressive_jpeg_passes_through():
    encoded = _encode(_image(), "JPEG", progressive=True)
    assert images.check_image(encoded, LIMITS).stored is encoded


def test_cmyk_is_stored_as_rgb():
    encoded = _encode(_image().convert("CMYK"), "JPEG")
    checked = images.check_image(encoded, LIMITS)
    assert Image.open(io.BytesIO(checked.stored)).mode == "RGB"


@pytest.mark.parametrize("form", ["WEBP", "GIF", "PNG"])
def test_first_of_moving_pictures_is_taken(form):
    frames = [_image(seed=seed).quantize(8).convert("RGB") for seed in (1, 2)]
    options = {"lossless": True} if form == "WEBP" else {}
    encoded = _encode(frames[0], form, save_all=True, append_images=frames[1:], **options)
    stored = Image.open(io.BytesIO(images.check_image(encoded, LIMITS).stored)).convert("RGB")
    np.testing.assert_array_equal(np.asarray(stored), np.asarray(frames[0]))


def test_grey_of_16_bits_is_scaled_as_tensorflow_does():
    import tensorflow as tf

    pixels = np.random.default_rng(0).integers(0, 2**16, (16, 24)).astype(np.uint16)
    encoded = _encode(Image.fromarray(pixels))
    stored = images.check_image(encoded, LIMITS).stored
    expected = tf.io.decode_png(encoded, channels=3).numpy()
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(stored))), expected)


@pytest.mark.parametrize(
    ("size", "reason"),
    [((7, 40), reasons.TOO_SMALL), ((8, 40), None), ((90, 10), reasons.EXTREME_ASPECT)],
)
def test_sides_are_bounded(size, reason):
    limits = images.ImageLimits(max_pixels=10_000, min_side=8, max_aspect=5.0)
    encoded = _encode(_image(size=size))
    if reason is None:
        assert images.check_image(encoded, limits).stored is encoded
    else:
        with pytest.raises(images.ImageError) as caught:
            images.check_image(encoded, limits)
        assert caught.value.reason == reason


def test_large_images_can_be_scaled_down_and_stored_as_jpeg():
    storage = images.ImageStorage(max_side=32, form="jpeg", quality=80)
    checked = images.check_image(_encode(_image(size=(96, 48))), LIMITS, storage)
    stored = Image.open(io.BytesIO(checked.stored))
    assert (stored.format, stored.size) == ("JPEG", (32, 16))
    assert (checked.width, checked.height) == (32, 16)
    small = _encode(_image(size=(32, 16)))
    assert images.check_image(small, LIMITS, storage).stored is small


def _photo(size=(640, 480)):
    """A smooth picture with detail, as photos are."""
    x, y = np.meshgrid(np.arange(size[0]), np.arange(size[1]))
    waves = [np.sin(x / (7 + i) + y / 31) * np.cos(y / (11 + i)) for i in range(3)]
    return Image.fromarray((127 + 100 * np.stack(waves, axis=-1)).astype(np.uint8))


def test_large_jpeg_that_is_kept_is_parsed_whole():
    limits = images.ImageLimits()
    encoded = _encode(_photo(), "JPEG", quality=90)
    checked = images.check_image(encoded, limits)
    assert checked.stored is encoded
    assert (checked.width, checked.height) == (640, 480)
    with pytest.raises(images.ImageError, match="truncated"):
        images.check_image(encoded[:-200], limits)


def test_jpeg_and_its_lossless_copy_look_the_same():
    limits = images.ImageLimits()
    encoded = _encode(_photo(), "JPEG", quality=90)
    copy = _encode(Image.open(io.BytesIO(encoded)))
    views = [images.check_image(x, limits).views for x in (encoded, copy)]
    assert fingerprints.same_picture(*views)


@pytest.mark.parametrize("form", ["JPEG", "PNG"])
@pytest.mark.parametrize("size", [(640, 480), (641, 479), (300, 200)])
def test_scaled_images_are_close_to_the_best_that_pillow_makes(form, size):
    photo = _photo(size)
    storage = images.ImageStorage(max_side=256)
    checked = images.check_image(_encode(photo, form, quality=95), images.ImageLimits(), storage)
    scaled = Image.open(io.BytesIO(checked.stored))
    expected = photo.copy()
    expected.thumbnail((256, 256), Image.Resampling.LANCZOS)
    assert scaled.size == expected.size == (checked.width, checked.height)
    difference = np.asarray(scaled).astype(float) - np.asarray(expected)
    assert np.sqrt(np.mean(difference**2)) < 3.0


def test_opaque_grey_of_16_bits_keeps_its_grey():
    pixels = np.full((16, 24), 0x1234, np.uint16)
    pixels[0, 0] = 0xFFFF
    image = Image.fromarray(pixels)
    encoded = _encode(image, transparency=0xFFFF)
    stored = np.asarray(Image.open(io.BytesIO(images.check_image(encoded, LIMITS).stored)))
    assert tuple(stored[0, 0]) == (255, 255, 255)
    assert tuple(stored[5, 5]) == (0x12, 0x12, 0x12)


def test_side_that_jpeg_lacks_is_stored_as_png():
    encoded = _encode(Image.new("RGBA", (70_000, 1)))
    checked = images.check_image(encoded, images.ImageLimits(), images.ImageStorage(form="jpeg"))
    assert Image.open(io.BytesIO(checked.stored)).format == "PNG"


def test_profile_of_other_colours_is_not_stored():
    encoded = _encode(_image().convert("CMYK"), "JPEG", icc_profile=b"profile of CMYK")
    stored = Image.open(io.BytesIO(images.check_image(encoded, LIMITS).stored))
    assert "icc_profile" not in stored.info


@pytest.mark.parametrize("values", [{"form": "gif"}, {"quality": 0}, {"max_side": 0}])
def test_wrong_storage_is_refused(values):
    with pytest.raises(ValueError, match=rf"storage\.{next(iter(values))}"):
        images.ImageStorage(**values)


def test_transparency_is_composed_as_the_served_model_does():
    import tensorflow as tf

    from sigline.trainer.inputs import preprocess

    encoded = _encode(_image("RGBA"))
    served = preprocess.decode_image(tf.constant(encoded), max_pixels=10_000).numpy()
    stored = images.check_image(encoded, LIMITS).stored
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(stored))), served)


def test_group_roots_join_chains():
    roots = groups.group_roots([(b"c", b"d"), (b"b", b"c"), (b"x", b"y")])
    assert roots == {b"b": b"b", b"c": b"b", b"d": b"b", b"x": b"x", b"y": b"x"}


def test_split_share_is_as_configured():
    config = IngestConfig(eval_share=0.2)
    groups = [str(i).encode() for i in range(5000)]
    share = np.mean([placement.split_of(group, config) == "eval" for group in groups])
    assert share == pytest.approx(0.2, abs=0.02)


@pytest.mark.parametrize(
    ("records", "shards"),
    [
        (0, 1),
        (1, 1),
        (512, 1),
        (513, 2),
        (1025, 4),
        (5000, 16),
        (8192, 16),
        (8193, 32),
        (1_000_000, 1968),
    ],
)
def test_number_of_shards_suits_the_lanes_of_training(records, shards):
    assert placement.num_shards(records, IngestConfig()) == shards


def test_shards_get_even_shares():
    positions = [np.random.default_rng(i).bytes(32) for i in range(4000)]
    counts = np.bincount([placement.shard_of(p, 4) for p in positions], minlength=4)
    assert counts.min() > 900


def test_wrong_share_is_refused():
    with pytest.raises(ValueError, match="eval_share must be between 0 and 1"):
        IngestConfig(eval_share=1.0)
