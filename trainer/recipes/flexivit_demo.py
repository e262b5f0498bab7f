"""FlexiViT small enough for two CPU cores: the labels of scenes at three grids (arXiv 2212.08013).

Command: `sigline train --recipe flexivit_demo --data ... --output ...`

The method is `flexivit_s16`'s; width, depth and resolution are cut until scenes train in minutes:
the kernel that is stored is of 8 x 8 pixels, the positions are of 4 x 4 patches, and steps draw
2 x 2, 4 x 4 or 8 x 8 patches. Scenes need no augmentation, and have 36 classes; those of two
objects have none and are skipped.

Expected result: 96.2, 95.1 and 96.4 % of 1,000 new scenes at 2 x 2, 4 x 4 and 8 x 8 patches, chance
2.8 %, trained on 4,000 scenes in 219 s of CPU time (one seed, 2 virtual cores of an Intel Xeon,
2026-11-30); 71.2, 73.8 and 81.2 % after half the steps.
"""

import dataclasses

from sigline.schemas.gate import Gate
from sigline.trainer.config import ClassifyConfig, DataConfig, RunConfig, TrainConfig
from sigline.trainer.recipes import flexivit_s16


def config() -> TrainConfig:
    """Returns the configuration."""
    base = flexivit_s16.config()
    return dataclasses.replace(
        base,
        name="flexivit_demo",
        steps=1_800,
        global_batch_size=64,
        image=dataclasses.replace(
            base.image,
            size=32,
            patch=8,
            grids=(2, 4, 8),
            position_grid=4,
            default_grid=8,
            width=72,
            depth=3,
            mlp_dim=288,
            num_heads=3,
            classes=36,
            # Minus the logarithm of the number of classes.
            head_bias_init=-3.6,
        ),
        objectives=(ClassifyConfig(loss="sigmoid", unlabelled="skip"),),
        optimizer=dataclasses.replace(base.optimizer, learning_rate=1.5e-3, warmup_steps=100),
        data=DataConfig(shuffle_records=4_096),
        # Compiled, a step is quicker; each grid is compiled for itself.
        run=RunConfig(checkpoint_steps=200, log_steps=25, jit_compile=True, strategy="one_device"),
    )


def gate() -> Gate:
    """Returns what a model must reach at every grid.

    It reached 0.95 at the worst of them; the limit leaves room for other data and processors.
    """
    return Gate(
        maximum={"leaked_share": 0.0},
        slice_minimum={"classification_accuracy": {"grid": 0.75}},
        max_drop={"classification_accuracy": 0.03},
    )
