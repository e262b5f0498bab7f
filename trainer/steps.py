"""One training step as a pure function of tensors, the same on every device.

The loop runs it on variables under a strategy. Since it touches no variable itself, it can also be
compiled ahead of time for a device that is not there.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from sigline.trainer import losses, optimizers, preprocess, transformer
from sigline.trainer.collectives import Exchange, exchange_for_context
from sigline.trainer.config import TrainConfig
from sigline.trainer.negatives import Negatives
from sigline.trainer.two_tower import TwoTower, named_parameters

# By name; tensors, or variables in their place.
Tensors = Mapping[str, Any]
# embed(model, inputs, seeds) -> image and text embeddings.
Embed = Callable[[TwoTower, Any, "Seeds"], tuple[tf.Tensor, tf.Tensor]]
# loss(image, text, parameters, step, config, exchange) -> the replica's share
Loss = Callable[..., losses.PairLoss]


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


def embed_pixels(model: TwoTower, inputs: tuple[tf.Tensor, tf.Tensor], seeds: Seeds):
    """Embeds `(pixels, ids)`: uint8 images `(batch, size, size, 3)`, tokens `(batch, length)`."""
    pixels, ids = inputs
    pixels = preprocess.to_model_range(pixels, model.config.image)
    image = model.embed_image(pixels, seeds.image)
    return image, model.embed_text(ids, seeds.text)


def embed_precomputed(model: TwoTower, inputs: tuple[tf.Tensor, tf.Tensor], seeds: Seeds):
    """Embeds `(embeddings, ids)`: unit vectors of a frozen image tower, and tokens."""
    image, ids = inputs
    return image, model.embed_text(ids, seeds.text)


def configured_loss(
    image: tf.Tensor,
    text: tf.Tensor,
    parameters: Tensors,
    step: tf.Tensor,
    config: TrainConfig,
    exchange: Exchange,
) -> losses.PairLoss:
    """Returns the loss that `config.loss` names; see there."""
    temperature = tf.exp(parameters["log_temperature"])
    options = {"chunk_size": config.loss.chunk_size, "exchange": exchange}
    if config.loss.name == "softmax":
        return losses.softmax_loss(image, text, temperature=temperature, **options)
    negatives = None
    if config.loss.negatives != "all":
        negatives = Negatives(
            config.loss.negatives,
            per_image=config.loss.negatives_per_image,
            # Another choice at every step, the same whenever the step is repeated.
            seed=tf.cast(step, tf.int32) + config.seed,
        )
    return losses.sigmoid_loss(
        image,
        text,
        temperature=temperature,
        bias=parameters["bias"],
        negatives=negatives,
        **options,
    )


def forward_backward(
    parameters: Tensors,
    inputs: Any,
    step: tf.Tensor,
    *,
    model: TwoTower,
    config: TrainConfig,
    exchange: Exchange | None = None,
    embed: Embed = embed_pixels,
    loss: Loss = configured_loss,
) -> StepOutcome:
    """Returns loss and gradients of one replica's part of the batch.

    Args:
        parameters: Values to use in place of the model's own, by their names in `named_parameters`;
            those of a tower that `embed` does not use may be left out.
        inputs: What `embed` takes.
        step: Scalar, steps done; decides what is drawn at random.
        model: Says what to compute; its own values are not read.
        config: The configuration.
        exchange: How replicas meet; by default as the configuration says.
        embed: Turns inputs into unit embeddings.
        loss: Turns the embeddings into the replica's share of the loss.
    """
    if exchange is None:
        exchange = exchange_for_context(config.loss.exchange)
    trained = {name: parameters[name] for name in trained_names(parameters, config)}
    variables = named_parameters(model)
    mapping = [(variables[name], value) for name, value in parameters.items()]
    seeds = _seeds(config, trained, step, exchange)

    def embed_part(part, number):
        own = Seeds(*[None if x is None else transformer.fold(x, number) for x in seeds])
        with keras.StatelessScope(state_mapping=mapping):
            return embed(model, part, own)

    def loss_of(image, text):
        return loss(image, text, parameters, step, config, exchange)

    if config.microbatches == 1:
        with tf.GradientTape() as tape:
            tape.watch(trained)
            outcome = loss_of(*embed_part(inputs, 0))
        gradients = tape.gradient(outcome.loss, trained)
    else:
        outcome, gradients = _in_parts(
            inputs,
            trained,
            embed_part,
            loss_of,
            num_parts=config.microbatches,
            dim=config.image.output_dim,
        )
    if gradients["bias"] is None and config.loss.name == "softmax":
        gradients["bias"] = tf.zeros_like(trained["bias"])
    _check_connected(gradients)
    # The gradient of the token table comes as slices.
    gradients = {name: tf.convert_to_tensor(value) for name, value in gradients.items()}
    return StepOutcome(outcome._asdict(), gradients)


def _in_parts(
    inputs: Any,
    trained: Tensors,
    embed_part: Callable[[Any, Any], tuple[tf.Tensor, tf.Tensor]],
    loss_of: Callable[[tf.Tensor, tf.Tensor], losses.PairLoss],
    *,
    num_parts: int,
    dim: int,
) -> tuple[losses.PairLoss, dict[str, Any]]:
    """Returns the loss of the whole batch and its gradients, embedding a part at a time.

    All is embedded, part by part, without keeping anything; the loss gives the gradients of the
    embeddings; then each part is embedded again and its gradients followed to the parameters.

    Source: arXiv 2101.06983 (GradCache).
    """
    parts = tf.nest.map_structure(lambda x: _split(x, num_parts), inputs)
    size, rows = tf.nest.flatten(inputs)[0].shape[0], tf.nest.flatten(parts)[0].shape[1]

    def part_of(number):
        return tf.nest.map_structure(lambda x: x[number], parts)

    spec = tf.TensorSpec((rows, dim), tf.float32)
    embedded = tf.map_fn(
        lambda number: tuple(embed_part(part_of(number), number)),
        tf.range(num_parts),
        fn_output_signature=(spec, spec),
        parallel_iterations=1,
    )
    image, text = (tf.ensure_shape(tf.reshape(x, (-1, dim)), (size, dim)) for x in embedded)
    direct = {name: value for name, value in trained.items() if "/" not in name}
    with tf.GradientTape() as tape:
        tape.watch((image, text, direct))
        outcome = loss_of(image, text)
    found: Any = tape.gradient(outcome.loss, (image, text, direct))
    of_image, of_text, gradients = found
    slopes = [_split(of_image, num_parts), _split(of_text, num_parts)]
    towers = {name: value for name, value in trained.items() if "/" in name}

    def add_part(number, sums):
        with tf.GradientTape() as tape:
            tape.watch(towers)
            embeddings = embed_part(part_of(number), number)
        found = tape.gradient(embeddings, towers, output_gradients=[x[number] for x in slopes])
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
    return outcome, {name: (gradients | sums)[name] for name in trained}


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
    inputs: Any,
    *,
    config: TrainConfig,
    exchange: Exchange,
    compute: Callable[[Tensors, Any, tf.Tensor], StepOutcome],
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
    """
    outcome = compute(state.parameters, inputs, state.step)
    names = list(outcome.gradients)
    summed = exchange.sum((list(outcome.scalars.values()), list(outcome.gradients.values())))
    scalars = dict(zip(outcome.scalars, summed[0], strict=True))
    # Losses are shares of the global one, all else is averaged.
    scalars |= {n: v / exchange.num_replicas for n, v in scalars.items() if n != "loss"}
    gradients, norm = optimizers.clip_by_global_norm(summed[1], config.optimizer.clip_norm)
    factor = optimizers.schedule(state.step, config=config.optimizer, total_steps=config.steps)
    rates = optimizers.matched(config.optimizer.rates, names)
    decays = optimizers.matched(config.optimizer.decays, names)
    kept = config.optimizer.ema_decay or 0.0
    parameters, slots, ema = dict(state.parameters), {}, {}
    for name, gradient in zip(names, gradients, strict=True):
        parameters[name], slots[name] = optimizers.apply(
            parameters[name],
            state.slots[name],
            gradient,
            factor=factor,
            step=state.step,
            rate=rates[name],
            decay=decays[name],
            config=config.optimizer,
        )
    for name, average in state.ema.items():
        ema[name] = average + (1.0 - kept) * (parameters[name] - average)
    finite = tf.math.is_finite(scalars["loss"]) & tf.math.is_finite(norm)
    before = ({name: state.parameters[name] for name in names}, state.slots, state.ema)
    after = ({name: parameters[name] for name in names}, slots, ema)
    # A step that is not finite changes nothing, so that no later one is lost, too.
    changed, slots, ema = tf.nest.map_structure(
        lambda new, old: tf.where(finite, new, old), after, before
    )
    skipped = _count_skipped(state.skipped, finite, state.step + 1)
    scalars |= {
        "temperature": tf.exp(state.parameters["log_temperature"]),
        "bias": state.parameters["bias"],
        "gradient_norm": norm,
        "learning_rate": factor * config.optimizer.learning_rate,
        "skipped_steps": tf.cast(skipped[0], tf.float32),
    }
    return TrainState(parameters | changed, slots, ema, state.step + 1, skipped), scalars


def _count_skipped(skipped: tf.Tensor, finite: tf.Tensor, number: tf.Tensor) -> tf.Tensor:
    count = skipped[0] + tf.cast(tf.logical_not(finite), tf.int64)
    first = tf.where((skipped[0] == 0) & (count > 0), number, skipped[1])
    return tf.stack([count, first])


def trained_names(names: Iterable[str], config: TrainConfig) -> list[str]:
    """Returns the names of the parameters that training changes; see `OptimizerConfig.rates`."""
    rates = optimizers.matched(config.optimizer.rates, names)
    return [name for name, rate in rates.items() if rate is not None]
