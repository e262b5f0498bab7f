"""How training examples are read."""

import math
from dataclasses import dataclass

from sigline.schemas import record
from sigline.trainer.config import checks


@dataclass(frozen=True)
class RandAugmentConfig:
    """RandAugment as AugReg's ViTs were trained with; `trainer/inputs/randaugment.py` has it.

    Its code did some things that nobody would write on purpose. By default pictures of 224 pixels
    come out as they did there, byte for byte.

    Attributes:
        layers: Operations in a row, each drawn anew of 16.
        magnitude: Strength of the operations, 0 to 20 in published recipes. 0 changes pictures,
            too: colours and contrast nearly vanish, and Posterize leaves one bit.
        solarize: What becomes of a threshold above 255, from a magnitude of 10 on: `wrapped`, which
            takes it modulo 256 as eight bits did, so that at 10 and 20 the picture is inverted; or
            `clamped`, which leaves the picture as it is.
        contrast: The grey that contrast is reduced to: `pixels`, a level of the number of pixels
            over 256, which is 196 at 224 pixels whatever the picture; or `mean`, the picture's own.
        scale_pixels: Whether what is counted in pixels is scaled by the picture's size over 224:
            translations, the square of Cutout, and the grey of `contrast=pixels`. Without it 20 of
            them are 20 pixels at any size.
    """

    layers: int = 2
    magnitude: int = 10
    solarize: str = "wrapped"
    contrast: str = "pixels"
    scale_pixels: bool = True

    def check(self, key: str) -> None:
        """Raises ValueError, with the key and what to give, if a field makes no sense."""
        checks.at_least(f"{key}.layers", self.layers, 1)
        checks.at_least(f"{key}.magnitude", self.magnitude, 0)
        checks.one_of(f"{key}.solarize", self.solarize, ("wrapped", "clamped"))
        checks.one_of(f"{key}.contrast", self.contrast, ("pixels", "mean"))


@dataclass(frozen=True)
class DataConfig:
    """How training examples are read.

    Attributes:
        lanes: Parts of every global batch that are read beside each other, each from its own part
            of an epoch; `trainer/inputs/order.py` has the order that follows. Hosts divide them, so
            a multiple of the hosts suits. A batch or a folder that is too small has fewer: the
            largest divisor that fits. None for the order of runs before there were lanes, in which
            every host reads everything.
        shuffle_records: Encoded records of each folder that all lanes, on all hosts, together hold
            to shuffle: half of them are given while the other half is read. Without lanes, the size
            of each host's shuffle buffer.
        max_image_pixels: Largest image that is decoded, in pixels.
        crop_min_area: Least share of the image that a random crop keeps, at an aspect of 3:4 to 4:3
            (arXiv 1409.4842, section 6); None for whole images, as SigLIP has them.
        flip: Whether half of the images are mirrored; captions may then be wrong about sides.
        mixture: Weights of the folders to train on, in the order they are given in; empty to weight
            them by their records. Every batch holds the same number from each, the weights times
            its size, rounded.
        mixup: p of Beta(p, p), from which each step draws how much of its neighbour on the replica
            is mixed into every image, less than half (arXiv 1710.09412), and its labels into the
            image's; 0 for none. A mixed image no longer belongs to its text.
        randaugment: Operations drawn for each image after crop and flip; None for none. Captions
            may then be wrong about colours and places.
    """

    lanes: int | None = record.LANES
    shuffle_records: int = 50_000
    max_image_pixels: int = 25_000_000
    crop_min_area: float | None = None
    flip: bool = False
    mixture: tuple[float, ...] = ()
    mixup: float = 0.0
    randaugment: RandAugmentConfig | None = None

    def check(self, key: str) -> None:
        """Raises ValueError, with the key and what to give, if a field makes no sense."""
        checks.at_least(f"{key}.lanes", self.lanes, 1)
        checks.at_least(f"{key}.shuffle_records", self.shuffle_records, 1)
        checks.at_least(f"{key}.max_image_pixels", self.max_image_pixels, 1)
        checks.not_negative(f"{key}.mixup", self.mixup)
        if self.randaugment is not None:
            self.randaugment.check(f"{key}.randaugment")
        area = self.crop_min_area
        if area is not None and not 0.0 < area <= 1.0:
            raise ValueError(
                f"{key}.crop_min_area must be above 0 and at most 1, or none. "
                f"Received: {key}.crop_min_area={area}"
            )
        if not all(math.isfinite(x) and x > 0 for x in self.mixture):
            raise ValueError(
                f"{key}.mixture must hold positive weights, or nothing. "
                f"Received: {key}.mixture={list(self.mixture)}"
            )
