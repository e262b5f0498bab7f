import io
import tarfile
from collections import defaultdict

import numpy as np
import pytest
from PIL import Image, ImageOps

from sigline.components.ingest import fingerprints, images
from sigline.components.scenes import draw, grammar


def _scene(seed):
    rng = np.random.default_rng(seed)
    return draw.draw_scene(grammar.sample_scene(rng, held_out=False), rng)


def _jpeg(quality):
    def change(image):
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=quality)
        return Image.open(buffer).convert("RGB")

    return change


def _scaled(factor):
    def change(image):
        size = (round(factor * image.width), round(factor * image.height))
        return image.resize(size, Image.Resampling.LANCZOS)

    return change


def _framed(share, color):
    return lambda image: ImageOps.expand(image, round(share * image.width), color)


def _framed_and_saved(image):
    return _jpeg(75)(_scaled(1.5)(_framed(0.08, "black")(image)))


CHANGES = {
    "jpeg-50": _jpeg(50),
    "jpeg-75": _jpeg(75),
    "jpeg-92": _jpeg(92),
    "half": _scaled(0.5),
    "smaller": _scaled(0.37),
    "larger": _scaled(1.7),
    "black frame": _framed(0.05, "black"),
    "blue frame": _framed(0.12, (30, 60, 200)),
    "frame, scaled, jpeg": _framed_and_saved,
    "mirrored": ImageOps.mirror,
}


def _views(image, mirrored=False):
    return fingerprints.views(image, mirrored=mirrored)


def _found(views, others):
    """Whether two pictures meet below a key and are then told to be the same."""
    keys, other_keys = (
        {key for view in found for key in fingerprints.band_keys(view.phash)}
        for found in (views, others)
    )
    return bool(keys & other_keys) and fingerprints.same_picture(views, others)


def _pairs_of_same(prints):
    """Returns the pairs of a collection that grouping would find."""
    buckets = defaultdict(list)
    for place, views in enumerate(prints):
        for item in fingerprints.items(b"%06d" % place, views):
            for key in fingerprints.band_keys(item.phash):
                buckets[key].append(item)
    found = {pair for bucket in buckets.values() for pair in fingerprints.candidates(bucket)}
    pairs = [(int(a), int(b)) for a, b in found]
    return [(a, b) for a, b in pairs if fingerprints.same_picture(prints[a], prints[b])]


def test_perceptual_hash_matches_scipys_transform():
    from scipy.fft import dctn

    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    image = Image.fromarray(pixels)
    grey = image.convert("L").resize((32, 32), Image.Resampling.BILINEAR)
    low = dctn(np.asarray(grey, np.float64), type=2)[:8, :8] / 4
    bits = "".join(str(int(bit)) for bit in (low > np.median(low)).ravel())
    assert fingerprints.perceptual_hash(image) & (2**64 - 1) == int(bits, 2)


@pytest.mark.parametrize(
    "change", ["jpeg-75", "jpeg-92", "half", "smaller", "larger", "black frame", "blue frame"]
)
def test_changed_scenes_are_the_same_picture(change):
    scenes = [_scene(seed) for seed in range(60)]
    assert sum(_found(_views(x), _views(CHANGES[change](x))) for x in scenes) >= 57


def test_different_scenes_are_not_the_same_picture():
    assert _pairs_of_same([_views(_scene(seed)) for seed in range(200)]) == []


def test_mirror_image_is_the_same_picture_only_if_asked_for():
    image = _scene(1)
    mirrored = ImageOps.mirror(image)
    assert not _found(_views(image), _views(mirrored))
    assert _found(_views(image, mirrored=True), _views(mirrored, mirrored=True))


def test_moving_an_object_by_a_pixel_is_another_picture():
    pixels = np.full((64, 64, 3), 255, np.uint8)
    pixels[20:40, 20:40] = (200, 30, 30)
    moved = np.roll(pixels, 1, axis=1)
    prints = [_views(Image.fromarray(x)) for x in (pixels, moved)]
    assert not fingerprints.same_picture(*prints)


@pytest.mark.parametrize("size", [(40, 40), (64, 20)])
def test_ground_of_a_drawing_is_no_frame(size):
    ground = Image.new("RGB", (128, 128), "white")
    drawing = Image.new("L", size, 0)
    from PIL import ImageDraw

    ImageDraw.Draw(drawing).ellipse((0, 0, size[0] - 1, size[1] - 1), fill=255)
    ground.paste((200, 0, 0), (44, 44), drawing)
    assert len(_views(ground)) == 1


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (2, 2), (16, 16), (3000, 40)])
def test_every_size_has_a_fingerprint(size):
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    assert len(_views(Image.fromarray(pixels), mirrored=True)) >= 2


def test_hashes_within_four_bits_share_a_key():
    rng = np.random.default_rng(0)
    for _ in range(300):
        value = int(rng.integers(-(2**63), 2**63))
        changed = value & (2**64 - 1)
        for bit in rng.choice(64, 4, replace=False):
            changed ^= 1 << int(bit)
        assert set(fingerprints.band_keys(value)) & set(fingerprints.band_keys(changed))


def test_keys_are_distinct_between_pairs_of_parts():
    assert len(set(fingerprints.band_keys(0))) == 15
    assert max(fingerprints.band_keys(-1)) < 2**63


def test_candidates_are_all_near_pairs_of_a_small_bucket():
    rng = np.random.default_rng(0)
    base = int(rng.integers(-(2**62), 2**62))
    bucket = [
        fingerprints.Item(
            base ^ int(rng.integers(0, 2**12)), bytes([10 * (i % 5)] * 48), b"%03d" % i
        )
        for i in range(100)
    ]
    expected = {
        (a.name, b.name) if a.name < b.name else (b.name, a.name)
        for i, a in enumerate(bucket)
        for b in bucket[i + 1 :]
        if fingerprints.hamming_distance(a.phash, b.phash) <= 8
        if abs(a.sketch[0] - b.sketch[0]) <= 20
    }
    assert set(fingerprints.candidates(bucket)) == expected


@pytest.mark.parametrize("bit", [0, 20, 40, 62])
def test_copies_in_a_large_bucket_are_found_whatever_bit_parts_them(bit):
    rng = np.random.default_rng(0)
    bucket = [
        fingerprints.Item(int(value), bytes([i % 250] * 48), b"%06d" % i)
        for i, value in enumerate(rng.integers(-(2**63), 2**63, 3000))
    ]
    first = bucket[7]
    changed = np.array([first.phash], np.int64).view(np.uint64) ^ np.uint64(1 << bit)
    bucket.append(first._replace(phash=int(changed.view(np.int64)[0]), name=b"copy"))
    assert (first.name, b"copy") in set(fingerprints.candidates(bucket))


def test_large_bucket_costs_no_square_and_chains_what_is_equal():
    bucket = [fingerprints.Item(7, bytes(48), b"%06d" % i) for i in range(5000)]
    found = set(fingerprints.candidates(bucket))
    assert len(found) < 5000 * 40 * 4
    assert all((b"%06d" % i, b"%06d" % (i + 1)) in found for i in range(4999))


@pytest.fixture(scope="module")
def emoji(noto_emoji):
    """Every fourth emoji, on white, by the bytes of its file."""
    found = {}
    for path in sorted(noto_emoji.rglob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                if member.name.endswith(".png"):
                    content = tar.extractfile(member).read()
                    found.setdefault(content, None)
    encoded = list(found)[::4]
    return [images.compose_on_white(Image.open(io.BytesIO(content))) for content in encoded]


@pytest.mark.slow
def test_changed_emoji_are_found_and_variants_kept_apart(emoji):
    """Skin tones, hair and flags differ by little: at most one in a hundred may be confused."""
    prints = [_views(image) for image in emoji]
    with_mirrors = [_views(image, mirrored=True) for image in emoji]
    recall = {}
    for name, change in CHANGES.items():
        mirrored = name == "mirrored"
        known = with_mirrors if mirrored else prints
        changed = [_views(change(image), mirrored=mirrored) for image in emoji]
        recall[name] = np.mean([_found(a, b) for a, b in zip(known, changed, strict=True)])
    assert min(recall.values()) >= 0.95, recall
    same = [
        (a, b)
        for a, b in _pairs_of_same(prints)
        if not np.array_equal(np.asarray(emoji[a]), np.asarray(emoji[b]))
    ]
    assert len({place for pair in same for place in pair}) <= 0.01 * len(emoji), same


@pytest.mark.parametrize("shape", [(7, 3), (8, 3), (64,), (1, 3)])
def test_median_is_that_of_numpy(shape):
    values = np.random.default_rng(0).integers(-300, 300, shape).astype(np.int16)
    np.testing.assert_array_equal(fingerprints._median(values), np.median(values, axis=0))
