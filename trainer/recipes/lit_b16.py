"""LiT: a text tower learns to read a B/16 image tower that stays as it is (arXiv 2111.07991).

Command: `sigline train --recipe lit_b16 --weights VIT --data ... --vocabulary ... --output ...`

The image tower comes from `--weights`: an AugReg ViT-B/16 with a class token, brought in by
`sigline weights import B_16.npz --drop 'img/(head|pre_logits)/.*' --output VIT`. It has no
gradient, no optimizer state, no decay and no dropout. It may embed the images once, before:
`sigline data embed --recipe lit_b16 --weights VIT --data EXAMPLES --output EMBEDDED`, and then the
same command on `EMBEDDED/Split-train`. Batch, steps, rate and decay are those of the public LiT
configuration; its text tower is a BERT, this one is a Base transformer from scratch.
Expected result: not measured.
"""

from sigline.trainer.config import (
    ImageTowerConfig,
    OptimizerConfig,
    PairsConfig,
    TextTowerConfig,
    TrainConfig,
)
from sigline.trainer.models import sizes


def config() -> TrainConfig:
    """Returns the configuration."""
    return TrainConfig(
        name="lit_b16",
        steps=5_000,
        global_batch_size=4_096,
        image=ImageTowerConfig(size=224, patch=16, pool="tok", **sizes.sizes("B")),
        text=TextTowerConfig(length=16, **sizes.sizes("B")),
        objectives=(PairsConfig(loss="softmax"),),
        optimizer=OptimizerConfig(
            rates=(("image/.*", None), (".*", 1.0)),
            weight_decay=1e-2,
            beta_2=0.999,
            warmup_steps=150,
        ),
        pretrained=("image/.*",),
    )
