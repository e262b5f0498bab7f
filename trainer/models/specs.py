"""Names and shapes of a model's parameters, without making them."""

import tensorflow as tf

from sigline.trainer.config import TrainConfig
from sigline.trainer.models import two_tower


def parameter_specs(config: TrainConfig) -> dict[str, tf.TensorSpec]:
    """Returns shape and type of each parameter, by the names of `named_parameters` and in order.

    Nothing is allocated, so that the largest models can be planned on a small machine.

    Args:
        config: The configuration.
    """
    # A graph makes its variables when it runs, and this one never does.
    with tf.Graph().as_default():
        parameters = two_tower.named_parameters(two_tower.build(config))
        return {name: tf.TensorSpec(x.shape, x.dtype) for name, x in parameters.items()}
