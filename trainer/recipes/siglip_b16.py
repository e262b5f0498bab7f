"""SigLIP B/16 at 224 pixels, 64 tokens (arXiv 2303.15343, sections 3 and 4).

Command: `sigline train --recipe siglip_b16 --data ... --vocabulary ... --output ...`

Batch 32,768 with AdamW at beta_2 = 0.95, rate 1e-3 and decay 1e-4; images are resized only. The
number of steps is that of 9 billion seen pairs. Expected result: not measured.
"""

from sigline.trainer.config import ImageTowerConfig, OptimizerConfig, TextTowerConfig, TrainConfig
from sigline.trainer.models import sizes


def config() -> TrainConfig:
    """Returns the configuration."""
    return TrainConfig(
        name="siglip_b16",
        steps=274_658,
        global_batch_size=32_768,
        image=ImageTowerConfig(size=224, patch=16, **sizes.sizes("B")),
        text=TextTowerConfig(length=64, **sizes.sizes("B")),
        optimizer=OptimizerConfig(warmup_steps=6_500),
    )
