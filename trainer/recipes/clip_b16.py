"""CLIP B/16 at 224 pixels: softmax loss, class token, causal text (arXiv 2103.00020, section 2).

Command: `sigline train --recipe clip_b16 --data ... --vocabulary ... --output ...`

The published towers, rate, decay and batch; the baseline of the SigLIP recipes, and so with their
vocabulary, resizing and precision of the image in [-1, 1]. The rate of the temperature is the same
and it has no limit. Expected result: not measured.
"""

from sigline.trainer.config import (
    BlockConfig,
    ImageTowerConfig,
    OptimizerConfig,
    PairsConfig,
    SimilarityConfig,
    TextTowerConfig,
    TrainConfig,
)
from sigline.trainer.models import sizes

# Id of the end of a text in the vocabularies that sigline trains.
_END_OF_TEXT = 1


def config() -> TrainConfig:
    """Returns the configuration."""
    block = BlockConfig(activation="quick_gelu", norm_epsilon=1e-5)
    return TrainConfig(
        name="clip_b16",
        # 32 epochs of 400 million pairs.
        steps=390_625,
        global_batch_size=32_768,
        image=ImageTowerConfig(
            size=224,
            patch=16,
            pool="tok",
            embedding_norm=True,
            patch_bias=False,
            projection=512,
            projection_bias=False,
            block=block,
            **sizes.sizes("B"),
        ),
        text=TextTowerConfig(
            length=77,
            width=512,
            depth=12,
            mlp_dim=2048,
            num_heads=8,
            pool="end",
            end_id=_END_OF_TEXT,
            causal=True,
            head_bias=False,
            block=block,
        ),
        objectives=(PairsConfig(loss="softmax"),),
        similarity=SimilarityConfig(temperature_init=1 / 0.07),
        # A decay of 0.2 in PyTorch's convention is 0.2 times the rate here.
        optimizer=OptimizerConfig(
            learning_rate=5e-4,
            weight_decay=1e-4,
            beta_2=0.98,
            epsilon=1e-6,
            clip_norm=None,
            warmup_steps=2_000,
        ),
    )
