"""What a scene holds and how it is described."""

from dataclasses import dataclass
from itertools import product

import numpy as np

from sigline.schemas.labels import LabelSet

SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
COLORS = ("red", "green", "blue", "yellow", "purple", "black")
SIZES = ("small", "large")
# Each relation with its converse.
RELATIONS = {
    "left of": "right of",
    "right of": "left of",
    "above": "below",
    "below": "above",
}
COMBINATIONS = tuple(product(COLORS, SHAPES))
# One combination of each colour and each shape is never shown in training.
HELD_OUT: tuple[tuple[str, str], ...] = tuple(zip(COLORS, SHAPES, strict=True))
SEEN = tuple(pair for pair in COMBINATIONS if pair not in HELD_OUT)

_ONE = (
    "a {color} {shape}",
    "a {size} {color} {shape}",
    "an image of a {color} {shape}",
    "there is one {shape} here and it is {color}",
)
_TWO = (
    "a {first} {relation} a {second}",
    "a {second} {converse} a {first}",
    "a {size} {first} {relation} a {second}",
    "an image of a {first} {relation} a {second}",
)


@dataclass(frozen=True)
class Item:
    """One object: its colour, shape and size in words."""

    color: str
    shape: str
    size: str

    @property
    def name(self) -> str:
        """Colour and shape, the class name of zero-shot classification."""
        return f"{self.color} {self.shape}"


@dataclass(frozen=True)
class Scene:
    """One or two objects; `relation` says where the first stands from the second."""

    items: tuple[Item, ...]
    relation: str | None = None

    @property
    def label(self) -> int | None:
        """The class id of a scene with one object; None for two objects."""
        if self.relation is not None:
            return None
        return COMBINATIONS.index((self.items[0].color, self.items[0].shape))

    def captions(self) -> tuple[str, ...]:
        """Returns all captions that the grammar has for the scene."""
        first = self.items[0]
        if self.relation is None:
            values = {"color": first.color, "shape": first.shape, "size": first.size}
            return tuple(template.format(**values) for template in _ONE)
        values = {
            "first": first.name,
            "second": self.items[1].name,
            "size": first.size,
            "relation": self.relation,
            "converse": RELATIONS[self.relation],
        }
        return tuple(template.format(**values) for template in _TWO)


def label_set() -> LabelSet:
    """Returns the classes of scenes with one object, held-out combinations included."""
    return LabelSet(
        names=tuple(f"{color} {shape}" for color, shape in COMBINATIONS),
        templates=("a {}", "an image of a {}"),
    )


def sample_scene(rng: np.random.Generator, *, held_out: bool, two_objects: float = 0.3) -> Scene:
    """Draws a scene.

    Args:
        rng: Source of randomness.
        held_out: Whether the scene shows one of the combinations held out from training (then it
            is a single object), or only others.
        two_objects: Share of scenes with two objects.
    """
    if held_out:
        return Scene((_sample_item(rng, HELD_OUT),))
    if rng.random() >= two_objects:
        return Scene((_sample_item(rng, SEEN),))
    relation = str(rng.choice(list(RELATIONS)))
    return Scene((_sample_item(rng, SEEN), _sample_item(rng, SEEN)), relation)


def _sample_item(rng: np.random.Generator, combinations: tuple[tuple[str, str], ...]) -> Item:
    color, shape = combinations[rng.integers(len(combinations))]
    return Item(color=color, shape=shape, size=SIZES[rng.integers(len(SIZES))])
