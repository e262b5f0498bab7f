"""The models at one step, as objectives call them: each tower runs once for all objectives."""

import copy
import zlib
from collections.abc import Callable, Hashable, Mapping
from typing import Any, NamedTuple

import tensorflow as tf

from sigline.schemas.labels import LabelSet
from sigline.trainer.config import TrainConfig
from sigline.trainer.inputs import needs, preprocess
from sigline.trainer.losses.collectives import Exchange
from sigline.trainer.models import two_tower
from sigline.trainer.models.two_tower import TwoTower
from sigline.trainer.objectives import base, frozen, making
from sigline.trainer.objectives.base import Call, Objective, Tensors
from sigline.trainer.objectives.frozen import FrozenModel

# Numbers that are folded into seeds, so that towers, mixup and objectives draw apart.
_TOWERS, _MIXUP, _OBJECTIVES = {"image": 0, "text": 1}, 2, 3


class Models(NamedTuple):
    """What a run computes with.

    Attributes:
        model: The model that is trained.
        config: The configuration.
        objectives: What is learnt.
        frozen: Frozen models by name.
        embedded: Whether the batch holds unit vectors of a frozen image tower in place of pixels.
    """

    model: TwoTower
    config: TrainConfig
    objectives: tuple[Objective, ...]
    frozen: Mapping[str, FrozenModel] = {}
    embedded: bool = False

    @classmethod
    def of(
        cls,
        config: TrainConfig,
        model: TwoTower,
        *,
        tokenizer: preprocess.Tokenizer | None = None,
        frozen: Mapping[str, FrozenModel] | None = None,
        labels: LabelSet | None = None,
        embedded: bool = False,
    ) -> "Models":
        """Returns a model with the objectives of its run; in the strategy's scope."""
        objectives = making.make(base.Context(config, tokenizer, frozen or {}, labels))
        return cls(model, config, objectives, frozen or {}, embedded)

    @property
    def needs(self) -> needs.Needs:
        """What the objectives need of a batch together."""
        return needs.merged(objective.needs() for objective in self.objectives)


class Variant(NamedTuple):
    """What a step is compiled for; see `variants.of_step`.

    Attributes:
        model: One of the image tower's variants, such as a number of patches; None for its default.
        objective: One of `Objective.variants`; None where no objective has several.
    """

    model: Hashable = None
    objective: Hashable = None


# The variant of a step where nothing varies.
DEFAULT = Variant()


class Seeds(NamedTuple):
    """Seeds of one step and replica, two integers each; a tower without one drops nothing."""

    towers: Mapping[str, tf.Tensor]
    # Computed when an objective asks for it: most draw nothing.
    objectives: Callable[[], tf.Tensor]

    @classmethod
    def of(
        cls, config: TrainConfig, trained: Tensors, step: tf.Tensor, exchange: Exchange
    ) -> "Seeds":
        """Returns others for every step and replica, the same whenever the step is repeated."""

        def seed() -> tf.Tensor:
            return _fold(_common(config, step), exchange.replica_id())

        towers = {
            name: _fold(seed(), number)
            for name, number in _TOWERS.items()
            if _drops(config, name, trained)
        }
        return cls(towers, lambda: _fold(seed(), _OBJECTIVES))

    def part(self, number: int | tf.Tensor) -> "Seeds":
        """Returns those of one part of the batch."""
        towers = {name: _fold(seed, number) for name, seed in self.towers.items()}
        return Seeds(towers, lambda: _fold(self.objectives(), number))


def _fold(seed: Any, number: int | tf.Tensor) -> Any:
    return tf.random.experimental.stateless_fold_in(seed, number)


def mixup_seed(config: TrainConfig, step: tf.Tensor) -> tf.Tensor:
    """Returns the seed of mixup, which is the same on all replicas."""
    return _fold(_common(config, step), _MIXUP)


def _common(config: TrainConfig, step: tf.Tensor) -> Any:
    return tf.stack([tf.constant(config.seed, tf.int32), tf.cast(step, tf.int32)])


def _drops(config: TrainConfig, name: str, trained: Tensors) -> bool:
    """Whether a tower drops something in training; a frozen one drops nothing."""
    tower = getattr(config, name)
    if tower is None or not any(parameter.startswith(f"{name}/") for parameter in trained):
        return False
    drops = tower.block.dropout or tower.block.stochastic_depth
    return bool(drops or getattr(tower, "token_dropout", 0.0))


class ModelCall(Call):
    """The models on some examples of a batch; what it returned once, it returns again."""

    def __init__(
        self,
        models: Models,
        inputs: Tensors,
        *,
        parameters: Tensors,
        frozen_values: Mapping[str, Tensors],
        step: tf.Tensor,
        seeds: Seeds,
        exchange: Exchange,
        variant: Variant,
    ):
        self.inputs = inputs
        self.parameters = parameters
        self.step = step
        self._seeds = seeds
        self.exchange = exchange
        self.variant = variant.objective
        self._tower_variant = variant.model
        self._models = models
        self._frozen_values = frozen_values
        self._towers = seeds.towers
        self._known: dict[Hashable, Any] = {}

    def of(self, count: tf.Tensor | None, state: Tensors) -> "ModelCall":
        """Returns the call as one of the objectives gets it; all share what towers returned."""
        own = copy.copy(self)
        own.count, own.state = count, state
        return own

    @property
    def seed(self) -> tf.Tensor:
        """Two integers, others for each step, replica and part."""
        return self._seeds.objectives()

    def image(self, view: str = needs.IMAGE) -> dict[str, tf.Tensor]:
        """Returns what the model says of a view: unit embeddings, and logits of its head."""
        return self._once((needs.IMAGE, view), lambda: self._see(view))

    def _see(self, view: str) -> dict[str, tf.Tensor]:
        if self._models.embedded:
            return {two_tower.EMBEDDING: self.inputs[view]}
        model = self._models.model
        pixels = preprocess.to_model_range(self.inputs[view], model.config.image)
        return model.look(pixels, self._seed("image", view), self._tower_variant)

    def text(self, name: str = needs.TEXT) -> tf.Tensor:
        """Returns the model's unit embeddings of texts."""
        model = self._models.model
        return self._once(
            (needs.TEXT, name),
            lambda: model.embed_text(self.inputs[name], self._seed("text", name)),
        )

    def frozen(self, name: str) -> dict[str, tf.Tensor]:
        """Returns what a frozen model says of the examples; no gradient flows through it."""
        model, values = self._models.frozen[name], self._frozen_values[name]
        return self._once(("frozen", name), lambda: frozen.look(model, values, self.inputs))

    def frozen_scalars(self, name: str) -> dict[str, tf.Tensor]:
        """Returns temperature and bias of a frozen model's logits of pairs."""
        return frozen.scalars(self._frozen_values[name])

    def _seed(self, tower: str, name: str) -> tf.Tensor | None:
        seed = self._towers.get(tower)
        # Every view has a seed of its own, so that dropout differs between the views of an image.
        return (
            seed if seed is None or name == tower else _fold(seed, zlib.crc32(name.encode()) >> 1)
        )

    def _once(self, key: Hashable, compute: Callable[[], Any]) -> Any:
        if key not in self._known:
            self._known[key] = compute()
        return self._known[key]
