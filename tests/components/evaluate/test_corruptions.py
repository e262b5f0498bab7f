import io

import numpy as np
import pytest
from PIL import Image

from sigline.components.evaluate import corruptions
from sigline.components.evaluate.corruptions import Corruption


def _png(mode="RGB", size=(80, 60)):
    rng = np.random.default_rng(0)
    x, y = np.meshgrid(np.linspace(0, 255, size[0]), np.linspace(0, 255, size[1]))
    pixels = np.stack([x, y, 0.5 * (x + y)], axis=-1) + rng.normal(0, 5, (*x.shape, 3))
    image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def _pixels(encoded):
    return np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB"), np.float64)


@pytest.mark.parametrize("kind", sorted(corruptions.KINDS))
def test_corruption_grows_with_its_severity(kind):
    clean = _png()
    errors = [
        np.abs(_pixels(corruptions.corrupt(clean, Corruption(kind, s), key="a")) - _pixels(clean))
        for s in corruptions.SEVERITIES
    ]
    means = [error.mean() for error in errors]
    assert errors[0].shape == (60, 80, 3)
    assert means[0] > 0
    assert means[0] < means[2] < means[4]


@pytest.mark.parametrize("kind", sorted(corruptions.KINDS))
def test_corruption_is_the_same_for_the_same_key_and_seed(kind):
    corruption = Corruption(kind, 3)
    once = corruptions.corrupt(_png(), corruption, key="a")
    assert corruptions.corrupt(_png(), corruption, key="a") == once


def test_other_keys_and_seeds_have_other_noise():
    found = {
        corruptions.corrupt(_png(), Corruption("gaussian_noise", 3, seed), key=key)
        for seed in (0, 1)
        for key in ("a", "b")
    }
    assert len(found) == 4


def test_transparent_pictures_are_corrupted_on_white():
    buffer = io.BytesIO()
    Image.new("RGBA", (8, 8), (0, 0, 0, 0)).save(buffer, "PNG")
    found = _pixels(corruptions.corrupt(buffer.getvalue(), Corruption("pixelate", 1), key="a"))
    assert (found == 255).all()


def test_picture_that_does_not_decode_is_left_to_the_model():
    assert corruptions.corrupt(b"nonsense", Corruption("blur", 1), key="a") == b"nonsense"


@pytest.mark.parametrize(("kind", "severity"), [("fog", 1), ("blur", 0), ("blur", 6)])
def test_unknown_corruption_is_refused(kind, severity):
    with pytest.raises(ValueError, match=f"Received: kind='{kind}', severity={severity}"):
        Corruption(kind, severity)
