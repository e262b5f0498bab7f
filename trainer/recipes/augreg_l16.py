"""ViT-L/16 on ImageNet by augmentation and regularisation, "AugReg" (arXiv 2106.10270).

Command: `sigline train --recipe augreg_l16 --data ... --output ...`

`augreg_b16` at another size, with its preset `medium2`. Dropout and stochastic depth, which it
leaves out, helped this size in the paper's figure 4. Expected result: not measured.
"""

import dataclasses

from sigline.trainer.config import TrainConfig
from sigline.trainer.models import sizes
from sigline.trainer.recipes import augreg_b16


def config() -> TrainConfig:
    """Returns the configuration."""
    base = augreg_b16.config()
    return dataclasses.replace(
        base,
        name="augreg_l16",
        image=dataclasses.replace(base.image, projection=1024, **sizes.sizes("L")),
    )


gate = augreg_b16.gate
