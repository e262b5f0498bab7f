"""What a batch holds of an example besides what the student gets."""

from typing import NamedTuple

from sigline.trainer.config import ImageTowerConfig
from sigline.trainer.inputs import preprocess


class View(NamedTuple):
    """What a teacher gets of an example where it is not what the student gets.

    Attributes:
        image: Its image tower's configuration, if that asks for other pixels.
        tokenizer: Its own vocabulary, if it reads texts otherwise.
    """

    image: ImageTowerConfig | None = None
    tokenizer: preprocess.Tokenizer | None = None
