"""Model soups: means of the parameters of models that began alike (arXiv 2203.05482).

A soup costs no more to serve than one model. It is good only where its models lie in one valley of
the loss, as those that were fine-tuned from the same parameters do. Means of models that began
apart are worse than any of them, so they are refused.
"""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sigline.trainer.config import BlockConfig, TrainConfig
from sigline.trainer.training import checkpoints
from sigline.trainer.weights import tokenizer_json, weight_folders
from sigline.trainer.weights.model_weights import Weights

# Reads an ingredient; of many large models only one is held at a time.
Load = Callable[[], Weights]
Score = Callable[[Weights], float]


@dataclass(frozen=True)
class Soup:
    """A model made of models.

    Attributes:
        weights: The model.
        ingredients: Names of those in it, in the order in which they came in.
        alone: The score of each ingredient, in it or not, by name; empty without scores.
        tried: Names and scores of the soups that were tried, the last ingredient's name for each.
        score: Of the soup; None without scores.
    """

    weights: Weights
    ingredients: tuple[str, ...]
    alone: Mapping[str, float] = dataclasses.field(default_factory=dict)
    tried: tuple[tuple[str, float], ...] = ()
    score: float | None = None


def find(sources: list[Path]) -> dict[str, Load]:
    """Returns ingredients by name.

    Args:
        sources: Weights, in any format that `weight_folders.load` reads; checkpoints, without the
            endings of their files; or folders of runs, which stand for all of their checkpoints.

    Raises:
        ValueError: If a folder of a run holds no checkpoint, or one comes twice.
    """
    loads: dict[str, Load] = {}
    for source in sources:
        for name, load in _of_source(source).items():
            if name in loads:
                raise ValueError(f"An ingredient must come once. Received: {name} twice")
            loads[name] = load
    return loads


def _of_source(source: Path) -> dict[str, Load]:
    if source.with_name(f"{source.name}.index").is_file():
        return {str(source): lambda: checkpoints.read(source)}
    for folder in (source / "checkpoints", source):
        if (folder / checkpoints.DESCRIPTION_FOLDER).is_dir():
            paths = checkpoints.find(folder).values()
            if not paths:
                raise ValueError(f"The run must have a checkpoint. Received: {source}")
            return {str(path): lambda path=path: checkpoints.read(path) for path in paths}
    return {str(source): lambda: weight_folders.load(source)}


def uniform(ingredients: Mapping[str, Load], score: Score | None = None) -> Soup:
    """Returns the mean of all ingredients.

    Args:
        ingredients: What reads each, by name.
        score: Scores the soup, if that is wanted.

    Raises:
        ValueError: If there are fewer than two, or they did not begin alike.
    """
    _check_count(ingredients)
    pot = _Pot()
    for name, load in ingredients.items():
        pot.add(name, load())
    weights = pot.mean()
    return Soup(weights, pot.names, score=None if score is None else score(weights))


def best(ingredients: Mapping[str, Load], score: Score) -> Soup:
    """Returns the ingredient that scores highest; of equals the first."""
    alone = {name: score(load()) for name, load in ingredients.items()}
    name = max(alone, key=lambda name: alone[name])
    return Soup(ingredients[name](), (name,), alone, score=alone[name])


def greedy(ingredients: Mapping[str, Load], score: Score) -> Soup:
    """Returns a soup to which each ingredient was added that did not make it worse, best first.

    It scores no lower than the best ingredient alone.

    Args:
        ingredients: What reads each, by name.
        score: From a model to what is to be high.

    Raises:
        ValueError: If there are fewer than two, or they did not begin alike.
    """
    _check_count(ingredients)
    pot, alone = _Pot(), {}
    for name, load in ingredients.items():
        weights = load()
        # Check all ingredients first: scoring takes hours.
        pot.check(name, weights)
    for name, load in ingredients.items():
        alone[name] = score(load())
    # The sort is stable, so ingredients of equal score keep their order.
    order = sorted(alone, key=lambda name: -alone[name])
    pot.add(order[0], ingredients[order[0]]())
    reached, tried = alone[order[0]], []
    for name in order[1:]:
        weights = ingredients[name]()
        with_it = score(pot.mean(weights))
        tried.append((name, with_it))
        if with_it >= reached:
            pot.add(name, weights)
            reached = with_it
    return Soup(pot.mean(), pot.names, alone, tuple(tried), reached)


def _check_count(ingredients: Mapping[str, Load]) -> None:
    if len(ingredients) < 2:
        raise ValueError(f"A soup takes two models at least. Received: {list(ingredients)}")


@dataclass(frozen=True)
class _Kin:
    """What models of a soup have in common."""

    towers: Any
    parameters: Mapping[str, tuple[int, ...]]
    vocabulary: str | None

    @classmethod
    def of(cls, weights: Weights) -> "_Kin":
        shapes = {key: value.shape for key, value in weights.parameters.items()}
        words = weights.vocabulary
        return cls(
            _answers(weights.config),
            shapes,
            None if words is None else tokenizer_json.content_digest(words),
        )


class _Pot:
    """A running sum of parameters, in float64, so that equal ones stay as they are to the bit."""

    def __init__(self):
        self.names: tuple[str, ...] = ()
        self._first: tuple[str, Weights, _Kin] | None = None
        self._origins: frozenset[str] = frozenset()
        self._sums: dict[str, np.ndarray] = {}

    def check(self, name: str, weights: Weights) -> None:
        """Raises ValueError unless the weights are finite and kin of those that came before."""
        broken = [key for key, value in weights.parameters.items() if not np.isfinite(value).all()]
        if broken:
            raise ValueError(f"{name} has parameters that are not finite: {', '.join(broken[:5])}")
        kin, ancestors = _Kin.of(weights), weights.ancestors()
        if self._first is None:
            self._first = name, dataclasses.replace(weights, parameters={}), kin
            self._origins = ancestors
        first, _, first_kin = self._first
        different = [
            item.name
            for item in dataclasses.fields(_Kin)
            if getattr(kin, item.name) != getattr(first_kin, item.name)
        ]
        if not self._origins & ancestors:
            different.append("initialisation")
        if different:
            raise ValueError(
                "Models of a soup must have begun with the same parameters; the mean of others is "
                f"worse than each. Received: {name} and {first} with different {different[0]}"
            )
        self._origins &= ancestors

    def add(self, name: str, weights: Weights) -> None:
        self.check(name, weights)
        for key, value in weights.parameters.items():
            self._sums[key] = self._sums.get(key, 0.0) + value.astype(np.float64)
        self.names += (name,)

    def mean(self, more: Weights | None = None) -> Weights:
        """Returns the mean of what is in it, and of one more model."""
        assert self._first is not None
        count, means = len(self.names) + (more is not None), {}
        for key, value in self._sums.items():
            total = value if more is None else value + more.parameters[key]
            means[key] = np.asarray(total / count, np.float32)
        held = self._first[1]
        known = held.initial_digest in self._origins
        origin = held.initial_digest if known else min(self._origins)
        return dataclasses.replace(held, parameters=means, initial_digest=origin)


def _answers(config: TrainConfig) -> Any:
    """Returns what decides answers beside the parameters; what is dropped in training does not."""
    image = dataclasses.replace(
        config.image,
        token_dropout=0.0,
        head_bias_init=0.0,
        block=_without_dropping(config.image.block),
    )
    text = config.text
    if text is not None:
        text = dataclasses.replace(text, block=_without_dropping(text.block))
    return image, text, config.pair_loss


def _without_dropping(block: BlockConfig) -> BlockConfig:
    return dataclasses.replace(block, dropout=0.0, stochastic_depth=0.0)
