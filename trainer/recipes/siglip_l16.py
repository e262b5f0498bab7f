"""SigLIP L/16 at 256 pixels, 64 tokens (arXiv 2303.15343; the size of the released model).

Command: `sigline train --recipe siglip_l16 --data ... --vocabulary ... --output ...`

As `siglip_b16`, with larger towers whose blocks are computed again in the backward pass, in
bfloat16. Expected result: not measured.
"""

import dataclasses

from sigline.trainer.config import ImageTowerConfig, TextTowerConfig, TrainConfig
from sigline.trainer.models import sizes
from sigline.trainer.recipes import siglip_b16


def config() -> TrainConfig:
    """Returns the configuration."""
    base = siglip_b16.config()
    return dataclasses.replace(
        base,
        name="siglip_l16",
        image=ImageTowerConfig(size=256, patch=16, **sizes.sizes("L")),
        text=TextTowerConfig(length=64, **sizes.sizes("L")),
        optimizer=dataclasses.replace(base.optimizer, first_moment_dtype="bfloat16"),
        precision="bfloat16",
        rematerialize=True,
    )
