"""ViT-S/16 that learns labels and a teacher's choice by a token each, "DeiT" (arXiv 2012.12877).

Command: `sigline train --recipe deit_s16 --teacher teacher=TEACHER --data ... --output ...`

The records' `label` holds the classes: 1,000 here, as on ImageNet, and `--set image.classes=N` for
others. A second learned token stands behind the class token. The class token's head learns the
labels; the other one's learns which class the teacher chooses for the same mixed picture. Both
count half, and the model's logits are the mean of both heads', as in the authors' code. The teacher
is any model with a head of these classes that `sigline weights import` reads; the paper's, a
RegNetY-16GF, is none. `objectives.distill.hard=false` teaches its distribution instead.

Batch, rate, decay, smoothing, stochastic depth, crop and 300 epochs of 1,281,167 images are the
paper's. Augmentation is AugReg's preset `medium2`, a mixup of 0.5 and RandAugment at magnitude 15.
Left out are cutmix, random erasing, repeated augmentation, timm's policy of RandAugment with its
mixup of 0.8, and the moving average of the parameters. The rate starts and ends at 0, not at 1e-6
and 1e-5, and pictures are resized by `area`, not bicubic. Expected result: from the paper, not
measured here: 81.2 % on ImageNet, where the same model without a teacher has 79.9 %.
"""

import dataclasses

from sigline.trainer.config import (
    BlockConfig,
    ClassifyConfig,
    DataConfig,
    DistillConfig,
    OptimizerConfig,
    TrainConfig,
    augmentation,
)
from sigline.trainer.recipes import vit_s16


def config() -> TrainConfig:
    """Returns the configuration."""
    base = vit_s16.config()
    return dataclasses.replace(
        base,
        name="deit_s16",
        steps=375_341,
        image=dataclasses.replace(
            base.image,
            pool="tok",
            positions="learned",
            distillation_token=True,
            block=BlockConfig(activation="gelu", stochastic_depth=0.1),
        ),
        objectives=(
            ClassifyConfig(weight=0.5, smoothing=0.1),
            DistillConfig(teacher="teacher", target="classes", weight=0.5, hard=True),
        ),
        optimizer=OptimizerConfig(
            # 0.05 in the convention of PyTorch.
            weight_decay=5e-5,
            beta_2=0.999,
            clip_norm=None,
            warmup_steps=6_256,
            first_moment_dtype="bfloat16",
        ),
        data=DataConfig(crop_min_area=0.08, flip=True, **augmentation.augreg("medium2")),
    )


gate = vit_s16.gate
