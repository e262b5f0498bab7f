"""Where a field may hold one of several dataclasses, the data's kind decides, or its absence."""

from dataclasses import dataclass, field
from typing import ClassVar

import pytest

from sigline.schemas import strict


@dataclass(frozen=True)
class Plain:
    depth: int = 1


@dataclass(frozen=True)
class Mixer(Plain):
    kind: ClassVar[str] = "mixer"

    token_dim: int = 2


@dataclass(frozen=True)
class Pyramid:
    kind: ClassVar[str] = "pyramid"

    stages: int = 4


Tower = Plain | Mixer | Pyramid


@dataclass(frozen=True)
class Config:
    tower: Tower = field(default_factory=Plain)
    other: Tower | None = None


@pytest.mark.parametrize(
    ("tower", "data"),
    [
        (Plain(depth=3), {"depth": 3}),
        (Mixer(depth=3, token_dim=5), {"kind": "mixer", "depth": 3, "token_dim": 5}),
        (Pyramid(stages=2), {"kind": "pyramid", "stages": 2}),
    ],
)
def test_data_without_a_kind_are_of_the_class_without_one(tower, data):
    config = Config(tower=tower, other=tower)
    assert strict.to_dict(config) == {"tower": data, "other": data}
    assert strict.build(Config, {"tower": data, "other": data}) == config


def test_an_assignment_reaches_into_the_class_that_is_held():
    plain = strict.to_dict(Config())
    assert strict.override(Config, plain, ["tower.depth=7"]) == Config(tower=Plain(7))
    mixer = strict.to_dict(Config(tower=Mixer(), other=Pyramid()))
    changed = strict.override(Config, mixer, ["tower.token_dim=7", "other.stages=1"])
    assert changed == Config(tower=Mixer(token_dim=7), other=Pyramid(stages=1))


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        ({"kind": "mixr"}, "tower.kind must be one of mixer, pyramid. .* Did you mean mixer?"),
        ({"token_dim": 1}, "Unknown key tower.token_dim. Known keys: tower.depth"),
        ({"kind": "pyramid", "depth": 1}, "Unknown key tower.depth. Known keys: tower.stages"),
        (3, "tower.kind must be one of mixer, pyramid. Received: tower.kind=3"),
    ],
)
def test_data_of_another_class_are_refused(data, sentence):
    with pytest.raises(ValueError, match=sentence):
        strict.build(Config, {"tower": data})


def test_keys_are_those_of_all_classes_once():
    names = ["depth", "token_dim", "stages"]
    assert strict.keys(Config) == [f"{key}.{name}" for key in ("tower", "other") for name in names]
