"""ViT-Ti/16 on ImageNet by augmentation and regularisation, "AugReg" (arXiv 2106.10270).

Command: `sigline train --recipe augreg_ti16 --data ... --output ...`

`augreg_b16` at another size, with preset `light1`: no mixup, and RandAugment of two operations at
magnitude 0, which is not nothing: nine of the 16 operations change a picture even then. Expected
result: not measured.
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
        name="augreg_ti16",
        image=dataclasses.replace(base.image, projection=192, **sizes.sizes("Ti")),
        data=dataclasses.replace(base.data, **augmentation.augreg("light1")),
    )


gate = augreg_b16.gate
