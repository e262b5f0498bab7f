"""SigLIP for a first run on a few thousand pairs of one's own, on a CPU or one GPU.

Command: `sigline run --environment my.yaml` with `recipe: siglip_small`.

The method is `siglip_base`'s (arXiv 2303.15343) with small towers. Expected result: see the README's
example on the Noto emoji.
"""

import dataclasses

from sigline.schemas.gate import Gate
from sigline.trainer.config import LossConfig, TrainConfig
from sigline.trainer.recipes import siglip_demo


def config() -> TrainConfig:
    """Returns the configuration."""
    base = siglip_demo.config()
    return dataclasses.replace(
        base,
        name="siglip_small",
        steps=400,
        global_batch_size=128,
        image=dataclasses.replace(base.image, size=64),
        text=dataclasses.replace(base.text, vocabulary_size=4096),
        loss=LossConfig(bias_init=-4.85),
    )


def gate() -> Gate:
    """Returns what a model must reach: to retrieve clearly better than chance."""
    return Gate(
        above_chance={
            "image_to_text_recall@10": ("image_to_text_chance@10", 2.0),
            "text_to_image_recall@10": ("text_to_image_chance@10", 2.0),
        },
        max_drop={"text_to_image_recall@10": 0.02},
    )
