import io

import numpy as np
import pytest
from PIL import Image, ImageOps

from sigline.schemas import signatures
from sigline.serving.checks import loader_check, oriented_images


class _Model:
    """Answers with the pictures' sizes, as stored or as they are upright."""

    def __init__(self, *, turns):
        self._turns = turns

    def run(self, signature_name, inputs):
        assert signature_name == signatures.EMBED_IMAGE
        rows = []
        for encoded in inputs[signatures.IMAGE_BYTES]:
            image = Image.open(io.BytesIO(encoded))
            image = ImageOps.exif_transpose(image) if self._turns else image
            rows.append(np.asarray(image.convert("L").resize((4, 4)), np.float32).ravel())
        return {signatures.EMBEDDING: np.stack(rows)}


def test_model_that_turns_pictures_passes():
    loader_check._check_orientation(_Model(turns=True))


def test_model_that_does_not_turn_pictures_is_refused():
    message = r"a (JPEG|PNG) of EXIF orientation \d gets another embedding than the upright picture"
    with pytest.raises(loader_check.LoaderError, match=message):
        loader_check._check_orientation(_Model(turns=False))


def test_difference_names_the_worst_picture():
    answers = np.zeros((16, 3))
    answers[13] = 0.5
    assert oriented_images.max_difference(answers) == (0.5, "a PNG of EXIF orientation 6")
