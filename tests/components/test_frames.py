"""Frames around photographs: parts of two that scikit-learn brings along, and drawn ones."""

import io

import numpy as np
import pytest
from PIL import Image, ImageOps

from sigline.components.ingest import fingerprints


def _photographs(count):
    """Returns parts of two photographs, of many sizes."""
    from sklearn.datasets import load_sample_images

    rng, wholes = np.random.default_rng(0), load_sample_images().images
    parts = []
    for number in range(count):
        whole = Image.fromarray(wholes[number % 2])
        share = rng.uniform(0.35, 0.9)
        width = int(whole.width * share)
        height = int(whole.height * share * rng.uniform(0.75, 1.0))
        left = int(rng.integers(whole.width - width + 1))
        top = int(rng.integers(whole.height - height + 1))
        part = whole.crop((left, top, left + width, top + height))
        part.thumbnail((rng.choice([256, 400, 640]),) * 2)
        parts.append(part)
    return parts


def _drawn(count):
    """Returns pictures with the spectrum of photographs, dark corners and noise."""
    pictures = []
    for number in range(count):
        rng = np.random.default_rng(number)
        height, width = (int(x) for x in rng.integers(200, 420, 2))
        frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(width), np.fft.fftfreq(height)))
        falls = np.maximum(frequency, 1 / max(height, width)) ** 1.1
        noise = rng.standard_normal((4, height, width))
        spectra = np.fft.fft2(0.8 * noise[3] + 0.6 * noise[:3]) / falls
        pixels = np.moveaxis(np.fft.ifft2(spectra).real, 0, -1)
        pixels = (pixels - pixels.mean()) / pixels.std()
        pixels = rng.uniform(60, 170) + rng.uniform(25, 60) * pixels
        down, across = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
        pixels *= (1 - rng.uniform(0, 0.5) * (down**2 + across**2) / 2)[..., None]
        pixels += rng.normal(0, 4, pixels.shape)
        pictures.append(Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)))
    return pictures


def _framed(share, color):
    return lambda image: ImageOps.expand(image, round(share * image.width), color)


def _saved(share, scale):
    def change(image):
        image = _framed(share, "black")(image)
        size = (round(scale * image.width), round(scale * image.height))
        buffer = io.BytesIO()
        image.resize(size, Image.Resampling.LANCZOS).save(buffer, "JPEG", quality=75)
        return Image.open(buffer).convert("RGB")

    return change


_FRAMES = {
    "black": _framed(0.05, "black"),
    "narrow": _framed(0.02, "black"),
    "white": _framed(0.05, "white"),
    "grey": _framed(0.1, (128, 128, 128)),
    "saved": _saved(0.05, 1.0),
    "halved": _saved(0.05, 0.5),
    "enlarged": _saved(0.08, 1.5),
}


@pytest.fixture(scope="module", params=[_photographs, _drawn], ids=["photographs", "drawn"])
def pictures(request):
    return request.param(40)


def _is_found(views, others):
    keys, other_keys = (
        {key for view in one for key in fingerprints.band_keys(view.phash)}
        for one in (views, others)
    )
    return bool(keys & other_keys) and fingerprints.same_picture(views, others)


def _views(image):
    return fingerprints.views(image, mirrored=False)


@pytest.mark.parametrize("frame", _FRAMES)
def test_framed_photographs_are_the_same_pictures(pictures, frame):
    counts = [_is_found(_views(x), _views(_FRAMES[frame](x))) for x in pictures]
    # At 128 pixels, half a pixel of the frame changes as much as another encoding.
    assert np.mean(counts) >= (0.85 if frame == "halved" else 0.95)


def test_photographs_without_a_frame_have_none(pictures):
    assert all(len(_views(x)) == 1 for x in pictures)


def test_dark_picture_in_a_black_frame_loses_nothing_but_the_frame():
    rng = np.random.default_rng(0)
    pixels = rng.integers(16, 36, (90, 120, 3)).astype(np.uint8)
    pixels[20:70, 30:90] += 120
    framed = ImageOps.expand(Image.fromarray(pixels), 6, "black")
    (_, inner), whole = _views(framed), _views(Image.fromarray(pixels))
    assert fingerprints.same_picture([inner], whole)


def test_side_that_is_like_the_frame_has_the_margin_of_the_others():
    rng = np.random.default_rng(0)
    pixels = rng.integers(60, 256, (90, 120, 3)).astype(np.uint8)
    pixels[-30:] = 0
    pixels[-30:, ::9] = 200
    framed = ImageOps.expand(Image.fromarray(pixels), 6, "black")
    (_, inner), whole = _views(framed), _views(Image.fromarray(pixels))
    assert fingerprints.same_picture([inner], whole)
