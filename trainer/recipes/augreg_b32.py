"""ViT-B/32 on ImageNet by augmentation and regularisation, "AugReg" (arXiv 2106.10270).

Command: `sigline train --recipe augreg_b32 --data ... --output ...`

`augreg_b16` with patches of 32 pixels, a quarter of the tokens. Dropout and stochastic depth,
which it leaves out, helped this size in the paper's figure 4. Expected result: not measured.
"""

import dataclasses

from sigline.trainer.config import TrainConfig
from sigline.trainer.recipes import augreg_b16


def config() -> TrainConfig:
    """Returns the configuration."""
    base = augreg_b16.config()
    return dataclasses.replace(
        base,
        name="augreg_b32",
        image=dataclasses.replace(base.image, patch=32),
    )


gate = augreg_b16.gate
