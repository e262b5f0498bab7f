"""ViT-B/16 that predicts the hashtags of pictures, weakly supervised (arXiv 1805.00932).

Command: `sigline train --recipe hashtags_b16 --data ... --output ...`

The records' `label` holds the ids of an image's hashtags, at most 32: 17,000 of them here, and
`--set image.classes=N` for others. As in the paper the loss is softmax cross-entropy, and each of k
hashtags has a target of 1/k; crops and flips are random, and the head is one linear layer. Left out
is the resampling of images by how rare their hashtags are, copies of an image by the square root of
the inverse frequency of its rarest one: `sigline data select` chooses records, and repeats none.
The network is a ViT, not a ResNeXt, and therefore trained by AdamW with a cosine, not by SGD with a
rate in steps. The batch is 8,192, there 8,064; the steps are one pass of 3.5 billion images.
Expected result: not measured; from the paper for its largest ResNeXt: 85.4 % on ImageNet after
fine-tuning.
"""

import dataclasses

from sigline.trainer.config import ClassifyConfig, DataConfig, TrainConfig
from sigline.trainer.models import sizes
from sigline.trainer.recipes import vit_s16


def config() -> TrainConfig:
    """Returns the configuration."""
    base = vit_s16.config()
    return dataclasses.replace(
        base,
        name="hashtags_b16",
        steps=427_246,
        global_batch_size=8_192,
        image=dataclasses.replace(base.image, classes=17_000, **sizes.sizes("B")),
        objectives=(ClassifyConfig(labels_per_image=32),),
        data=DataConfig(crop_min_area=0.08, flip=True),
    )


gate = vit_s16.gate
