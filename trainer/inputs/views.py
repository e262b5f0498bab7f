"""Views: the pictures that training makes of an image."""

from typing import NamedTuple

from sigline.trainer.config import ImageTowerConfig


class View(NamedTuple):
    """A picture that an example's image becomes.

    Attributes:
        tower: The configuration of the tower that sees it: size and resampling.
        crop: Views of one number have the same random crop and flip, at their own sizes.
    """

    tower: ImageTowerConfig
    crop: int = 0
