import io
import json

import numpy as np
import pytest
from PIL import Image

from sigline.components.ingest import images, rules

LIMITS = images.ImageLimits(max_bytes=100_000, max_pixels=10_000)


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
    return rules.RawPair(**(values | changes))


def _examine(**changes):
    return rules.examine(_pair(**changes), LIMITS)


def test_good_pair_keeps_the_sources_own_bytes():
    row = _examine(text="ein  Hu\u0308ndchen".encode())
    assert not row.transcoded
    assert (row.text, row.language) == (("ein Hündchen",), ("und",))
    assert (row.width, row.height) == (24, 16)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"image": None}, rules.MISSING_IMAGE),
        ({"image": b"plain text"}, images.UNSUPPORTED_IMAGE),
        ({"image": b""}, images.UNSUPPORTED_IMAGE),
        ({"image": _encode(_image())[:300]}, images.CORRUPT_IMAGE),
        ({"image": _encode(_image(size=(200, 100)))}, images.TOO_MANY_PIXELS),
        ({"image": bytes(100_001)}, images.TOO_MANY_BYTES),
        ({"text": None}, rules.MISSING_TEXT),
        ({"text": b" \t\n"}, rules.EMPTY_TEXT),
        ({"text": b"\x00"}, rules.EMPTY_TEXT),
        ({"text": b"caf\xe9"}, rules.INVALID_UTF8),
        ({"metadata": b"{"}, rules.INVALID_METADATA),
        ({"metadata": b"[1]"}, rules.INVALID_METADATA),
        ({"metadata": b'{"label": "dog"}'}, rules.INVALID_METADATA),
        ({"metadata": b'{"label": [-1]}'}, rules.INVALID_METADATA),
        ({"metadata": b'{"captions": [3]}'}, rules.INVALID_METADATA),
        ({"metadata": b'{"caption": "\\ud800"}'}, rules.INVALID_UTF8),
        ({"metadata": b"[" * 100_000}, rules.INVALID_METADATA),
        ({"metadata": b'{"exif": "\\ud800"}'}, rules.INVALID_UTF8),
        ({"metadata": b'{"captions": {"\\ud800": "x"}}'}, rules.INVALID_UTF8),
        ({"metadata": b'{"n": 1' + b"0" * 5000 + b"}"}, rules.INVALID_METADATA),
        ({"problem": (rules.DAMAGED_ARCHIVE, "cut")}, rules.DAMAGED_ARCHIVE),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_bad_pair_is_rejected_with_its_reason(changes, reason):
    rejection = _examine(**changes)
    assert isinstance(rejection, rules.Rejection)
    assert rejection.reason == reason
    assert reason in rules.REASONS
    assert json.loads(rejection.to_json())["key"] == "k"


def test_key_that_is_no_unicode_is_rejected_and_written_down():
    rejection = _examine(key="caf\udce9")
    assert rejection.reason == rules.INVALID_UTF8
    assert json.loads(rejection.to_json().encode())["key"] == "caf\udce9"


@pytest.mark.parametrize("side", [12_000, 20_000])
def test_bomb_is_refused_from_its_header(side):
    buffer = io.BytesIO()
    Image.new("1", (side, side)).save(buffer, "PNG")
    assert _examine(image=buffer.getvalue()).reason == images.TOO_MANY_PIXELS


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


def test_transparency_is_composed_as_the_served_model_does():
    import tensorflow as tf

    from sigline.trainer import preprocess

    encoded = _encode(_image("RGBA"))
    served = preprocess.decode_image(tf.constant(encoded), max_pixels=10_000).numpy()
    stored = images.check_image(encoded, LIMITS).stored
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(stored))), served)


def test_perceptual_hash_matches_scipys_transform():
    from scipy.fft import dctn

    image = _image(size=(64, 64))
    grey = np.asarray(image.convert("L").resize((32, 32), Image.Resampling.BOX), np.float64)
    low = dctn(grey, type=2)[:8, :8] / 4
    bits = "".join(str(int(bit)) for bit in (low > np.median(low)).ravel())
    assert images.perceptual_hash(image) & (2**64 - 1) == int(bits, 2)


def _scene(seed):
    from sigline.components.scenes import draw, grammar

    rng = np.random.default_rng(seed)
    return draw.draw_scene(grammar.sample_scene(rng, held_out=False), rng)


def _fingerprint(encoded):
    checked = images.check_image(encoded, images.ImageLimits())
    return (checked.sha256, checked.phash, checked.thumbnail)


def test_reencoded_pictures_are_the_same_picture():
    same = 0
    for seed in range(40):
        image = _scene(seed)
        pair = (_fingerprint(_encode(image)), _fingerprint(_encode(image, "JPEG", quality=92)))
        same += bool(rules.duplicate_edges(pair)) and bool(
            set(rules.bands(pair[0][1])) & set(rules.bands(pair[1][1]))
        )
    assert same >= 38


def test_different_scenes_are_not_the_same_picture():
    prints = [_fingerprint(_encode(_scene(seed))) for seed in range(60)]
    assert rules.duplicate_edges(prints) == []


def test_hashes_within_three_bits_share_a_band():
    rng = np.random.default_rng(0)
    for _ in range(200):
        value = int(rng.integers(-(2**63), 2**63))
        flipped = value
        for bit in rng.choice(64, 3, replace=False):
            flipped ^= 1 << int(bit)
        assert set(rules.bands(value)) & set(rules.bands(flipped))


def test_group_roots_join_chains():
    roots = rules.group_roots([(b"c", b"d"), (b"b", b"c"), (b"x", b"y")])
    assert roots == {b"b": b"b", b"c": b"b", b"d": b"b", b"x": b"x", b"y": b"x"}


def test_split_share_is_as_configured():
    config = rules.IngestConfig(eval_share=0.2)
    groups = [str(i).encode() for i in range(5000)]
    share = np.mean([rules.split_of(group, config) == "eval" for group in groups])
    assert share == pytest.approx(0.2, abs=0.02)


@pytest.mark.parametrize(("records", "shards"), [(0, 1), (1, 1), (512, 1), (513, 2)])
def test_num_shards(records, shards):
    assert rules.num_shards(records, rules.IngestConfig()) == shards


def test_shards_get_even_shares():
    positions = [np.random.default_rng(i).bytes(32) for i in range(4000)]
    counts = np.bincount([rules.shard_of(p, 4) for p in positions], minlength=4)
    assert counts.min() > 900


def test_wrong_share_is_refused():
    with pytest.raises(ValueError, match="eval_share must be between 0 and 1"):
        rules.IngestConfig(eval_share=1.0)
