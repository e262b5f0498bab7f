"""What a step minimises: a loss over pairs, what teachers add to it, or both, weighted."""

from collections.abc import Callable, Mapping
from typing import Any

import tensorflow as tf

from sigline.trainer.config import DistillationConfig, TrainConfig
from sigline.trainer.losses import pair_labels, pair_losses
from sigline.trainer.losses.collectives import Exchange
from sigline.trainer.losses.negatives import Negatives

# By name; tensors, or variables in their place.
Tensors = Mapping[str, Any]
# loss(image, text, parameters, step, config, exchange) -> the replica's share
Loss = Callable[..., pair_losses.PairLoss]

# What a model says of a batch, in a dictionary: unit embeddings, and logits of its head.
IMAGE, TEXT, CLASSES = "image", "text", "classes"
# Of a teacher besides: the scalars of its logits.
TEMPERATURE, BIAS = "temperature", "bias"

LOSS = "loss"


def configured_loss(
    image: tf.Tensor,
    text: tf.Tensor,
    parameters: Tensors,
    step: tf.Tensor,
    config: TrainConfig,
    exchange: Exchange,
) -> pair_losses.PairLoss:
    """Returns the loss over pairs that `config.loss` names; see there."""
    temperature = tf.exp(parameters["log_temperature"])
    options = {"chunk_size": config.loss.chunk_size, "exchange": exchange}
    if config.loss.name == "softmax":
        return pair_losses.softmax_loss(image, text, temperature=temperature, **options)
    negatives = None
    if config.loss.negatives != "all":
        negatives = Negatives(
            config.loss.negatives,
            per_image=config.loss.negatives_per_image,
            # Another choice at every step, the same whenever the step is repeated.
            seed=tf.cast(step, tf.int32) + config.seed,
        )
    return pair_losses.sigmoid_loss(
        image,
        text,
        temperature=temperature,
        bias=parameters["bias"],
        negatives=negatives,
        **options,
    )


def total(
    student: Tensors,
    teachers: Mapping[str, Tensors],
    parameters: Tensors,
    step: tf.Tensor,
    *,
    config: TrainConfig,
    exchange: Exchange,
    loss: Loss = configured_loss,
) -> dict[str, tf.Tensor]:
    """Returns the weighted sum of all losses as `loss`, and what is logged beside it.

    Args:
        student: What the model says of this replica's part of the batch.
        teachers: The same of each teacher, by its name.
        parameters: The model's parameters.
        step: Scalar, steps done.
        config: Names the losses and their weights.
        exchange: How replicas meet.
        loss: Computes the loss over pairs.

    Returns:
        Scalars by name. Those that `is_loss` names are the replica's shares: their sum over
        replicas is that of the global batch. The parts of the sum are listed, each without its
        weight, if there are several.
    """
    parts, scalars, weighted = {}, {}, []
    if config.loss.weight:
        outcome = loss(student[IMAGE], student[TEXT], parameters, step, config, exchange)
        scalars = outcome._asdict()
        parts[f"{LOSS}/pairs"] = scalars.pop(LOSS)
        weighted.append(config.loss.weight * parts[f"{LOSS}/pairs"])
    if config.loss.softmax_weight:
        outcome = pair_losses.softmax_loss(
            student[IMAGE],
            student[TEXT],
            temperature=tf.exp(parameters["log_temperature"]),
            chunk_size=config.loss.chunk_size,
            exchange=exchange,
        )
        parts[f"{LOSS}/softmax"] = outcome.loss
        weighted.append(config.loss.softmax_weight * outcome.loss)
    for item in config.distillation:
        value = distillation_loss(
            item, student, teachers[item.teacher], parameters, config=config, exchange=exchange
        )
        parts[f"{LOSS}/{item.teacher}_{item.target}"] = value
        weighted.append(item.weight * value)
    return {LOSS: tf.add_n(weighted)} | (parts if len(parts) > 1 else {}) | scalars


def is_loss(name: str) -> bool:
    """Whether a scalar is a share of the global batch's, to be summed over replicas."""
    return name.split("/")[0] == LOSS


def distillation_loss(
    item: DistillationConfig,
    student: Tensors,
    teacher: Tensors,
    parameters: Tensors,
    *,
    config: TrainConfig,
    exchange: Exchange,
) -> tf.Tensor:
    """Returns this replica's share of what a student has yet to learn from a teacher."""
    if item.target == "classes":
        divergence = kl_divergence(teacher[CLASSES], student[CLASSES], temperature=item.temperature)
        global_batch = exchange.sum(tf.cast(tf.shape(divergence)[0], tf.float32))
        return tf.reduce_sum(divergence) / global_batch
    labels = pair_labels.from_teacher(
        teacher[IMAGE], teacher[TEXT], temperature=teacher[TEMPERATURE], bias=teacher[BIAS]
    )
    return pair_losses.sigmoid_loss(
        student[IMAGE],
        student[TEXT],
        temperature=tf.exp(parameters["log_temperature"]),
        bias=parameters["bias"],
        labels=labels,
        chunk_size=config.loss.chunk_size,
        exchange=exchange,
    ).loss


def kl_divergence(teacher: tf.Tensor, student: tf.Tensor, *, temperature: float = 1.0) -> tf.Tensor:
    """Returns T^2 * KL(softmax(teacher / T) || softmax(student / T)) of each row.

    Args:
        teacher: Logits, shape `(batch, classes)`; no gradient flows to them.
        student: Logits of the same shape.
        temperature: T, positive; its square keeps the size of the gradient.

    Returns:
        Shape `(batch,)`, float32, at least zero.

    Raises:
        ValueError: If the shapes differ.

    Source: arXiv 1503.02531, section 2; arXiv 2106.05237, section 3.
    """
    teacher, student = (tf.cast(x, tf.float32) for x in (teacher, student))
    if not teacher.shape.is_compatible_with(student.shape):
        raise ValueError(
            "teacher and student must have the same shape (batch, classes). "
            f"Received: teacher.shape={teacher.shape}, student.shape={student.shape}"
        )
    ours = tf.nn.log_softmax(student / temperature)
    theirs = tf.nn.log_softmax(tf.stop_gradient(teacher) / temperature)
    return temperature**2 * tf.reduce_sum(tf.exp(theirs) * (theirs - ours), axis=-1)
