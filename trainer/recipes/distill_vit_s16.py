"""ViT-S/16 that learns a larger ViT's classes, patiently and consistently (arXiv 2106.05237).

Command: `sigline train --recipe distill_vit_s16 --teacher vit=VIT --data ... --output ...`

The teacher is a ViT with a head of 1,000 classes, brought in by `sigline weights import B_16.npz
--output VIT`. It sees the student's own pixels, the same crop, flip and mixup, and no label is
read: any images will do. In a pipeline `ingest: {captions: optional}` takes them without captions,
and only what is evaluated needs labels. Batch, mixup, crop, decay and temperature are those of the
paper's ImageNet runs; the rate is that of a plain ViT-S/16 (arXiv 2205.01580), since their students
are ResNets. The steps are 1,200 epochs of ImageNet. Expected result: not measured.
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


def config() -> TrainConfig:
    """Returns the configuration."""
    return TrainConfig(
        name="distill_vit_s16",
        steps=375_000,
        global_batch_size=4_096,
        image=ImageTowerConfig(
            size=224,
            patch=16,
            pool="gap",
            positions="sincos2d",
            classes=1_000,
            **sizes.sizes("S"),
        ),
        text=None,
        objectives=(DistillConfig(teacher="vit", target="classes", temperature=1.0),),
        optimizer=OptimizerConfig(
            weight_decay=3e-4, warmup_steps=5_000, first_moment_dtype="bfloat16"
        ),
        data=DataConfig(crop_min_area=0.05, flip=True, mixup=1.0),
    )


def gate() -> Gate:
    """Returns what a model must reach: clearly more than chance, and no less than the last one."""
    return Gate(
        maximum={"leaked_share": 0.0},
        above_chance={"classification_accuracy": 3.0},
        max_drop={"classification_accuracy": 0.01},
    )
