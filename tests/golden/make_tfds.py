"""Writes `tfds`, small data sets as TensorFlow Datasets prepares them.

Run in an environment with tensorflow-datasets (4.9.10 wrote those that are here):
`python tests/golden/make_tfds.py tests/golden/tfds`.
"""

import sys
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds


def _image(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)


class _Builder(tfds.core.GeneratorBasedBuilder):
    pkg_dir_path = Path(__file__).parent
    skip_registration = True
    splits: tuple[tuple[str, range], ...]

    def _split_generators(self, _):
        return {name: self._generate_examples(numbers) for name, numbers in self.splits}


class Tinycaptions(_Builder):
    """Pictures with several captions and boxes, as COCO has them."""

    name = "tinycaptions"
    VERSION = tfds.core.Version("1.1.0")
    splits = (("train", range(3)), ("val", range(3, 5)))

    def _info(self):
        features = {
            "image": tfds.features.Image(encoding_format="png"),
            "image/filename": tfds.features.Text(),
            "captions": tfds.features.Sequence({"text": tfds.features.Text(), "id": np.int64}),
            "objects": tfds.features.Sequence(
                {
                    "bbox": tfds.features.BBoxFeature(),
                    "label": tfds.features.ClassLabel(names=["ring", "square"]),
                }
            ),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _generate_examples(self, numbers):
        for number in numbers:
            box = {"bbox": tfds.features.BBox(0.0, 0.0, 0.5, 0.5), "label": "ring"}
            texts = (f"picture {number}", f"a small picture {number}")
            captions = [{"text": text, "id": number + 100 * i} for i, text in enumerate(texts)]
            about = {"image/filename": f"{number}.png", "captions": captions, "objects": [box]}
            yield number, {"image": _image(number), **about}


class Tinydigits(_Builder):
    """Grey pictures of classes, in a configuration, as MNIST has them."""

    name = "tinydigits"
    BUILDER_CONFIGS = tuple(
        tfds.core.BuilderConfig(name=name, version="2.0.1") for name in ("plain", "large")
    )
    splits = (("test", range(3)),)

    def _info(self):
        features = {
            "image": tfds.features.Image(shape=(8, 8, 1)),
            "label": tfds.features.ClassLabel(names=["zero", "one", "two"]),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _generate_examples(self, numbers):
        for number in numbers:
            yield number, {"image": _image(50 + number)[..., :1], "label": number}


if __name__ == "__main__":
    Tinycaptions(data_dir=sys.argv[1]).download_and_prepare()
    Tinydigits(data_dir=sys.argv[1], config="plain").download_and_prepare()
