"""The training configuration: frozen dataclasses, strict overrides, JSON in and out.

A recipe (`trainer/recipes/NAME.py`) has a function `config()` that returns a `TrainConfig`.
"""

import dataclasses
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from sigline.schemas import digests, strict
from sigline.trainer.config import checks, stored
from sigline.trainer.config.data import DataConfig
from sigline.trainer.config.objectives import (
    ClassifyConfig,
    ObjectiveConfig,
    PairsConfig,
    SimilarityConfig,
    check_together,
    log_prior,
)
from sigline.trainer.config.optimizer import OptimizerConfig
from sigline.trainer.config.run import RunConfig
from sigline.trainer.config.towers import ImageTower, ImageTowerConfig, TextTower, TextTowerConfig


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides the outcome of a training run, besides data and code.

    How the run goes is in the group `run`, which is no part of the digests.

    Attributes:
        name: Name of the recipe.
        steps: Optimizer steps.
        global_batch_size: Examples per step over all replicas.
        image: The image tower.
        text: The text tower; None for a model of images alone.
        objectives: What is learnt; their losses are added by weight.
        similarity: The scalars of the logits of pairs; none without a text tower.
        optimizer: How gradients change parameters.
        data: How examples are read.
        seed: Seed of the initial weights, the shuffle and the choice of captions.
        pretrained: Regular expressions of whole names of parameters that start from given weights;
            all others start at random.
        precision: `float32`, or `bfloat16` for all that the towers compute but norms and softmax;
            parameters and the loss stay float32.
        rematerialize: Whether the backward pass computes each block of the towers again instead of
            keeping what is inside: memory for time.
        microbatches: Parts that each replica's batch is embedded in, one after the other: memory
            for time (two forward passes instead of one). The loss is that of the whole batch, and
            so are its gradients (arXiv 2101.06983).
        run: How the run goes.
    """

    name: str
    steps: int
    global_batch_size: int
    image: ImageTower = field(default_factory=ImageTowerConfig)
    text: TextTower | None = field(default_factory=TextTowerConfig)
    objectives: tuple[ObjectiveConfig, ...] = (PairsConfig(),)
    similarity: SimilarityConfig = field(default_factory=SimilarityConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    data: DataConfig = field(default_factory=DataConfig)
    seed: int = 0
    pretrained: tuple[str, ...] = ()
    precision: str = "float32"
    rematerialize: bool = False
    microbatches: int = 1
    run: RunConfig = field(default_factory=RunConfig)

    def __post_init__(self) -> None:
        for name in ("steps", "global_batch_size", "microbatches"):
            checks.at_least(name, getattr(self, name), 1)
        checks.one_of("precision", self.precision, ("float32", "bfloat16"))
        for pattern in self.pretrained:
            checks.pattern("pretrained", pattern)
        self.image.check("image")
        if self.text is not None:
            self.text.check("text")
        self.similarity.check("similarity")
        self.optimizer.check("optimizer")
        self.data.check("data")
        self.run.check("run")
        check_together(self.objectives, self)

    @property
    def text_tower(self) -> TextTowerConfig:
        """The text tower, for what needs one.

        Raises:
            ValueError: If it is left out.
        """
        if self.text is None:
            raise ValueError("This needs a model with a text tower. Received: text=none")
        return self.text

    @property
    def teachers(self) -> tuple[str, ...]:
        """Names of the teachers, sorted."""
        return tuple(sorted({name for item in self.objectives for name in item.asks}))

    @property
    def pair_loss(self) -> str:
        """What the logits of pairs are trained by: that of the first objective of pairs."""
        losses = [item.loss for item in self.objectives if isinstance(item, PairsConfig)]
        return losses[0] if losses else "sigmoid"

    @property
    def class_loss(self) -> str:
        """What the logits of the head are trained by: that of the objective of labels."""
        losses = [item.loss for item in self.objectives if isinstance(item, ClassifyConfig)]
        return losses[0] if losses else "softmax"

    @property
    def bias_init(self) -> float:
        """Initial bias of the logits; none with the softmax loss, which no bias changes."""
        if self.pair_loss == "softmax":
            return 0.0
        if self.similarity.bias_init is not None:
            return self.similarity.bias_init
        return log_prior(self.global_batch_size)

    def to_json(self) -> str:
        """Returns the configuration as JSON text with sorted keys."""
        return json.dumps(strict.to_dict(self), sort_keys=True, indent=1)

    def digest(self) -> str:
        """Returns the digest of all that decides the outcome and differs from its default."""
        return digests.json_digest(self._outcome())

    def identity(self) -> str:
        """Returns the digest that two configurations share if one may go on from the other's run.

        The number of steps counts where the schedule reads it: else a run can be prolonged.
        """
        return digests.json_digest(self._outcome(resumed=True))

    def earlier_digests(self, text: str) -> set[str]:
        """Returns what earlier versions took for `digest` and `identity` of this configuration.

        Args:
            text: The configuration as they stored it.
        """
        outcomes = [self._outcome(), self._outcome(resumed=True)]
        before = [stored.outcome_before(json.loads(text), outcome) for outcome in outcomes]
        known = {digests.json_digest(outcome) for outcome in before if outcome is not None}
        # Version 0.1 took the digest of the text.
        return known | {digests.text_digest(text)}

    def _outcome(self, *, resumed: bool = False) -> dict[str, Any]:
        outcome = strict.changed(self)
        outcome.pop("run", None)
        if resumed and not self.optimizer.reads_steps:
            del outcome["steps"]
        # Earlier versions had no lanes: what they trained keeps its digest, and the order of today
        # counts although it is the default.
        data = {k: v for k, v in outcome.pop("data", {}).items() if k != "lanes"}
        data |= {} if self.data.lanes is None else {"lanes": self.data.lanes}
        return outcome | ({"data": data} if data else {})


def from_json(text: str) -> TrainConfig:
    """Reads a configuration back from `TrainConfig.to_json`, or from one of earlier versions.

    Raises:
        ValueError: If a key is unknown or a value has the wrong type.
    """
    return strict.build(TrainConfig, stored.upgraded(json.loads(text)))


def override(config: TrainConfig, assignments: Iterable[str]) -> TrainConfig:
    """Returns the configuration with `a.b=value` assignments applied, strictly.

    Raises:
        ValueError: If a key is unknown (the message names the known keys), a value has the wrong
            type, or an assignment has no `=`.
    """
    try:
        return strict.override(TrainConfig, strict.to_dict(config), assignments)
    except strict.UnknownKey as error:
        now = stored.RENAMED.get(error.key)
        if now is None:
            raise
        raise ValueError(f"{error.key} is {now} now. Received: {error.key}") from None


def tiny(config: TrainConfig) -> TrainConfig:
    """Returns the same recipe at a size that trains in seconds on a CPU, for tests."""
    sizes = {"width": 32, "depth": 2, "mlp_dim": 64, "num_heads": 2}
    grids: dict[str, Any] = {}
    if config.image.grids:
        grids = {"grids": (1, 2), "position_grid": 2, "default_grid": None}
    image = dataclasses.replace(config.image, size=2 * config.image.patch, **sizes, **grids)
    text = config.text
    if text is not None:
        text = dataclasses.replace(text, vocabulary_size=512, length=16, **sizes)
    return dataclasses.replace(
        config,
        image=image,
        text=text,
        steps=4,
        global_batch_size=8,
        run=dataclasses.replace(config.run, jit_compile=False, checkpoint_steps=2, log_steps=1),
        optimizer=dataclasses.replace(config.optimizer, warmup_steps=1, cooldown_steps=0),
        data=dataclasses.replace(config.data, shuffle_records=64),
    )
