"""ViT-S/32 on ImageNet by augmentation and regularisation, "AugReg" (arXiv 2106.10270).

Command: `sigline train --recipe augreg_s32 --data ... --output ...`

`augreg_b16` at another size, with preset `medium1`: mixup of 0.2, and RandAugment of two
operations at magnitude 15. Expected result: not measured.
"""

import dataclasses

from sigline.trainer.config import TrainConfig, augmentation
from sigline.trainer.models import sizes
from sigline.trainer.recipes import augreg_b16


def config() -> TrainConfig:
    """Returns the configuration."""
    base = augreg_b16.config()
    return dataclasses.replace(
        base,
        name="augreg_s32",
        image=dataclasses.replace(base.image, patch=32, projection=384, **sizes.sizes("S")),
        data=dataclasses.replace(base.data, **augmentation.augreg("medium1")),
    )


gate = augreg_b16.gate
