"""ViT-B/16 on ImageNet-21k by augmentation and regularisation, "AugReg" (arXiv 2106.10270).

Command: `sigline train --recipe augreg_b16_i21k --data ... --output ...`

The records' `label` holds the classes: 21,843, of which an image may have several. As in the
authors' configuration (big_vision `configs/vit_i21k.py`) the pool is the mean of the patches, no
layer is before the head, the loss is sigmoid with a bias of -10, and the preset `light2`: mixup of
0.2, and RandAugment of two operations at magnitude 10. The steps are 300 epochs of 14,145,922
images: the 14,197,122 of ImageNet-21k but 51,200 to validate on. Expected result: from the authors'
repository, not measured here: 85.5 % on ImageNet after fine-tuning at 384 pixels, for a checkpoint
that was trained with `medium1` and is the one they recommend.
"""

import dataclasses

from sigline.trainer.config import TrainConfig, augmentation
from sigline.trainer.recipes import augreg_b16


def config() -> TrainConfig:
    """Returns the configuration."""
    base = augreg_b16.config()
    return dataclasses.replace(
        base,
        name="augreg_b16_i21k",
        steps=1_036_078,
        image=dataclasses.replace(
            base.image,
            pool="gap",
            projection=None,
            projection_tanh=False,
            classes=21_843,
            head_bias_init=-10.0,
        ),
        data=dataclasses.replace(base.data, **augmentation.augreg("light2")),
    )


gate = augreg_b16.gate
