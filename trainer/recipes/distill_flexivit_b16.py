"""FlexiViT-B that learns a ViT-B/8's classes, starting from its weights (arXiv 2212.08013).

Command: `sigline train --recipe distill_flexivit_b16 --weights VIT --teacher vit=VIT --data ...
--output ...`

The teacher and start is a ViT-B/8 with a head of 21,843 classes, brought in by `sigline weights
import B_8.npz --output VIT`. The student takes over all of it; its positions are resampled to the
7 x 7 patches that are stored, and its kernel of 8 x 8 pixels is the one that is stored. Each step
draws one of ten grids for the student. The teacher sees the same crop, flip and mixup at its own
resolution, and no label is read: any images will do. In a pipeline `ingest: {captions: optional}`
takes them without captions, and only what is evaluated needs labels.

As in the authors' configuration (big_vision `proj/flexivit/i21k_distill.py`): the divergence at a
temperature of 1, 90 epochs of 14,145,922 images, batch, rate, decay, crop, flip and mixup of 1.
Pixels, pool and layers are those of the weights. Crops have an aspect of 3:4 to 4:3, there to 1.33.
Expected result: not measured here; the paper's abstract says that such a model "usually matches,
sometimes outperforms" models of one size.
"""

from sigline.schemas.gate import Gate
from sigline.trainer.config import (
    DataConfig,
    DistillConfig,
    ImageTowerConfig,
    OptimizerConfig,
    TrainConfig,
)
from sigline.trainer.models import sizes
from sigline.trainer.recipes import flexivit_s16


def config() -> TrainConfig:
    """Returns the configuration."""
    return TrainConfig(
        name="distill_flexivit_b16",
        steps=310_826,
        global_batch_size=4_096,
        image=ImageTowerConfig(
            size=240,
            patch=8,
            grids=flexivit_s16.config().image.grids,
            position_grid=7,
            default_grid=15,
            pool="tok",
            classes=21_843,
            **sizes.sizes("B"),
        ),
        text=None,
        objectives=(DistillConfig(teacher="vit", target="classes", temperature=1.0),),
        optimizer=OptimizerConfig(
            learning_rate=1e-4,
            weight_decay=1e-5,
            beta_2=0.999,
            warmup_steps=5_000,
            first_moment_dtype="bfloat16",
        ),
        data=DataConfig(crop_min_area=0.05, flip=True, mixup=1.0),
        pretrained=("image/.*",),
    )


def gate() -> Gate:
    """Returns what a model must reach at every grid, as `flexivit_s16`'s."""
    return flexivit_s16.gate()
