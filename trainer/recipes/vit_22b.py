"""ViT-22B on labels, which this stack cannot train: its block and its sizes (arXiv 2302.05442).

Command: `sigline train --recipe vit_22b --data ... --output ...`, which refuses to start where the
memory is known to be too small: with AdamW and first moments in bfloat16 the state takes 10 bytes a
parameter, 208.5 GiB on each replica, where a TPU v4 has 32. The authors shard the model over chips;
`tf.distribute` cannot, and Keras's `ModelParallel` leaves each variable on one device under
TensorFlow. The recipe is there to be read and counted (`models.specs`), is tested at a small size,
and `vit_parallel_so400m14` is made of it.

Attention and MLP read the same norm, side by side; queries and keys are normalised by heads;
projections to queries, keys and values have no bias; norms have none either and do not centre, and
the pool is an attention pool. The decay is 3 on the head and 0.03 on the other kernels, times the
rate. Batch, steps, rate and schedule are as the paper is quoted; big_vision's configuration of
ViT-g has the same groups of decay. The data, 4 billion pictures of about 30,000 classes, are not
public. Crops, flips, the sigmoid loss with a bias of -10 and AdamW are big_vision's habits, not
read in the paper. Expected result: from the paper, not measured here: 89.5 % on ImageNet by a
linear probe of the frozen tower.
"""

from sigline.trainer.config import (
    BlockConfig,
    ClassifyConfig,
    DataConfig,
    ImageTowerConfig,
    OptimizerConfig,
    TrainConfig,
)
from sigline.trainer.models import sizes


def config() -> TrainConfig:
    """Returns the configuration."""
    rate = 1e-3
    return TrainConfig(
        name="vit_22b",
        steps=177_000,
        global_batch_size=65_536,
        image=ImageTowerConfig(
            size=224,
            patch=14,
            pool="map",
            classes=30_000,
            head_bias_init=-10.0,
            resize="crop_rounded",
            resize_ratio=0.875,
            interpolation="area",
            block=BlockConfig(
                parallel=True, qk_norm=True, qkv_bias=False, norm="rms", norm_bias=False
            ),
            **sizes.sizes("22B"),
        ),
        text=None,
        objectives=(ClassifyConfig(loss="sigmoid"),),
        optimizer=OptimizerConfig(
            learning_rate=rate,
            weight_decay=0.03 * rate,
            decays=(("image/head/kernel", 100.0), (".*/kernel", 1.0), (".*", 0.0)),
            beta_2=0.999,
            schedule="rsqrt",
            timescale=10_000,
            warmup_steps=10_000,
            cooldown_steps=30_000,
            first_moment_dtype="bfloat16",
        ),
        data=DataConfig(crop_min_area=0.05, flip=True),
        precision="bfloat16",
        rematerialize=True,
    )
