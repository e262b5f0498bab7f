import importlib.util
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sigline.components.ingest import images

_BENCHMARK = Path(__file__).resolve().parents[2] / "benchmarks" / "damaged_pictures.py"


@pytest.fixture(scope="module")
def damaged_pictures():
    spec = importlib.util.spec_from_file_location("damaged_pictures", _BENCHMARK)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def pictures(damaged_pictures):
    return damaged_pictures.base_pictures()


def _is_accepted(encoded, **storage):
    try:
        images.check_image(encoded, images.ImageLimits(), images.ImageStorage(**storage))
    except images.ImageError:
        return False
    return True


def test_trainer_decodes_what_ingest_accepts(damaged_pictures):
    counts, disagreements = damaged_pictures.compare(1_500, seed=1)
    assert not disagreements
    tried = sum(row["tried"] for row in counts.values())
    assert tried == 1_500
    for kind in ("cut", "cut at the end", "zero tail", "zeros, no end"):
        assert counts[kind]["wrong"] == 0, kind


@pytest.mark.parametrize("storage", [{}, {"max_side": 24}])
def test_picture_that_was_fetched_in_part_is_refused(pictures, storage):
    for name, encoded in pictures.items():
        for place in range(200, len(encoded) - 1, 61):
            cut = encoded[:place]
            assert not _is_accepted(cut, **storage), (name, place)
            # As in a file that was made in its full size before it was filled.
            filled = cut + bytes(len(encoded) - place)
            assert filled == encoded or not _is_accepted(filled, **storage), (name, place)


def test_zeros_inside_are_refused(pictures):
    for name in ("JPEG 4:2:0", "JPEG 4:4:4", "JPEG progressive", "JPEG restarts", "PNG"):
        encoded = pictures[name]
        for begin in range(700, len(encoded) - 400, 97):
            assert not _is_accepted(encoded[:begin] + bytes(300) + encoded[begin + 300 :]), begin


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("quality", [5, 30, 75, 95, 100])
def test_whole_pictures_are_accepted(progressive, subsampling, quality):
    rng = np.random.default_rng(0)
    ground = Image.fromarray(rng.integers(0, 256, (4, 4, 3), np.uint8))
    smooth = ground.resize((57, 43), Image.Resampling.BICUBIC)
    noise = Image.fromarray(rng.integers(0, 256, (9, 30, 3), np.uint8))
    for image in (
        smooth,
        noise,
        smooth.convert("CMYK"),
        smooth.convert("L"),
        smooth.resize((1, 1)),
    ):
        for options in ({}, {"optimize": True}, {"restart_marker_blocks": 2}):
            buffer = io.BytesIO()
            image.save(
                buffer,
                "JPEG",
                quality=quality,
                progressive=progressive,
                subsampling=subsampling,
                **options,
            )
            assert _is_accepted(buffer.getvalue())


def test_what_lies_behind_the_end_is_no_damage(pictures):
    encoded = pictures["JPEG 4:2:0"]
    for behind in (bytes(100), b"\xff\xd8\xff a second picture", encoded):
        assert _is_accepted(encoded + behind)


@pytest.mark.parametrize("count", [1, 9, 40])
def test_filling_before_the_end_is_no_damage(pictures, count):
    encoded = pictures["JPEG 4:2:0"]
    assert _is_accepted(encoded[:-2] + bytes(count) + b"\xff\xd9")
    assert count < 9 or not _is_accepted(encoded[:-2] + b"x" * count + b"\xff\xd9")


def test_texture_of_zeros_is_refused(pictures):
    # Between marks, where codes of what follows still end in their place.
    encoded = pictures["JPEG restarts"]
    marks = [i for i in range(615, len(encoded) - 1) if encoded[i : i + 2] == b"\xff\xd3"]
    begin = marks[0] + 2
    assert not _is_accepted(encoded[:begin] + bytes(20) + encoded[begin + 20 :])


@pytest.mark.parametrize("form", ["WEBP", "WEBP lossless", "AVIF"])
def test_tail_of_zeros_of_other_forms_is_refused(form):
    rng = np.random.default_rng(0)
    ground = Image.fromarray(rng.integers(0, 256, (20, 30, 3), np.uint8))
    form, lossless = form.split()[0], form.endswith("lossless")
    options = {"lossless": True} if lossless else {}
    for image, is_plain in (
        (ground.resize((180, 120), Image.Resampling.BICUBIC), False),
        (Image.new("RGB", (900, 900), "white"), True),
    ):
        buffer = io.BytesIO()
        image.save(buffer, form, **options)
        encoded = buffer.getvalue()
        assert _is_accepted(encoded)
        for share in () if is_plain else (0.3, 0.6, 0.9):
            place = int(share * len(encoded))
            assert not _is_accepted(encoded[:place] + bytes(len(encoded) - place))


def test_picture_of_a_rare_sampling_is_accepted_while_it_is_whole(pictures):
    encoded = bytearray(pictures["JPEG 4:4:4"])
    frame = encoded.index(b"\xff\xc0")
    assert bytes(encoded[frame + 10 : frame + 19 : 3]) == b"\1\2\3"
    # Other ratios give another picture, of as many blocks or fewer.
    for place, ratio in zip((11, 14, 17), (0x22, 0x12, 0x11), strict=True):
        encoded[frame + place] = ratio
    whole = bytes(encoded)
    assert _is_accepted(whole)
    assert not _is_accepted(whole[:-400])
    assert not _is_accepted(whole[:-400] + bytes(400))
