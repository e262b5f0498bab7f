"""The training configuration; these names are the public ones."""

from sigline.trainer.config.data import DataConfig, RandAugmentConfig
from sigline.trainer.config.loading import (
    is_of_other_package,
    load_gate,
    load_recipe,
    recipe_module,
)
from sigline.trainer.config.objectives import (
    ClassifyConfig,
    DistillConfig,
    ObjectiveConfig,
    PairsConfig,
    SimilarityConfig,
)
from sigline.trainer.config.optimizer import OptimizerConfig, Rules
from sigline.trainer.config.run import RunConfig
from sigline.trainer.config.towers import BlockConfig, ImageTowerConfig, TextTowerConfig
from sigline.trainer.config.train import TrainConfig, from_json, override, tiny

__all__ = [
    "BlockConfig",
    "ClassifyConfig",
    "DataConfig",
    "DistillConfig",
    "ImageTowerConfig",
    "ObjectiveConfig",
    "OptimizerConfig",
    "PairsConfig",
    "RandAugmentConfig",
    "Rules",
    "RunConfig",
    "SimilarityConfig",
    "TextTowerConfig",
    "TrainConfig",
    "from_json",
    "is_of_other_package",
    "load_gate",
    "load_recipe",
    "override",
    "recipe_module",
    "tiny",
]
