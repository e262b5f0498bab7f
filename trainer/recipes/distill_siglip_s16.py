"""SigLIP S/16 that learns from a larger SigLIP which pairs belong together, and how much.

Command: `sigline train --recipe distill_siglip_s16 --teacher siglip=SIGLIP --data ...
--vocabulary ... --output ...`

Beside the loss of `siglip_b16` (arXiv 2303.15343) the student is given the teacher's probabilities
of all pairs of the batch as soft targets, each pair by its cross-entropy. The teacher comes in by
`sigline weights import siglip-base-patch16-224 --output SIGLIP`, reads with its own vocabulary, and
sees the student's pixels. A quarter of SigLIP's batch, so that both fit. Expected result: not
measured.
"""

import dataclasses

from sigline.trainer.config import (
    DistillConfig,
    ImageTowerConfig,
    PairsConfig,
    TextTowerConfig,
    TrainConfig,
)
from sigline.trainer.models import sizes
from sigline.trainer.recipes import siglip_b16


def config() -> TrainConfig:
    """Returns the configuration."""
    return dataclasses.replace(
        siglip_b16.config(),
        name="distill_siglip_s16",
        global_batch_size=8_192,
        image=ImageTowerConfig(size=224, patch=16, **sizes.sizes("S")),
        text=TextTowerConfig(length=64, **sizes.sizes("S")),
        objectives=(PairsConfig(), DistillConfig(teacher="siglip", target="pairs")),
    )
