"""Names and shapes of a model's parameters, without making them."""

import dataclasses
import functools

import tensorflow as tf

from sigline.trainer.config import DataConfig, OptimizerConfig, RunConfig, TrainConfig
from sigline.trainer.models import two_tower


def parameter_specs(config: TrainConfig) -> dict[str, tf.TensorSpec]:
    """Returns shape and type of each parameter, by the names of `named_parameters` and in order.

    Nothing is allocated, so that the largest models can be planned on a small machine.

    Args:
        config: The configuration.
    """
    # The parameters depend on the towers alone; equal settings of the rest share one entry.
    others = {"data": DataConfig(), "optimizer": OptimizerConfig(), "run": RunConfig()}
    return dict(_specs(dataclasses.replace(config, name="", steps=1, seed=0, **others)))


@functools.lru_cache(maxsize=64)
def _specs(config: TrainConfig) -> dict[str, tf.TensorSpec]:
    # A graph makes its variables when it runs, and this one never does.
    with tf.Graph().as_default():
        parameters = two_tower.named_parameters(two_tower.build(config))
        return {name: tf.TensorSpec(x.shape, x.dtype) for name, x in parameters.items()}
