"""What an objective is: what it needs of an example, what it computes, and what it learns by.

The step knows objectives by this interface alone. An objective is made once a run, by the table in
`objectives.make`, from its configuration and a `Context`.
"""

import abc
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import keras
import tensorflow as tf

from sigline.schemas.labels import LabelSet
from sigline.trainer.config import TrainConfig
from sigline.trainer.inputs import needs, preprocess
from sigline.trainer.losses.collectives import Exchange
from sigline.trainer.objectives.frozen import FrozenModel

# Tensors by name, or variables in their place.
Tensors = Mapping[str, Any]

LOSS = "loss"


class Context(NamedTuple):
    """What objectives are made with.

    Attributes:
        config: The run's configuration.
        tokenizer: The model's vocabulary; None for a model of images alone.
        frozen: Frozen models by name, open to every objective.
        labels: The classes' names, where the run has them.
    """

    config: TrainConfig
    tokenizer: preprocess.Tokenizer | None = None
    frozen: Mapping[str, FrozenModel] = {}
    labels: LabelSet | None = None


class Outcome(NamedTuple):
    """What an objective comes to on one replica's part of the batch.

    Attributes:
        shares: Scalars that are summed over replicas, among them `loss`.
        means: Scalars that are averaged over replicas; for logs.
        statistics: What `Objective.next_state` gets, summed over replicas.
    """

    shares: Tensors
    means: Mapping[str, Any] = {}
    statistics: Mapping[str, Any] = {}


class Call(abc.ABC):
    """The models at one step, as an objective may use them on some examples.

    Attributes:
        inputs: What the batch holds of these examples; see `Needs`.
        parameters: Values of the model's parameters and of the objectives' own.
        step: Scalar, steps done.
        exchange: How replicas meet. Only for objectives over pairs, and only in `loss`.
        count: Examples of the global batch that count for this objective, float32.
        state: This objective's state without gradient.
        variant: The step's variant; see `Objective.variants`.
    """

    inputs: Tensors
    parameters: Tensors
    step: tf.Tensor
    exchange: Exchange
    count: tf.Tensor
    state: Tensors
    variant: Hashable

    @property
    @abc.abstractmethod
    def seed(self) -> tf.Tensor:
        """Two integers, others for each step, replica and part."""

    @abc.abstractmethod
    def image(self, view: str = needs.IMAGE) -> dict[str, tf.Tensor]:
        """Returns what the model says of a view: unit embeddings, and logits of its head."""

    @abc.abstractmethod
    def text(self, name: str = needs.TEXT) -> tf.Tensor:
        """Returns the model's unit embeddings of texts."""

    @abc.abstractmethod
    def frozen(self, name: str) -> dict[str, tf.Tensor]:
        """Returns what a frozen model says of the examples; no gradient flows through it."""

    @abc.abstractmethod
    def frozen_scalars(self, name: str) -> dict[str, tf.Tensor]:
        """Returns temperature and bias of a frozen model's logits of pairs."""


class Objective(abc.ABC):
    """Something to learn, with a weight.

    `over` says what its loss is of. Over `pairs` the loss is of all examples of the global batch
    together: `outputs` are kept of the whole batch, however many parts it is embedded in, and
    `loss` sees them all. Over `examples` it is a sum over examples, divided by `call.count`: a part
    is done with before the next one begins, so `outputs` may be large.

    Attributes:
        name: Names its scalars, and its parameters below `objectives/`.
        weight: Factor of its loss.
        variants: What a step may be one of, such as sizes; each is compiled for itself.
        layer: A built layer of its own, whose variables are trained, too; None for none.
    """

    over: ClassVar[str]
    variants: Sequence[Hashable] = (None,)
    layer: keras.layers.Layer | None = None

    def __init__(self, name: str, weight: float):
        self.name = name
        self.weight = weight

    @abc.abstractmethod
    def needs(self) -> needs.Needs:
        """Returns what it reads of a batch."""

    @abc.abstractmethod
    def outputs(self, call: Call) -> dict[str, Any]:
        """Returns what `loss` gets: tensors whose first axis is that of examples."""

    @abc.abstractmethod
    def loss(self, outputs: Tensors, call: Call) -> Outcome:
        """Returns the replica's, or over examples the part's, share of the loss."""

    def targets(self, inputs: Tensors) -> dict[str, tf.Tensor]:
        """Returns dense targets `(batch, ...)` by name, which mixup mixes as it does pixels."""
        return {}

    def count(self, inputs: Tensors) -> tf.Tensor:
        """Returns how many of a replica's examples count, a float32 scalar; over examples."""
        return tf.cast(tf.shape(next(iter(inputs.values())))[0], tf.float32)

    def state(self) -> dict[str, tf.Tensor]:
        """Returns the first value of what it keeps from step to step without a gradient."""
        return {}

    def next_state(
        self, state: Tensors, statistics: Tensors, parameters: Tensors
    ) -> dict[str, tf.Tensor]:
        """Returns its state after a step; the same on all replicas.

        Args:
            state: The state before.
            statistics: Those of `Outcome`, summed over replicas.
            parameters: The parameters after the step.
        """
        return dict(state)


def similarity(parameters: Tensors) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns temperature and bias of the logits of pairs."""
    return tf.exp(parameters["log_temperature"]), parameters["bias"]
