"""How training examples are read."""

import math
from dataclasses import dataclass

from sigline.trainer.config import checks


@dataclass(frozen=True)
class DataConfig:
    """How training examples are read.

    Attributes:
        shuffle_records: Size of the shuffle buffer of each folder, in encoded records.
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
    """

    shuffle_records: int = 50_000
    max_image_pixels: int = 25_000_000
    crop_min_area: float | None = None
    flip: bool = False
    mixture: tuple[float, ...] = ()
    mixup: float = 0.0

    def check(self, key: str) -> None:
        """Raises ValueError, with the key and what to give, if a field makes no sense."""
        checks.at_least(f"{key}.shuffle_records", self.shuffle_records, 1)
        checks.at_least(f"{key}.max_image_pixels", self.max_image_pixels, 1)
        checks.not_negative(f"{key}.mixup", self.mixup)
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
