"""What a training step changes."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import tensorflow as tf

from sigline.trainer.config import TrainConfig
from sigline.trainer.objectives.base import Tensors
from sigline.trainer.training import optimizers


class TrainState(NamedTuple):
    """What a step changes.

    Attributes:
        parameters: All parameters of the model, frozen ones too.
        slots: What the optimizer keeps of those that are trained, by parameter and slot.
        ema: Moving averages of those that are trained; empty if none are kept.
        step: Scalar, steps done.
        skipped: Shape `(2,)`: how many of them changed nothing because loss or gradient was not
            finite, and the number of the first such step.
        extras: What objectives keep without a gradient, by objective and name; equal on all
            replicas.
    """

    parameters: Tensors
    slots: Mapping[str, Tensors]
    ema: Tensors
    step: tf.Tensor
    skipped: tf.Tensor
    extras: Mapping[str, Tensors] = {}


def trained_names(names: Iterable[str], config: TrainConfig) -> list[str]:
    """Returns the names of the parameters that training changes; see `OptimizerConfig.rates`."""
    rates = optimizers.matched(config.optimizer.rates, names)
    return [name for name, rate in rates.items() if rate is not None]
