"""SigLIP for a first run on a few thousand pairs of one's own, on a CPU or one GPU.

Command: `sigline run --environment my.yaml` with `recipe: siglip_small`.

The method is `siglip_b16`'s (arXiv 2303.15343) with small towers. Expected result: see the
README's example on the Noto emoji.
"""

import dataclasses

from sigline.schemas.gate import Gate
from sigline.trainer.config import ImageTowerConfig, RunConfig, TextTowerConfig, TrainConfig
from sigline.trainer.recipes import siglip_demo


def config() -> TrainConfig:
    """Returns the configuration."""
    base = siglip_demo.config()
    return dataclasses.replace(
        base,
        name="siglip_small",
        steps=400,
        global_batch_size=128,
        image=ImageTowerConfig(size=64, patch=8, width=96, depth=3, mlp_dim=384, num_heads=3),
        text=TextTowerConfig(
            vocabulary_size=4096, length=16, width=96, depth=3, mlp_dim=384, num_heads=3
        ),
        optimizer=dataclasses.replace(base.optimizer, warmup_steps=40),
        run=RunConfig(checkpoint_steps=100, log_steps=25),
    )


def gate() -> Gate:
    """Returns what a model must reach: to retrieve clearly better than chance."""
    return Gate(
        maximum={"leaked_share": 0.0},
        above_chance={
            "image_to_text_recall@10": 2.0,
            "text_to_image_recall@10": 2.0,
        },
        max_drop={"text_to_image_recall@10": 0.02},
    )
