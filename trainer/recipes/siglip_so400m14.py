"""SigLIP So400m/14 at 224 pixels, 16 tokens (arXiv 2303.15343; shape of arXiv 2305.13035).

Command: `sigline train --recipe siglip_so400m14 --data ... --vocabulary ... --output ...`

As `siglip_l16`, with towers of the shape that is optimal for its compute. Expected result: not
measured.
"""

import dataclasses

from sigline.trainer.config import ImageTowerConfig, TextTowerConfig, TrainConfig
from sigline.trainer.models import sizes
from sigline.trainer.recipes import siglip_l16


def config() -> TrainConfig:
    """Returns the configuration."""
    return dataclasses.replace(
        siglip_l16.config(),
        name="siglip_so400m14",
        image=ImageTowerConfig(size=224, patch=14, **sizes.sizes("So400m")),
        text=TextTowerConfig(length=16, **sizes.sizes("So400m")),
    )
