"""Levels are those of Pillow, every one of them."""

import functools

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from sigline.trainer.config import ImageTowerConfig
from sigline.trainer.inputs import preprocess, resampling

FILTERS = {
    "box": Image.Resampling.BOX,
    "bilinear": Image.Resampling.BILINEAR,
    "hamming": Image.Resampling.HAMMING,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


@functools.cache
def _function(interpolation):
    # One trace for all sizes, as in a SavedModel.
    return tf.function(
        lambda image, size: resampling.resize(image, size, interpolation),
        input_signature=[
            tf.TensorSpec((None, None, 3), tf.uint8),
            tf.TensorSpec((2,), tf.int64),
        ],
        autograph=False,
    )


def _picture(height, width, *, levels=256, seed=0):
    rng = np.random.default_rng(seed)
    step = 255 // (levels - 1)
    return (rng.integers(0, levels, (height, width, 3)) * step).astype(np.uint8)


@pytest.mark.parametrize("interpolation", FILTERS)
@pytest.mark.parametrize(
    ("before", "after"),
    [
        ((37, 53), (14, 14)),
        ((9, 7), (24, 31)),
        ((32, 64), (16, 16)),
        ((1, 5), (8, 8)),
        ((20, 20), (20, 13)),
        ((16, 16), (16, 16)),
    ],
    ids=["smaller", "larger", "half", "one-row", "one-side", "same"],
)
@pytest.mark.parametrize("levels", [2, 256])
def test_levels_are_those_of_pillow(interpolation, before, after, levels):
    picture = _picture(*before, levels=levels)
    found = _function(interpolation)(picture, after).numpy()
    expected = Image.fromarray(picture).resize(after[::-1], FILTERS[interpolation])
    np.testing.assert_array_equal(found, np.asarray(expected))


def test_parts_of_a_large_picture_are_those_of_the_whole(monkeypatch):
    picture = _picture(50, 40)
    expected = np.asarray(Image.fromarray(picture).resize((9, 11), Image.Resampling.BICUBIC))
    for pixels in (1, 40 * 7, 40 * 50):
        monkeypatch.setattr(resampling, "_PIXELS_AT_A_TIME", pixels)
        found = resampling.resize(tf.constant(picture), tf.constant([11, 9], tf.int64), "bicubic")
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("shape", [(90, 60), (60, 91), (50, 50), (23, 400)])
@pytest.mark.parametrize("side", [None, 41])
def test_middle_is_that_of_the_whole_picture_that_pillow_resizes(shape, side):
    picture = _picture(*shape)
    tower = ImageTowerConfig(
        size=32,
        patch=4,
        resize="crop",
        resize_side=side,
        interpolation="bicubic",
        antialias=True,
        resampler="pillow",
    )
    found = preprocess.resize_image(tf.constant(picture), tower)
    height, width = (length * (side or 32) // min(shape) for length in shape)
    whole = np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.BICUBIC))
    top, left = (height - 32) // 2, (width - 32) // 2
    np.testing.assert_array_equal(found, whole[top : top + 32, left : left + 32])


def test_middle_of_a_square_is_cut_out_without_regard_to_the_aspect():
    picture = _picture(20, 31)
    tower = ImageTowerConfig(size=8, patch=4, resize_side=11, antialias=True, resampler="pillow")
    whole = np.asarray(Image.fromarray(picture).resize((11, 11), Image.Resampling.BILINEAR))
    found = preprocess.resize_image(tf.constant(picture), tower)
    np.testing.assert_array_equal(found, whole[1:9, 1:9])


def test_longest_strips_are_resized_in_little_memory():
    # The whole would be 32 times 8 million pixels, and weights of it 32 million.
    strip = tf.zeros((1, 250_000, 3), tf.uint8)
    tower = ImageTowerConfig(
        size=32, patch=4, resize="crop", interpolation="bicubic", antialias=True, resampler="pillow"
    )
    assert preprocess.resize_image(strip, tower).shape == (32, 32, 3)
    found = resampling.resize(strip + 7, tf.constant([4, 4], tf.int64), "lanczos")
    np.testing.assert_array_equal(found, np.full((4, 4, 3), 7))
