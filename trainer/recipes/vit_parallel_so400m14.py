"""ViT So400m/14 of ViT-22B's blocks, on labels (arXiv 2302.05442; shape of arXiv 2305.13035).

Command: `sigline train --recipe vit_parallel_so400m14 --data ... --output ...`

All is as in `vit_22b`, at a size that a chip holds: 0.45 billion parameters, whose state takes
4.2 GiB. The records' `label` holds the classes: 21,843 here, as on ImageNet-21k, of which an image
may have several; `--set image.classes=N` for others. The steps are 90 epochs of 14,145,922 images,
in batches of AugReg's size. `--set run.monitor_attention=true` logs what queries and keys are
normalised for. For LiT on top of it the recipe `lit_b16` takes blocks, sizes and pool from the
weights: `sigline train --recipe lit_b16 --weights OUTPUT/weights --set
'pretrained=["image/(?!head/).*"]' ...`, without the head. Expected result: not measured, and none
is published.
"""

import dataclasses

from sigline.trainer.config import TrainConfig
from sigline.trainer.models import sizes
from sigline.trainer.recipes import vit_22b, vit_s16


def config() -> TrainConfig:
    """Returns the configuration."""
    base = vit_22b.config()
    return dataclasses.replace(
        base,
        name="vit_parallel_so400m14",
        steps=310_823,
        global_batch_size=4_096,
        image=dataclasses.replace(base.image, classes=21_843, **sizes.sizes("So400m")),
    )


gate = vit_s16.gate
