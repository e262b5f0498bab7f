"""One training step as a pure function of tensors, the same on every device.

The loop runs it on variables under a strategy. Since it touches no variable itself, it can also be
compiled ahead of time for a device that is not there.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from sigline.trainer import losses, optimizers, preprocess
from sigline.trainer.collectives import Exchange, exchange_for_context
from sigline.trainer.config import TrainConfig
from sigline.trainer.negatives import Negatives
from sigline.trainer.two_tower import TwoTower, named_parameters

# By name; tensors, or variables in their place.
Tensors = Mapping[str, Any]
# embed(model, inputs) -> image and text embeddings.
Embed = Callable[[TwoTower, Any], tuple[tf.Tensor, tf.Tensor]]
# loss(image, text, parameters, step, config, exchange) -> the replica's share
Loss = Callable[..., losses.PairLoss]


class TrainState(NamedTuple):
    """What a step changes.

    Attributes:
        parameters: All parameters of the model, frozen ones too.
        first: First moments of those that are trained.
        second: Second moments of those that are trained.
        step: Scalar, steps done.
    """

    parameters: Tensors
    first: Tensors
    second: Tensors
    step: tf.Tensor


class StepOutcome(NamedTuple):
    """The loss of a replica, what is logged beside it, and the replica's part of the gradient."""

    scalars: Tensors
    gradients: Tensors


def embed_pixels(model: TwoTower, inputs: tuple[tf.Tensor, tf.Tensor]):
    """Embeds `(pixels, ids)`: uint8 images `(batch, size, size, 3)`, tokens `(batch, length)`."""
    pixels, ids = inputs
    return model(preprocess.to_model_range(pixels), ids)


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
    with tf.GradientTape() as tape:
        tape.watch(trained)
        with keras.StatelessScope(state_mapping=mapping):
            image, text = embed(model, inputs)
        outcome = loss(image, text, parameters, step, config, exchange)
    gradients = tape.gradient(outcome.loss, trained)
    if gradients["bias"] is None and config.loss.name == "softmax":
        gradients["bias"] = tf.zeros_like(trained["bias"])
    lost = [name for name, value in gradients.items() if value is None]
    if lost:
        raise RuntimeError(
            f"The loss does not depend on {', '.join(lost)}. Received: embed={embed}, loss={loss}. "
            "Connect them, or freeze their tower."
        )
    # The gradient of the token table comes as slices.
    gradients = {name: tf.convert_to_tensor(value) for name, value in gradients.items()}
    return StepOutcome(outcome._asdict(), gradients)


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
    parameters, first, second = dict(state.parameters), {}, {}
    for name, gradient in zip(names, gradients, strict=True):
        parameters[name], first[name], second[name] = optimizers.adamw(
            parameters[name],
            state.first[name],
            state.second[name],
            gradient,
            factor=factor,
            step=state.step,
            decay=optimizers.decays(name),
            config=config.optimizer,
        )
    scalars |= {
        "temperature": tf.exp(state.parameters["log_temperature"]),
        "bias": state.parameters["bias"],
        "gradient_norm": norm,
        "learning_rate": factor * config.optimizer.learning_rate,
    }
    return TrainState(parameters, first, second, state.step + 1), scalars


def trained_names(names: Any, config: TrainConfig) -> list[str]:
    """Returns the names of the parameters that training changes."""
    frozen = "image/" if config.image.frozen else None
    return [name for name in names if frozen is None or not name.startswith(frozen)]
