"""AdamW and its schedule as functions of tensors, with big_vision's conventions."""

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


def adamw(
    value: tf.Tensor,
    first: tf.Tensor,
    second: tf.Tensor,
    gradient: tf.Tensor,
    *,
    factor: tf.Tensor,
    step: tf.Tensor,
    decay: bool,
    config: OptimizerConfig,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Returns a parameter and its two moments after one update of AdamW.

    The update is `-s * (learning_rate * u + weight_decay * p)` for schedule factor s, Adam's
    direction u (bias-corrected) and parameter p: the decay is multiplied by the schedule but not by
    the rate. So `weight_decay=1e-4` at `learning_rate=1e-3` is 0.1 in the convention of Keras and
    PyTorch. All is computed in float32, whatever the moments are stored in.

    Args:
        value: The parameter p.
        first: Its first moment.
        second: Its second moment.
        gradient: Its gradient, summed over replicas and clipped.
        factor: The schedule's factor for this step.
        step: Scalar, steps done before this one.
        decay: Whether weight decay applies; see `decays`.
        config: The rest.

    Source: arXiv 1711.05101; big_vision `optax.py`.
    """
    count = tf.cast(step, tf.float32) + 1.0
    beta_1, beta_2 = config.beta_1, config.beta_2
    gradient = tf.cast(gradient, tf.float32)
    new_first = beta_1 * tf.cast(first, tf.float32) + (1.0 - beta_1) * gradient
    new_second = beta_2 * second + (1.0 - beta_2) * gradient * gradient
    mean = new_first / (1.0 - tf.pow(beta_1, count))
    root = tf.sqrt(new_second / (1.0 - tf.pow(beta_2, count))) + config.epsilon
    change = config.learning_rate * mean / root
    if decay:
        change += config.weight_decay * tf.cast(value, tf.float32)
    value -= tf.cast(factor * change, value.dtype)
    return value, tf.cast(new_first, first.dtype), new_second


class Moments:
    """The moments of AdamW as variables, by the name of the parameter."""

    def __init__(self, parameters: dict[str, tf.Variable], config: OptimizerConfig):
        """Creates them at zero; under a strategy, call this inside its scope."""
        first_dtype = tf.as_dtype(config.first_moment_dtype)
        self.first = {name: _slot(value, first_dtype) for name, value in parameters.items()}
        self.second = {name: _slot(value, tf.float32) for name, value in parameters.items()}


def _slot(variable: tf.Variable, dtype: tf.DType) -> tf.Variable:
    return tf.Variable(tf.zeros(variable.shape, dtype), trainable=False)
