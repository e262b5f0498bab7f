import io
import re
import string
import struct
import zlib

import numpy as np
import pytest
import reference_randaugment
import tensorflow as tf
from PIL import Image

from sigline.trainer.config import DataConfig, ImageTowerConfig, TextTowerConfig
from sigline.trainer.inputs import preprocess
from sigline.trainer.inputs.views import View

MAX_PIXELS = 1_000_000


def _encode(image, form="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def _noise(mode, channels, size=(20, 14)):
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], channels), np.uint8)
    return Image.fromarray(pixels.squeeze(), mode)


def _decode(encoded, max_pixels=MAX_PIXELS):
    return preprocess.decode_image(tf.constant(encoded), max_pixels=max_pixels).numpy()


def _on_white(image):
    rgba = np.asarray(image.convert("RGBA")).astype(np.float64)
    alpha = rgba[..., 3:] / 255
    return rgba[..., :3] * alpha + 255 * (1 - alpha)


@pytest.mark.parametrize(
    "image",
    [
        _noise("RGB", 3),
        _noise("L", 1),
        _noise("RGBA", 4),
        _noise("LA", 2),
        _noise("RGB", 3).quantize(16),
        _noise("RGBA", 4).quantize(16),
        _noise("RGB", 3).quantize(200),
        _noise("L", 1).convert("1"),
    ],
    ids=["rgb", "grey", "rgba", "grey-alpha", "palette", "palette-alpha", "palette-8", "one-bit"],
)
def test_png_decodes_as_pillow_does_with_white_behind(image):
    np.testing.assert_allclose(_decode(_encode(image)), _on_white(image), atol=0.51)


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_transparent_color_of_a_png_becomes_white(mode):
    image = _noise(mode, len(mode))
    color = image.getpixel((3, 2))
    found = _decode(_encode(image, transparency=color))
    expected = np.asarray(image.convert("RGB")).copy()
    expected[np.all(np.asarray(image).reshape(*expected.shape[:2], -1) == color, axis=-1)] = 255
    np.testing.assert_array_equal(found, expected)
    assert np.array_equal(found[2, 3], (255, 255, 255))


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "1"])
def test_pixels_that_spell_the_chunk_of_transparency_change_nothing(mode):
    pixels = np.frombuffer(b"tRNS" * 27, np.uint8)
    image = Image.fromarray(pixels.reshape(6, 6, 3)).convert(mode)
    encoded = _encode(image, compress_level=0)
    encoded = encoded if b"tRNS" in encoded else encoded + b"tRNS"
    np.testing.assert_array_equal(_decode(encoded), np.asarray(image.convert("RGB")))


def test_sixteen_bit_png_decodes_to_its_high_bytes():
    values = np.arange(0, 65536, 257, dtype=np.uint16).reshape(16, 16)
    found = _decode(_encode(Image.fromarray(values)))
    np.testing.assert_array_equal(found, np.repeat((values >> 8)[..., None], 3, axis=2))


def test_jpeg_decodes_as_pillow_does():
    image = Image.fromarray(np.linspace(0, 255, 64 * 48 * 3).reshape(48, 64, 3).astype(np.uint8))
    encoded = _encode(image, "JPEG", quality=90)
    expected = np.asarray(Image.open(io.BytesIO(encoded))).astype(int)
    assert np.abs(_decode(encoded).astype(int) - expected).max() <= 2


def _jpeg_bomb():
    content = bytearray(_encode(Image.new("RGB", (16, 16)), "JPEG"))
    marker = content.index(b"\xff\xc0")
    content[marker + 5 : marker + 9] = struct.pack(">HH", 13000, 13000)
    return bytes(content)


def _png_bomb(side=2**31 - 1):
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    body = b"IHDR" + header
    chunk = struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))
    return b"\x89PNG\r\n\x1a\n" + chunk


@pytest.mark.parametrize(
    ("encoded", "message"),
    [
        (b"", "only JPEG and PNG"),
        (b"hello", "only JPEG and PNG"),
        (_encode(Image.new("P", (4, 4)), "GIF"), "only JPEG and PNG"),
        (_encode(Image.new("RGB", (4, 4)), "WEBP"), "only JPEG and PNG"),
        (_encode(Image.new("RGB", (4, 4)), "BMP"), "only JPEG and PNG"),
        (_jpeg_bomb(), "too many pixels"),
        (_png_bomb(), "too many pixels"),
        (_png_bomb(2**32 - 1), "PNG"),
        (b"\x89PNG\r\n\x1a\n", "only JPEG and PNG"),
        (b"\xff\xd8\xff", "JPEG"),
        (_encode(_noise("RGB", 3))[:200], "PNG"),
    ],
    ids=[
        "empty",
        "text",
        "gif",
        "webp",
        "bmp",
        "jpeg-bomb",
        "png-bomb",
        "png-overflow",
        "png-magic",
        "jpeg-magic",
        "cut",
    ],
)
def test_hostile_image_is_refused_with_a_clear_error(encoded, message):
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        _decode(encoded)


def test_bomb_is_refused_in_a_graph_too():
    function = tf.function(
        lambda x: preprocess.decode_image(x, max_pixels=MAX_PIXELS), autograph=False
    )
    with pytest.raises(tf.errors.InvalidArgumentError, match="too many pixels"):
        function(tf.constant(_jpeg_bomb()))


@pytest.mark.parametrize("size", [4, 16])
def test_resize_squashes_without_antialiasing_and_truncates(size):
    # The reference: bilinear at half-pixel centres, no low-pass, cast to uint8.
    image = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)
    config = ImageTowerConfig(size=size, patch=2)
    found = preprocess.resize_image(tf.constant(image), config).numpy()
    expected = np.zeros((size, size, 3))
    edged = np.pad(image, ((1, 1), (1, 1), (0, 0)), "edge").astype(np.float64)
    for row in range(size):
        for column in range(size):
            y, x = (row + 0.5) * 6 / size - 0.5, (column + 0.5) * 8 / size - 0.5
            top, left = int(np.floor(y)), int(np.floor(x))
            dy, dx = y - top, x - left
            corners = edged[top + 1 : top + 3, left + 1 : left + 3]
            rows = corners[0] * (1 - dy) + corners[1] * dy
            expected[row, column] = rows[0] * (1 - dx) + rows[1] * dx
    np.testing.assert_array_equal(found, np.floor(expected).astype(np.uint8))


@pytest.mark.parametrize("most", [0, 1 << 20])
@pytest.mark.parametrize("size", [16, 32, 33, 224])
def test_resizing_gives_the_bytes_that_the_kernel_for_bytes_gives(monkeypatch, size, most):
    monkeypatch.setattr(preprocess, "_FLOAT_PIXELS", most)
    image = np.random.default_rng(1).integers(0, 256, (31, 33, 3), np.uint8)
    found = preprocess.resize_image(tf.constant(image), ImageTowerConfig(size=size, patch=1))
    expected = tf.image.resize(image, (size, size)).numpy().astype(np.uint8)
    np.testing.assert_array_equal(found.numpy(), expected)


def test_model_range_is_minus_one_to_one():
    pixels = tf.constant([[0] * 3, [255] * 3], tf.uint8)
    values = preprocess.to_model_range(pixels, ImageTowerConfig()).numpy()
    np.testing.assert_allclose(values, [[-1.0] * 3, [1.0] * 3], atol=1e-6)


@pytest.mark.parametrize("shape", [(90, 60), (60, 91), (50, 50)])
def test_crop_resize_is_that_of_clips_processor(shape):
    from PIL import Image

    rng = np.random.default_rng(0)
    # Smooth, so that a pixel more or less at the edge does not hide a wrong kernel.
    rough = Image.fromarray(rng.integers(0, 256, (7, 7, 3), np.uint8))
    image = np.asarray(rough.resize(shape[::-1], Image.Resampling.BICUBIC))
    config = ImageTowerConfig(
        size=32, patch=4, resize="crop", interpolation="bicubic", antialias=True
    )
    found = preprocess.resize_image(tf.constant(image), config).numpy().astype(int)
    # The shorter side to 32, the longer one in proportion, then the middle.
    height, width = (side * 32 // min(shape) for side in shape)
    resized = Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC)
    top, left = (height - 32) // 2, (width - 32) // 2
    expected = np.asarray(resized).astype(int)[top : top + 32, left : left + 32]
    assert np.abs(found - expected).max() <= 2
    assert np.abs(found - expected).mean() < 0.7


def _big_vision(**changes):
    """A tower whose pixels are those of big_vision's evaluations of classifiers."""
    return ImageTowerConfig(patch=1, resize="crop_rounded", interpolation="area", **changes)


@pytest.mark.parametrize(
    ("before", "after", "corner"),
    [
        ((500, 375), (341, 256), (58, 16)),
        ((333, 500), (256, 384), (16, 80)),
        ((375, 500), (256, 341), (16, 58)),
        ((224, 224), (256, 256), (16, 16)),
        ((300, 451), (256, 385), (16, 80)),
        ((257, 1000), (256, 996), (16, 386)),
    ],
)
def test_rounded_sides_and_the_middle_are_big_visions(before, after, corner):
    tower = _big_vision(size=224, resize_ratio=0.875)
    assert tower.resized_side == 256
    # Each pixel holds its own place, in two bytes, so that the middle can be told.
    places = np.indices(before).sum(axis=0)
    image = np.stack([places % 256, places // 256, places // 256], axis=2).astype(np.uint8)
    found = preprocess.resize_image(tf.constant(image), tower).numpy()
    whole = tf.cast(tf.image.resize(image, after, method="area"), tf.uint8).numpy()
    top, left = corner
    np.testing.assert_array_equal(found, whole[top : top + 224, left : left + 224])


def test_area_is_the_mean_over_what_a_pixel_covers():
    image = reference_randaugment.picture(10, 7)
    found = preprocess.resize_image(tf.constant(image), _big_vision(size=3, resize_side=4)).numpy()
    assert found[..., 0].tolist() == [[62, 147, 151], [145, 96, 126], [173, 175, 104]]
    assert found[..., 1].tolist() == [[104, 107, 161], [121, 165, 121], [156, 134, 164]]
    larger = preprocess.resize_image(tf.constant(image[:4, :4]), _big_vision(size=8)).numpy()
    np.testing.assert_array_equal(larger, image[:4, :4].repeat(2, axis=0).repeat(2, axis=1))


@pytest.mark.parametrize("resize", ["crop", "crop_rounded"])
def test_strips_of_any_length_are_resized_in_little_memory(resize):
    # The whole would become 32 times 96 million pixels.
    strip = np.zeros((1, 3_000_000, 3), np.uint8)
    strip[:, 1_499_999:1_500_001] = 200
    tower = ImageTowerConfig(size=32, patch=4, resize=resize)
    found = preprocess.resize_image(tf.constant(strip), tower).numpy()
    assert found.shape == (32, 32, 3)
    assert (found[:, 15:17] == 200).all()


@pytest.mark.parametrize(
    "changes",
    [
        {"resize_ratio": 0.875, "resize": "crop_rounded", "interpolation": "area"},
        {"resize_side": 20, "resize": "crop"},
        {"resize_side": 20},
    ],
)
def test_random_crops_are_squashed_whatever_is_cut_elsewhere(changes):
    encoded = tf.io.encode_png(reference_randaugment.picture(40, 60))
    towers = {"cut": ImageTowerConfig(size=16, patch=4, **changes)}
    towers["squashed"] = ImageTowerConfig(size=16, patch=4)
    views = {name: View(tower) for name, tower in towers.items()}
    for options, alike in ((DataConfig(crop_min_area=0.3), True), (DataConfig(), False)):
        seen = preprocess.load_views(encoded, views, options, seed=tf.constant([3, 4]))
        assert bool((seen["cut"].numpy() == seen["squashed"].numpy()).all()) == alike


def _canonical(text, **changes):
    config = TextTowerConfig(**changes)
    return preprocess.canonicalize(tf.constant([text]), config).numpy()[0].decode()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A  Red\tCar!", "a red car"),
        ("ÄÖÜ straße", "äöü straße"),
        (string.punctuation, ""),
        ("  x  ", "x"),
        ("日本、語", "日本、語"),
        ("", ""),
    ],
)
def test_canonicalize(text, expected):
    assert _canonical(text) == expected


def test_canonicalize_can_be_switched_off():
    assert _canonical("A red, Car", lowercase=False, strip_punctuation=False) == "A red, Car"


def test_invalid_utf8_becomes_the_replacement_character():
    text = preprocess.canonicalize(tf.constant([b"a\xff b"]), TextTowerConfig()).numpy()[0]
    assert text.decode() == "a\ufffd b"


@pytest.fixture(scope="module")
def tokenizer(vocabulary):
    return preprocess.Tokenizer(vocabulary, TextTowerConfig(vocabulary_size=512, length=8))


def test_last_token_is_always_the_end_of_text(tokenizer):
    ids = tokenizer(tf.constant(["", "a red ring", "a small red ring left of " * 9])).numpy()
    assert ids.shape == (3, 8)
    assert (ids[:, -1] == tokenizer.end_id).all()
    assert (ids[0] == tokenizer.end_id).all()


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_crop_while_decoding_is_the_crop_of_the_whole_picture(kind):
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 256, (12, 9, 3), np.uint8))
    buffer = io.BytesIO()
    small.resize((131, 97), Image.Resampling.BICUBIC).save(buffer, kind)
    whole = preprocess.decode_image(tf.constant(buffer.getvalue()), max_pixels=10**6).numpy()
    assert whole.shape == (97, 131, 3)
    for top, left, height, width in [
        (0, 0, 97, 131),
        (3, 5, 40, 50),
        (33, 64, 64, 67),
        (90, 120, 7, 11),
    ]:
        seen = []

        def crop(sides, window=(top, left, height, width), seen=seen):
            seen.append(sides)
            return tf.constant(window)

        found = preprocess.decode_image(tf.constant(buffer.getvalue()), max_pixels=10**6, crop=crop)
        expected = whole[top : top + height, left : left + width]
        # The colours of a JPEG are interpolated between neighbours, which a crop lacks at its edge.
        edge = 2 if kind == "JPEG" else 0
        inside = slice(edge, -edge or None), slice(edge, -edge or None)
        np.testing.assert_array_equal(found.numpy()[inside], expected[inside])
        assert np.abs(found.numpy().astype(int) - expected).max() < 16
        assert seen[0].numpy().tolist() == [97, 131]


def test_tokens_are_turned_back_into_texts(tokenizer):
    ids = tokenizer(tf.constant(["", "A red, ring!"]))
    assert tokenizer.texts_of(ids) == ["", "a red ring"]


def test_padding_may_be_another_piece_than_the_end(vocabulary):
    settings = TextTowerConfig(vocabulary_size=512, length=8, pad_piece="<pad>")
    padded = preprocess.Tokenizer(vocabulary, settings)
    ids = padded(tf.constant(["a ring", "a small red ring left of " * 9])).numpy()
    end = list(ids[0]).index(padded.end_id)
    assert (ids[0, end + 1 :] == padded.pad_id).all()
    assert padded.pad_id != padded.end_id
    assert ids[1, -1] == padded.end_id


def test_piece_that_is_not_there_is_refused(vocabulary):
    with pytest.raises(ValueError, match=r"text.end_piece='<eos>'"):
        preprocess.Tokenizer(vocabulary, TextTowerConfig(vocabulary_size=512, end_piece="<eos>"))


def test_white_space_stays_if_it_is_to(tokenizer):
    settings = TextTowerConfig(squeeze_whitespace=False, strip_punctuation=False)
    assert preprocess.canonicalize(tf.constant(" A  b. "), settings) == b" a  b. "


def test_ids_equal_sentencepiece_with_sticky_end(tokenizer, vocabulary):
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor(model_proto=vocabulary)
    for text in ("a large blue star", "a purple ring " * 8):
        expected = processor.encode(text.strip())[:7]
        expected += [processor.eos_id()] * (8 - len(expected))
        assert tokenizer(tf.constant([text])).numpy()[0].tolist() == expected


def test_vocabulary_larger_than_the_table_is_refused(vocabulary):
    with pytest.raises(ValueError, match=r"text\.vocabulary_size must be at least"):
        preprocess.Tokenizer(vocabulary, TextTowerConfig(vocabulary_size=10))


@pytest.mark.parametrize("first", [*range(0, 0x3100, 0x100), 0xFE00, 0xFF00, 0x1F600])
def test_every_character_is_canonicalized_as_siglips_authors_do(first):
    # By Python, as big_vision's `canonicalize_text` and transformers' SiglipTokenizer. The letter
    # left out is of a Unicode release that the Python of these tests knows and ICU does not.
    characters = (chr(i) for i in range(first, first + 0x100) if i != 0x2C2F)
    text = "".join(f"a{character}B " for character in characters)
    removed = text.lower().translate(str.maketrans("", "", string.punctuation))
    assert _canonicalized(text) == re.sub(r"\s+", " ", removed).strip()


def _canonicalized(text):
    return preprocess.canonicalize(tf.constant(text), TextTowerConfig()).numpy().decode()
