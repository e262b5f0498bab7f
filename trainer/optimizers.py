"""AdamW and its schedule as functions of tensors, with big_vision's conventions."""

import functools
import math

import tensorflow as tf

from sigline.trainer.config import OptimizerConfig


def schedule(step: tf.Tensor, *, config: OptimizerConfig, total_steps: int) -> tf.Tensor:
    """Linear warm-up from 0 to 1, then a cosine to 0.

    Args:
        step: Scalar, steps done so far; the first step has factor 0 if there is a warm-up.
        config: For `warmup_steps`.
        total_steps: Steps of the whole run.

    Returns:
        A factor in [0, 1], a float32 scalar.
    """
    step = tf.cast(step, tf.float32)
    warmup = float(config.warmup_steps)
    progress = tf.clip_by_value((step - warmup) / max(total_steps - warmup, 1.0), 0.0, 1.0)
    cosine = 0.5 * (1.0 + tf.cos(math.pi * progress))
    return cosine * tf.minimum(1.0, step / warmup) if warmup else cosine


def decays(name: str) -> bool:
    """Whether weight decay applies to a variable: only to the kernels of projections."""
    return name.split("/")[-1] == "kernel"


def clip_by_global_norm(
    gradients: list[tf.Tensor], clip_norm: float
) -> tuple[list[tf.Tensor], tf.Tensor]:
    """Scales gradients so that their joint norm is at most `clip_norm`; returns the norm as well.

    Gradients must be summed over replicas before: Keras clips each replica's part by itself.
    """
    norm = tf.linalg.global_norm(gradients)
    scale = clip_norm / tf.maximum(norm, clip_norm)
    return [gradient * scale for gradient in gradients], norm


class AdamW:
    """AdamW over named variables; the slots are float32 variables of their own.

    The update is `-s * (learning_rate * u + weight_decay * p)` for schedule factor s, Adam's
    direction u (bias-corrected) and parameter p: the decay is multiplied by the schedule but not by
    the rate, and touches kernels only. So `weight_decay=1e-4` at `learning_rate=1e-3` is 0.1 in the
    convention of Keras and PyTorch.

    Source: arXiv 1711.05101; big_vision `optax.py`.
    """

    def __init__(self, variables: dict[str, tf.Variable], config: OptimizerConfig):
        """Creates the slots; under a strategy, call this inside its scope."""
        self.variables = variables
        self.config = config
        self.first = {name: _slot(value) for name, value in variables.items()}
        self.second = {name: _slot(value) for name, value in variables.items()}

    def apply(self, gradients: dict[str, tf.Tensor], *, factor: tf.Tensor, step: tf.Tensor) -> None:
        """Updates all variables; call it in replica context.

        Args:
            gradients: The gradient of each variable, summed over replicas and clipped.
            factor: The schedule's factor for this step.
            step: Scalar, steps done before this one.
        """
        count = tf.cast(step, tf.float32) + 1.0
        context = tf.distribute.get_replica_context()
        context.merge_call(self._apply_everywhere, args=(gradients, factor, count))

    def _apply_everywhere(self, strategy, gradients, factor, count) -> None:
        for name, variable in self.variables.items():
            update = functools.partial(self._update, decay=decays(name))
            slots = self.first[name], self.second[name]
            arguments = (*slots, gradients[name], factor, count)
            strategy.extended.update(variable, update, args=arguments, group=False)

    def _update(self, variable, first, second, gradient, factor, count, *, decay: bool) -> None:
        beta_1, beta_2 = self.config.beta_1, self.config.beta_2
        gradient = tf.cast(gradient, tf.float32)
        first.assign(beta_1 * first + (1.0 - beta_1) * gradient)
        second.assign(beta_2 * second + (1.0 - beta_2) * gradient * gradient)
        mean = first / (1.0 - tf.pow(beta_1, count))
        root = tf.sqrt(second / (1.0 - tf.pow(beta_2, count))) + self.config.epsilon
        change = self.config.learning_rate * mean / root
        if decay:
            change += self.config.weight_decay * tf.cast(variable, tf.float32)
        variable.assign_sub(tf.cast(factor * change, variable.dtype))


def _slot(variable: tf.Variable) -> tf.Variable:
    return tf.Variable(tf.zeros(variable.shape, tf.float32), trainable=False)
