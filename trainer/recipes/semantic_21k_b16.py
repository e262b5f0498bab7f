"""ViT-B/16 on ImageNet-21K-P by a softmax for each level of its classes (arXiv 2104.10972).

Command: `sigline train --recipe semantic_21k_b16 --labels classes.json --data ... --output ...`

The records' `label` holds the classes: 11,221, those of ImageNet-21k that have enough images. They
are a tree, which the label set must hold, in a pipeline the `classes.json` of its input: `names`,
such as WordNet ids, and `parents`, for each class the id of the class above it, or -1 at the top.
Without it the recipe refuses to train. A label stands for its class and all classes above it, and
each level has a softmax of its own with a smoothing of 0.2.

Rate, batch, decay, warm-up over a tenth of 80 epochs of 11,797,632 images, and whole pictures that
are squashed to 224 pixels are those of the authors' repository. Unlike there, the deepest level
counts (`trainer/losses/semantic_softmax.py`), the rate starts at 0, not at a twentieth, and
RandAugment is AugReg's, whose operations have Cutout among them, in place of a Cutout of half the
side for every picture. The distillation that the paper adds is left out. Expected result: from the
authors' repository, not measured here: a semantic top-1 accuracy of 77.6 %, and 84.4 % on ImageNet
after fine-tuning.
"""

from sigline.trainer.config import (
    ClassifyConfig,
    DataConfig,
    ImageTowerConfig,
    OptimizerConfig,
    RandAugmentConfig,
    TrainConfig,
)
from sigline.trainer.models import sizes
from sigline.trainer.recipes import vit_s16


def config() -> TrainConfig:
    """Returns the configuration."""
    return TrainConfig(
        name="semantic_21k_b16",
        steps=1_843_380,
        global_batch_size=512,
        image=ImageTowerConfig(size=224, patch=16, pool="tok", classes=11_221, **sizes.sizes("B")),
        text=None,
        objectives=(ClassifyConfig(loss="semantic", smoothing=0.2),),
        optimizer=OptimizerConfig(
            learning_rate=3e-4,
            # 1e-4 in the convention of PyTorch.
            weight_decay=3e-8,
            beta_2=0.999,
            clip_norm=None,
            warmup_steps=184_338,
        ),
        data=DataConfig(randaugment=RandAugmentConfig(layers=2, magnitude=10)),
    )


gate = vit_s16.gate
