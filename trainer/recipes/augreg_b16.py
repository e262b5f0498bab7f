"""ViT-B/16 on ImageNet by augmentation and regularisation, "AugReg" (arXiv 2106.10270).

Command: `sigline train --recipe augreg_b16 --data ... --output ...`

The records' `label` holds the classes: 1,000 here, as on ImageNet, and `--set image.classes=N` for
others. Preset `medium2`: mixup of 0.5, and RandAugment of two operations at magnitude 15, whose
published oddities are kept (`data.randaugment`). All is as in the authors' configuration for
ImageNet (big_vision `configs/vit_i1k.py`): class token, a tanh layer before the head, sigmoid loss
with a bias of -6.9, batch, rate, decay, and 300 epochs of 1,268,355 images. Like it, it leaves out
dropout and stochastic depth, which helped this size in the paper's figure 4. Crops have an aspect
of 3:4 to 4:3, there to 1.33. Expected result: not measured.
"""

from sigline.trainer.config import (
    ClassifyConfig,
    DataConfig,
    ImageTowerConfig,
    OptimizerConfig,
    TrainConfig,
    augmentation,
)
from sigline.trainer.models import sizes
from sigline.trainer.recipes import vit_s16


def config() -> TrainConfig:
    """Returns the configuration."""
    return TrainConfig(
        name="augreg_b16",
        steps=92_897,
        global_batch_size=4_096,
        image=ImageTowerConfig(
            size=224,
            patch=16,
            pool="tok",
            projection=768,
            projection_tanh=True,
            classes=1_000,
            head_bias_init=-6.9,
            resize="crop_rounded",
            resize_ratio=0.875,
            interpolation="area",
            **sizes.sizes("B"),
        ),
        text=None,
        objectives=(ClassifyConfig(loss="sigmoid"),),
        optimizer=OptimizerConfig(
            weight_decay=1e-4, beta_2=0.999, warmup_steps=10_000, first_moment_dtype="bfloat16"
        ),
        data=DataConfig(crop_min_area=0.05, flip=True, **augmentation.augreg("medium2")),
    )


gate = vit_s16.gate
