"""One training step as a pure function of tensors, the same on every device.

The loop runs it on variables under a strategy. Since it touches no variable itself, it can also be
compiled ahead of time for a device that is not there.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from sigline.trainer.config import TrainConfig
from sigline.trainer.inputs import preprocess
from sigline.trainer.losses.collectives import Exchange, exchange_for_context
from sigline.trainer.models import transformer
from sigline.trainer.models.two_tower import TwoTower, named_parameters
from sigline.trainer.objectives import combined
from sigline.trainer.objectives.combined import Tensors
from sigline.trainer.objectives.teachers import Teacher, look
from sigline.trainer.objectives.teachers import scalars as teacher_scalars
from sigline.trainer.training import optimizers

# embed(model, inputs, seeds) -> what the losses need of each example, by name.
Embed = Callable[[TwoTower, Tensors, "Seeds"], dict[str, tf.Tensor]]


class TrainState(NamedTuple):
    """What a step changes.

    Attributes:
        parameters: All parameters of the model, frozen ones too.
        slots: What the optimizer keeps of those that are trained, by parameter and slot.
        ema: Moving averages of those that are trained; empty if none are kept.
        step: Scalar, steps done.
        skipped: Shape `(2,)`: how many of them changed nothing because loss or gradient was not
            finite, and the number of the first such step.
    """

    parameters: Tensors
    slots: Mapping[str, Tensors]
    ema: Tensors
    step: tf.Tensor
    skipped: tf.Tensor


class Seeds(NamedTuple):
    """What is dropped in a tower depends on its seed, two integers; nothing is dropped without."""

    image: tf.Tensor | None = None
    text: tf.Tensor | None = None


class StepOutcome(NamedTuple):
    """The loss of a replica, what is logged beside it, and the replica's part of the gradient."""

    scalars: Tensors
    gradients: Tensors


def embed_pixels(model: TwoTower, inputs: Tensors, seeds: Seeds) -> dict[str, tf.Tensor]:
    """Returns unit embeddings, and logits of a head.

    Args:
        model: The model.
        inputs: `image`, pixels in [0, 255] of shape `(batch, size, size, 3)`, and, for a model that
            reads, `text`, tokens of shape `(batch, length)`.
        seeds: Decide what is dropped.
    """
    pixels = preprocess.to_model_range(inputs["image"], model.config.image)
    return model.look(pixels, seeds.image) | _embed_text(model, inputs, seeds)


def embed_precomputed(model: TwoTower, inputs: Tensors, seeds: Seeds) -> dict[str, tf.Tensor]:
    """As `embed_pixels` where `image` holds unit vectors of a frozen image tower."""
    return {"image": inputs["image"]} | _embed_text(model, inputs, seeds)


def _embed_text(model: TwoTower, inputs: Tensors, seeds: Seeds) -> dict[str, tf.Tensor]:
    return {} if model.text is None else {"text": model.embed_text(inputs["text"], seeds.text)}


def forward_backward(
    parameters: Tensors,
    inputs: Tensors,
    step: tf.Tensor,
    taught_by: Mapping[str, Tensors] | None = None,
    *,
    model: TwoTower,
    config: TrainConfig,
    exchange: Exchange | None = None,
    embed: Embed = embed_pixels,
    loss: combined.Loss = combined.configured_loss,
    teachers: Mapping[str, Teacher] | None = None,
) -> StepOutcome:
    """Returns loss and gradients of one replica's part of the batch.

    Args:
        parameters: Values to use in place of the model's own, by their names in `named_parameters`;
            those of a tower that `embed` does not use may be left out.
        inputs: What `embed` takes.
        step: Scalar, steps done; decides what is drawn at random.
        taught_by: Values of the teachers' variables.
        model: Says what to compute; its own values are not read.
        config: The configuration.
        exchange: How replicas meet; by default as the configuration says.
        embed: Turns inputs into unit embeddings.
        loss: Turns the embeddings into the replica's share of the loss over pairs.
        teachers: The teachers that the configuration names.
    """
    if exchange is None:
        exchange = exchange_for_context(config.loss.exchange)
    trained = {name: parameters[name] for name in trained_names(parameters, config)}
    variables = named_parameters(model)
    mapping = [(variables[name], value) for name, value in parameters.items()]
    seeds = _seeds(config, trained, step, exchange)
    if config.data.mixup:
        inputs = _mixed_up(inputs, config, step)

    def embed_part(part, number):
        own = Seeds(*[None if x is None else transformer.fold(x, number) for x in seeds])
        with keras.StatelessScope(state_mapping=mapping):
            return embed(model, part, own)

    def look_at_part(part):
        return look(teachers or {}, taught_by or {}, part)

    def losses_of(said, taught):
        scalars = {name: teacher_scalars(values) for name, values in (taught_by or {}).items()}
        taught = {name: values | scalars[name] for name, values in taught.items()}
        return combined.total(
            said, taught, parameters, step, config=config, exchange=exchange, loss=loss
        )

    if config.microbatches == 1:
        taught = look_at_part(inputs)
        with tf.GradientTape() as tape:
            tape.watch(trained)
            scalars = losses_of(embed_part(inputs, 0), taught)
        gradients = tape.gradient(scalars["loss"], trained)
    else:
        scalars, gradients = _in_parts(
            inputs,
            trained,
            embed_part,
            look_at_part,
            losses_of,
            num_parts=config.microbatches,
        )
    if config.loss.name == "softmax" and gradients.get("bias", 0) is None:
        gradients["bias"] = tf.zeros_like(trained["bias"])
    _check_connected(gradients)
    # The gradient of the token table comes as slices.
    gradients = {name: tf.convert_to_tensor(value) for name, value in gradients.items()}
    return StepOutcome(scalars, gradients)


def _mixed_up(inputs: Tensors, config: TrainConfig, step: tf.Tensor) -> dict[str, tf.Tensor]:
    """Mixes every image with the one before it, as much for all and all views of them."""
    if inputs["image"].shape[0] == 1:
        raise ValueError(
            "data.mixup needs at least two images on each replica. Received: a batch of 1 each"
        )
    seed: Any = tf.stack([tf.constant(config.seed, tf.int32), tf.cast(step, tf.int32)])
    seed = transformer.fold(seed, len(Seeds._fields))
    share = _upper_beta(config.data.mixup, tf.random.stateless_uniform([], seed))

    def mixed(pixels):
        pixels = tf.cast(pixels, tf.float32)
        return share * pixels + (1.0 - share) * tf.roll(pixels, 1, axis=0)

    return {n: mixed(x) if n.split("/")[0] == "image" else x for n, x in inputs.items()}


def _upper_beta(concentration: float, uniform: tf.Tensor) -> tf.Tensor:
    """Returns max(a, 1 - a) of a from Beta(p, p), by the inverse of its distribution.

    XLA has no sampler of Gamma or Beta, but the distribution, which bisection inverts.
    """
    if concentration == 1.0:
        return 0.5 + 0.5 * uniform
    p, target = tf.constant(concentration), 0.5 + 0.5 * uniform

    def halve(low, high):
        middle = 0.5 * (low + high)
        below = tf.math.betainc(p, p, middle) < target
        return tf.where(below, middle, low), tf.where(below, high, middle)

    low, high = tf.while_loop(
        lambda low, high: True,
        halve,
        (tf.constant(0.5), tf.constant(1.0)),
        # As far as float32 tells apart.
        maximum_iterations=24,
    )
    return 0.5 * (low + high)


def _in_parts(
    inputs: Tensors,
    trained: Tensors,
    embed_part: Callable[[Any, Any], dict[str, tf.Tensor]],
    look_at_part: Callable[[Any], dict[str, dict[str, tf.Tensor]]],
    losses_of: Callable[[Any, Any], dict[str, tf.Tensor]],
    *,
    num_parts: int,
) -> tuple[dict[str, tf.Tensor], dict[str, Any]]:
    """Returns the loss of the whole batch and its gradients, embedding a part at a time.

    All is embedded, part by part, without keeping anything; the loss gives the gradients of the
    embeddings; then each part is embedded again and its gradients followed to the parameters.

    Source: arXiv 2101.06983 (GradCache).
    """
    parts = tf.nest.map_structure(lambda x: _split(x, num_parts), inputs)

    def part_of(number):
        return tf.nest.map_structure(lambda x: x[number], parts)

    @tf.autograph.experimental.do_not_convert
    def say(number):
        return embed_part(part_of(number), number), look_at_part(part_of(number))

    # What comes out of a part has to be known before the loop.
    traced = tf.function(say, autograph=False).get_concrete_function(tf.TensorSpec((), tf.int32))
    shapes = traced.structured_outputs
    specs = tf.nest.map_structure(lambda x: tf.TensorSpec(x.shape, x.dtype), shapes)
    stacked = tf.map_fn(say, tf.range(num_parts), fn_output_signature=specs, parallel_iterations=1)
    said, taught = tf.nest.map_structure(_merged, stacked, specs)
    direct = {name: value for name, value in trained.items() if "/" not in name}
    with tf.GradientTape() as tape:
        tape.watch((said, direct))
        scalars = losses_of(said, taught)
    found: Any = tape.gradient(scalars["loss"], (said, direct))
    slopes, gradients = found
    # What no loss reads, such as the embedding of a model that only classifies.
    slopes = {name: _split(x, num_parts) for name, x in slopes.items() if x is not None}
    towers = {name: value for name, value in trained.items() if "/" in name}

    def add_part(number, sums):
        with tf.GradientTape() as tape:
            tape.watch(towers)
            said = embed_part(part_of(number), number)
        read = [said[name] for name in slopes]
        found = tape.gradient(read, towers, output_gradients=[x[number] for x in slopes.values()])
        _check_connected(found)
        return number + 1, {name: sums[name] + found[name] for name in towers}

    sums: Any
    _, sums = tf.while_loop(
        lambda number, _: number < num_parts,
        add_part,
        (tf.constant(0), {name: tf.zeros_like(value) for name, value in towers.items()}),
        parallel_iterations=1,
        maximum_iterations=num_parts,
    )
    return scalars, {name: (gradients | sums)[name] for name in trained}


def _merged(stacked: tf.Tensor, spec: tf.TensorSpec) -> tf.Tensor:
    """Undoes `_split` of what the parts gave."""
    num_parts, rows = stacked.shape[0], spec.shape[0]
    rows = None if num_parts is None or rows is None else num_parts * rows
    return tf.ensure_shape(tf.reshape(stacked, (-1, *spec.shape[1:])), (rows, *spec.shape[1:]))


def _check_connected(gradients: Tensors) -> None:
    lost = [name for name, value in gradients.items() if value is None]
    if lost:
        raise RuntimeError(
            f"The loss does not depend on {', '.join(lost)}. Freeze them by optimizer.rates."
        )


def _split(x: Any, num_parts: int) -> tf.Tensor:
    """Cuts the leading axis into equal parts."""
    size = x.shape[0]
    if size is not None and size % num_parts:
        raise ValueError(
            "microbatches must divide the batch of a replica. "
            f"Received: microbatches={num_parts}, batch={size}"
        )
    rows = -1 if size is None else size // num_parts
    return tf.reshape(x, (num_parts, rows, *x.shape[1:]))


def _seeds(config: TrainConfig, trained: Tensors, step: tf.Tensor, exchange: Exchange) -> Seeds:
    """Returns seeds for the towers that drop something; a frozen tower drops nothing."""
    found = []
    for number, name in enumerate(Seeds._fields):
        tower = getattr(config, name)
        if tower is None:
            found.append(None)
            continue
        drops = tower.block.dropout or tower.block.stochastic_depth
        drops = drops or getattr(tower, "token_dropout", 0.0)
        if not drops or not any(x.startswith(f"{name}/") for x in trained):
            found.append(None)
            continue
        # Other numbers at every step and replica, the same whenever the step is repeated.
        seed = tf.stack([tf.constant(config.seed, tf.int32), tf.cast(step, tf.int32)])
        seed = transformer.fold(seed, exchange.replica_id())
        found.append(transformer.fold(seed, number))
    return Seeds(*found)


def train_step(
    state: TrainState,
    inputs: Tensors,
    *,
    config: TrainConfig,
    exchange: Exchange,
    compute: Callable[..., StepOutcome],
    update: Callable[..., TrainState],
    taught_by: Mapping[str, Tensors] | None = None,
) -> tuple[TrainState, Tensors]:
    """Returns the state after one step, equal on all replicas, and scalars to log.

    Gradients are summed over replicas, then clipped, then applied: clipping before the sum, as
    Keras optimizers do, depends on the number of replicas.

    Args:
        state: The state before.
        inputs: This replica's part of the batch.
        config: The configuration.
        exchange: How replicas meet.
        compute: `forward_backward` with its keywords bound, compiled or not.
        update: `apply_gradients` with its keywords bound, compiled or not.
        taught_by: Values of the teachers' variables.
    """
    outcome = compute(state.parameters, inputs, state.step, taught_by or {})
    names = list(outcome.gradients)
    summed = exchange.sum((list(outcome.scalars.values()), list(outcome.gradients.values())))
    scalars = dict(zip(outcome.scalars, summed[0], strict=True))
    # Losses are shares of the global ones, all else is averaged.
    means = {n: v for n, v in scalars.items() if not combined.is_loss(n)}
    scalars |= {name: value / exchange.num_replicas for name, value in means.items()}
    norm = tf.linalg.global_norm(summed[1])
    finite = tf.math.is_finite(scalars["loss"]) & tf.math.is_finite(norm)
    changing = state._replace(parameters={name: state.parameters[name] for name in names})
    changed = update(changing, dict(zip(names, summed[1], strict=True)), norm, finite)
    if "bias" in state.parameters:
        scalars["temperature"] = tf.exp(state.parameters["log_temperature"])
        scalars["bias"] = state.parameters["bias"]
    scalars |= {
        "gradient_norm": norm,
        "learning_rate": _factor(state.step, config) * config.optimizer.learning_rate,
        "skipped_steps": tf.cast(changed.skipped[0], tf.float32),
    }
    return changed._replace(parameters={**state.parameters, **changed.parameters}), scalars


def _factor(step: tf.Tensor, config: TrainConfig) -> tf.Tensor:
    return optimizers.schedule(step, config=config.optimizer, total_steps=config.steps)


def apply_gradients(
    state: TrainState,
    gradients: Tensors,
    norm: tf.Tensor,
    finite: tf.Tensor,
    *,
    config: TrainConfig,
) -> TrainState:
    """Returns the state after the gradients are applied.

    Args:
        state: The state before; of the parameters only those that are trained.
        gradients: Of each of them, summed over replicas.
        norm: Their joint norm.
        finite: Whether loss and norm are finite; if not, nothing changes but the counts.
        config: The configuration.
    """
    gradients = optimizers.clip_by_global_norm(gradients, norm, config.optimizer.clip_norm)
    update = optimizers.make_update(
        _factor(state.step, config), state.step, config=config.optimizer
    )
    rates = optimizers.matched(config.optimizer.rates, gradients)
    decays = optimizers.matched(config.optimizer.decays, gradients)
    shapes = optimizers.shapes({n: x.shape for n, x in gradients.items()}, config)
    parameters, slots, ema = {}, {}, {}
    for name, gradient in gradients.items():
        parameters[name], slots[name] = update(
            state.parameters[name],
            state.slots[name],
            gradient,
            rate=rates[name],
            decay=decays[name],
            shape=shapes[name],
        )
    kept = tf.constant(1.0 - (config.optimizer.ema_decay or 0.0))
    for name, average in state.ema.items():
        ema[name] = average + kept * (parameters[name] - average)
    # A step that is not finite changes nothing, so that no later one is lost, too.
    parameters, slots, ema = tf.nest.map_structure(
        lambda new, old: tf.where(finite, new, old),
        (parameters, slots, ema),
        (dict(state.parameters), dict(state.slots), dict(state.ema)),
    )
    skipped = _count_skipped(state.skipped, finite, state.step + 1)
    return TrainState(parameters, slots, ema, state.step + 1, skipped)


def _count_skipped(skipped: tf.Tensor, finite: tf.Tensor, number: tf.Tensor) -> tf.Tensor:
    count = skipped[0] + tf.cast(tf.logical_not(finite), tf.int64)
    first = tf.where((skipped[0] == 0) & (count > 0), number, skipped[1])
    return tf.stack([count, first])


def trained_names(names: Iterable[str], config: TrainConfig) -> list[str]:
    """Returns the names of the parameters that training changes; see `OptimizerConfig.rates`."""
    rates = optimizers.matched(config.optimizer.rates, names)
    return [name for name, rate in rates.items() if rate is not None]
