"""Optimizers and schedules as functions of tensors, with big_vision's conventions.

An optimizer keeps named slots a parameter, and turns a gradient into a direction. What all share,
the rate, the decay and the schedule, is `make_update`.
"""

import functools
import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import tensorflow as tf

from sigline.trainer.config import OptimizerConfig, Rules, TrainConfig

Slots = Mapping[str, tf.Tensor]

# Adafactor: axes shorter than the first are not factored; the second is added to squared gradients.
_LEAST_FACTORED_DIM = 32
_ADAFACTOR_EPSILON = 1e-30


def schedule(step: tf.Tensor, *, config: OptimizerConfig, total_steps: int) -> tf.Tensor:
    """Returns the factor of rate and decay: warm-up, then the schedule, then a cooldown.

    Args:
        step: Scalar, steps done so far; the first step has factor 0 if there is a warm-up.
        config: Names the schedule.
        total_steps: Steps of the whole run.

    Returns:
        A factor in [0, 1], a float32 scalar.
    """
    step = tf.cast(step, tf.float32)
    warmup, cooldown = float(config.warmup_steps), float(config.cooldown_steps)
    progress = tf.clip_by_value((step - warmup) / max(total_steps - warmup, 1.0), 0.0, 1.0)
    if config.schedule == "cosine":
        factor = 0.5 * (1.0 + tf.cos(math.pi * progress))
    elif config.schedule == "linear":
        factor = 1.0 - progress
    elif config.schedule == "rsqrt":
        factor = tf.math.rsqrt(1.0 + tf.maximum(step - warmup, 0.0) / config.timescale)
    else:
        factor = tf.ones([])
    if warmup:
        factor *= tf.minimum(1.0, step / warmup)
    if cooldown:
        factor *= tf.clip_by_value((total_steps - step) / cooldown, 0.0, 1.0)
    return factor


def matched(rules: Rules, names: Iterable[str]) -> dict[str, Any]:
    """Returns what the rules give to each name, that of the first pattern it matches as a whole.

    Raises:
        ValueError: If a name matches no pattern; the message lists all such names.
    """
    value_by_name, missing = {}, []
    for name in names:
        values = (value for pattern, value in rules if re.fullmatch(pattern, name))
        try:
            value_by_name[name] = next(values)
        except StopIteration:
            missing.append(name)
    if missing:
        raise ValueError(
            f"No pattern matches {', '.join(missing)}. Received: {[p for p, _ in rules]}. "
            'Add a last pattern ".*".'
        )
    return value_by_name


def clip_by_global_norm(
    gradients: Mapping[str, tf.Tensor], norm: tf.Tensor, clip_norm: float | None
) -> dict[str, tf.Tensor]:
    """Scales gradients of a joint norm so that it is at most `clip_norm`.

    Gradients must be summed over replicas before: Keras clips each replica's part by itself.
    """
    if clip_norm is None:
        return dict(gradients)
    scale = clip_norm / tf.maximum(norm, clip_norm)
    return {name: gradient * scale for name, gradient in gradients.items()}


def shapes(parameters: Mapping[str, Any], config: TrainConfig) -> dict[str, tuple[int, ...]]:
    """Returns the shapes in which the optimizer sees parameters.

    Adafactor factors the two largest axes, so what it does depends on how many there are. It sees
    projections of attention by heads and patches by rows, columns and channels, as big_vision
    keeps them; the rest, and all of it for other optimizers, is seen as it is.

    Args:
        parameters: Shapes by name.
        config: The configuration, for the heads and the side of a patch.
    """
    own_shapes = {name: tuple(shape) for name, shape in parameters.items()}
    if config.optimizer.name != "adafactor":
        return own_shapes
    return {name: _shape_by_heads(name, shape, config) for name, shape in own_shapes.items()}


def _shape_by_heads(name: str, shape: tuple[int, ...], config: TrainConfig) -> tuple[int, ...]:
    if name == "image/embedding/kernel":
        return (config.image.patch, config.image.patch, 3, shape[-1])
    match = re.fullmatch(r"(image|text)/.*attention/(query|key|value|out)/(kernel|bias)", name)
    if match is None:
        return shape
    # The width of all heads is the last axis of query, key and value, and the first of the output.
    heads = (config.image if match[1] == "image" else config.text_tower).num_heads
    if match[2] != "out":
        return (*shape[:-1], heads, shape[-1] // heads)
    return (heads, shape[0] // heads, shape[1]) if match[3] == "kernel" else shape


def make_update(
    factor: tf.Tensor, step: tf.Tensor, *, config: OptimizerConfig
) -> Callable[..., tuple[tf.Tensor, Slots]]:
    """Returns what changes each parameter in one update; see `OptimizerConfig` for the formula.

    What is the same for all parameters is computed here, once. All is computed in float32,
    whatever the slots are stored in.

    Args:
        factor: The schedule's factor for this step.
        step: Scalar, steps done before this one.
        config: The configuration.
    """
    # Updates are counted from one: at zero the corrections of the bias would divide by zero.
    direct = _OPTIMIZERS[config.name].direct(tf.cast(step, tf.float32) + 1.0, config)
    # Equal constants are one operation, not one for each parameter.
    constant = functools.cache(_constant)

    def update(
        value: tf.Tensor,
        slots: Slots,
        gradient: tf.Tensor,
        *,
        rate: float,
        decay: float,
        shape: tuple[int, ...] | None = None,
    ) -> tuple[tf.Tensor, Slots]:
        """Returns a parameter and its slots after the update.

        Args:
            value: The parameter.
            slots: What the optimizer keeps of it; see `slot_specs`.
            gradient: Its gradient, summed over replicas and clipped.
            rate: Factor of the learning rate for this parameter.
            decay: Factor of the weight decay for this parameter.
            shape: That of `shapes`, which the slots are made for; the parameter's own by default.
        """
        gradient = tf.cast(gradient, tf.float32)
        optimizer_shape = tuple(value.shape) if shape is None else shape
        reshaped = optimizer_shape != tuple(value.shape)
        direction, new = direct(
            tf.reshape(gradient, optimizer_shape) if reshaped else gradient,
            {name: tf.cast(slot, tf.float32) for name, slot in slots.items()},
        )
        if reshaped:
            direction = tf.reshape(direction, value.shape)
        change = constant(config.learning_rate * rate) * direction
        if decay:
            change += constant(config.weight_decay * decay) * tf.cast(value, tf.float32)
        # Cast once, at the end: a narrower type would round every term of the formula.
        value -= tf.cast(factor * change, value.dtype)
        return value, {name: tf.cast(new[name], slot.dtype) for name, slot in slots.items()}

    return update


def _constant(number: float) -> tf.Tensor:
    return tf.constant(number, tf.float32)


def _constants(*numbers: float) -> Iterable[tf.Tensor]:
    return map(_constant, numbers)


def slot_specs(shape: Any, config: OptimizerConfig) -> dict[str, tf.TensorSpec]:
    """Returns shapes and types of the slots that the optimizer keeps for a parameter.

    Args:
        shape: The shape in which the optimizer sees it; see `shapes`.
        config: Names the optimizer.
    """
    first_dtype = tf.as_dtype(config.first_moment_dtype)
    return {
        name: tf.TensorSpec(size, first_dtype if name == "first" else tf.float32)
        for name, size in _OPTIMIZERS[config.name].slots(tuple(shape)).items()
    }


def make_slots(
    parameters: Mapping[str, tf.Variable], config: TrainConfig
) -> dict[str, dict[str, tf.Variable]]:
    """Returns slots at zero as variables, by parameter; under a strategy, call it in its scope."""
    optimizer_shapes = shapes({name: value.shape for name, value in parameters.items()}, config)
    return {
        name: {
            slot: tf.Variable(tf.zeros(spec.shape, spec.dtype), trainable=False)
            for slot, spec in slot_specs(shape, config.optimizer).items()
        }
        for name, shape in optimizer_shapes.items()
    }


# Returns the direction and new slots from a gradient and slots.
_Direct = Callable[[Any, Slots], tuple[tf.Tensor, dict[str, tf.Tensor]]]


class _Optimizer(NamedTuple):
    """How to make an update of a gradient.

    Attributes:
        slots: Returns the shapes of the slots of a parameter of some shape.
        direct: Returns what gives the directions of one update, from the number of this update,
            counted from one, and the configuration.
    """

    slots: Callable[[tuple[int, ...]], dict[str, tuple[int, ...]]]
    direct: Callable[[tf.Tensor, OptimizerConfig], _Direct]


def _adamw(count: tf.Tensor, config: OptimizerConfig) -> _Direct:
    """Adam's direction, bias-corrected (arXiv 1412.6980, 1711.05101)."""
    beta_1, new_1 = _constants(config.beta_1, 1.0 - config.beta_1)
    beta_2, new_2 = _constants(config.beta_2, 1.0 - config.beta_2)
    correction_1, correction_2 = 1.0 - tf.pow(beta_1, count), 1.0 - tf.pow(beta_2, count)
    epsilon = _constant(config.epsilon)

    def direct(gradient, slots):
        first = beta_1 * slots["first"] + new_1 * gradient
        second = beta_2 * slots["second"] + new_2 * gradient * gradient
        root = tf.sqrt(second / correction_2) + epsilon
        return first / correction_1 / root, {"first": first, "second": second}

    return direct


def _lion(count: tf.Tensor, config: OptimizerConfig) -> _Direct:
    """The sign of a mixture of momentum and gradient (arXiv 2302.06675, algorithm 2)."""
    del count
    beta_1, new_1 = _constants(config.beta_1, 1.0 - config.beta_1)
    beta_2, new_2 = _constants(config.beta_2, 1.0 - config.beta_2)

    def direct(gradient, slots):
        momentum = slots["first"]
        # The direction mixes by `beta_1`, the momentum that is kept decays by `beta_2`.
        direction = tf.sign(beta_1 * momentum + new_1 * gradient)
        return direction, {"first": beta_2 * momentum + new_2 * gradient}

    return direct


def _adafactor(count: tf.Tensor, config: OptimizerConfig) -> _Direct:
    """Adafactor without its own rate, scaling and clipping, with momentum (arXiv 2106.04560).

    The two largest axes are factored, if both are of 32 at least: the second moment of a matrix is
    the product of its rows' and its columns' means (arXiv 1804.04235). Its decay grows to `beta_2`.
    The momentum is not bias-corrected.
    """
    beta_1, new_1 = _constants(config.beta_1, 1.0 - config.beta_1)
    # At the first update this is 0: the second moment begins as the squared gradient itself, so
    # that it needs no correction of its bias.
    beta_2 = tf.minimum(config.beta_2, 1.0 - tf.pow(count, -0.8))
    new_2, epsilon = 1.0 - beta_2, _constant(_ADAFACTOR_EPSILON)

    def direct(gradient, slots):
        squared = gradient * gradient + epsilon
        new: dict[str, Any] = {}
        if "second" in slots:
            new["second"] = beta_2 * slots["second"] + new_2 * squared
            scaled = gradient * tf.math.rsqrt(new["second"])
        else:
            # For two axes of n and m, n + m means are kept in place of n * m moments. Their outer
            # product over the mean of all is the rank-one estimate with the least I-divergence.
            larger, smaller = _factored_axes(gradient.shape)
            rows, columns = tf.reduce_mean(squared, larger), tf.reduce_mean(squared, smaller)
            new["rows"] = beta_2 * slots["rows"] + new_2 * rows
            new["columns"] = beta_2 * slots["columns"] + new_2 * columns
            # Rows lack the larger axis, and the axes behind it have moved up.
            axis = smaller - (smaller > larger)
            mean = tf.reduce_mean(new["rows"], axis, keepdims=True)
            # One factor after the other: the matrix of the estimate itself is never made.
            scaled = gradient * tf.expand_dims(tf.math.rsqrt(new["rows"] / mean), larger)
            scaled *= tf.expand_dims(tf.math.rsqrt(new["columns"]), smaller)
        new["first"] = beta_1 * slots["first"] + new_1 * scaled
        return new["first"], new

    return direct


def _adafactor_slots(shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    if len(shape) < 2 or sorted(shape)[-2] < _LEAST_FACTORED_DIM:
        return {"first": shape, "second": shape}
    larger, smaller = _factored_axes(shape)
    rows = tuple(size for axis, size in enumerate(shape) if axis != larger)
    columns = tuple(size for axis, size in enumerate(shape) if axis != smaller)
    return {"first": shape, "rows": rows, "columns": columns}


def _factored_axes(shape: Iterable[int]) -> tuple[int, int]:
    """Returns the axes of the largest and of the second largest size."""
    # The sort is stable: of equal axes the later one counts as larger. The slots in checkpoints
    # rely on it.
    order = sorted(enumerate(shape), key=lambda item: item[1])
    return order[-1][0], order[-2][0]


_OPTIMIZERS = {
    "adamw": _Optimizer(lambda shape: {"first": shape, "second": shape}, _adamw),
    "lion": _Optimizer(lambda shape: {"first": shape}, _lion),
    "adafactor": _Optimizer(_adafactor_slots, _adafactor),
}
