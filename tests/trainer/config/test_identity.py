"""Which changes a run may be resumed with, what digests are of, and what older versions stored."""

import dataclasses
import json
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from sigline.commands import claims, train
from sigline.schemas import digests, strict
from sigline.trainer import config, recipes
from sigline.trainer.export import saved_model
from sigline.trainer.run import Job
from sigline.trainer.weights.model_weights import Weights

GOLDEN = Path(__file__).parents[2] / "golden" / "configs"
DEMO = config.load_recipe("siglip_demo")
OTHERS = {
    "checkpoint_steps": 7,
    "checkpoint_minutes": 1.5,
    "keep_checkpoints": 9,
    "keep_every_steps": 3,
    "max_skipped_steps": 4,
    "max_damaged_records": 5,
    "log_steps": 6,
    "monitor_attention": True,
    "strategy": "mirrored",
    "jit_compile": False,
    "exchange": "ring",
}
# The recipes that version 0.1 had.
STORED = sorted(set(recipes.names()) & {path.stem for path in GOLDEN.glob("*.json")})
BEFORE = json.loads((GOLDEN / "before_objectives.json").read_text())


def _without_lanes(settings):
    """Returns a configuration as it was before there were lanes."""
    return config.override(settings, ["data.lanes=none"])


def test_every_field_of_the_run_is_tried():
    assert set(OTHERS) == {item.name for item in dataclasses.fields(config.RunConfig)}


@pytest.mark.parametrize("name", OTHERS)
def test_how_a_run_goes_is_no_part_of_its_identity(name):
    changed = dataclasses.replace(DEMO.run, **{name: OTHERS[name]})
    other = dataclasses.replace(DEMO, run=changed)
    assert other != DEMO
    assert (other.digest(), other.identity()) == (DEMO.digest(), DEMO.identity())


@pytest.mark.parametrize(
    ("assignments", "prolongs"),
    [
        (["optimizer.schedule=rsqrt"], True),
        (["optimizer.schedule=constant"], True),
        (["optimizer.schedule=cosine"], False),
        (["optimizer.schedule=linear"], False),
        (["optimizer.schedule=rsqrt", "optimizer.cooldown_steps=10"], False),
    ],
)
def test_steps_are_identity_where_the_schedule_reads_them(assignments, prolongs):
    ours = config.override(DEMO, assignments)
    longer = config.override(ours, ["steps=5000"])
    assert (ours.identity() == longer.identity()) == prolongs
    # A model that was trained for longer is another one in any case.
    assert ours.digest() != longer.digest()


@dataclasses.dataclass(frozen=True)
class _Group:
    width: int = 3


@dataclasses.dataclass(frozen=True)
class _Before:
    name: str
    group: _Group = dataclasses.field(default_factory=_Group)


@dataclasses.dataclass(frozen=True)
class _Longer(_Group):
    height: int | None = None


@dataclasses.dataclass(frozen=True)
class _After:
    name: str
    group: _Longer = dataclasses.field(default_factory=_Longer)
    other: tuple[float, ...] = ()


def test_field_with_a_default_changes_no_digest():
    assert strict.changed(_Before("a")) == strict.changed(_After("a"))
    assert strict.changed(_Before("a", _Group(4))) == strict.changed(_After("a", _Longer(4)))
    assert strict.changed(_After("a", _Longer(4, 1))) == {
        "name": "a",
        "group": {"width": 4, "height": 1},
    }


@pytest.mark.parametrize("name", [*STORED, "odd"])
def test_what_version_0_1_stored_is_read(name):
    text = (GOLDEN / f"{name}.json").read_text()
    stored, read = json.loads(text), config.from_json(text)
    assert config.from_json(read.to_json()) == read
    if name in recipes.names():
        assert read == _without_lanes(config.load_recipe(name))
    for key in OTHERS.keys() & stored.keys():
        assert getattr(read.run, key) == stored[key]
    assert read.run.max_damaged_records == stored["data"]["max_damaged_records"]
    assert read.steps == stored["steps"]


@pytest.mark.parametrize("name", [*STORED, "odd"])
def test_embedded_images_stay_valid(name):
    """The digest is of this and of the weights, which did not change."""
    golden = json.loads((GOLDEN / "image_towers.json").read_text())[name]
    image = config.from_json((GOLDEN / f"{name}.json").read_text()).image
    assert saved_model.answering(image) == golden


@pytest.mark.parametrize("name", BEFORE)
def test_what_was_stored_before_there_were_objectives_is_read(name):
    stored = BEFORE[name]["text"]
    text = json.dumps(stored, sort_keys=True, indent=1)
    read = config.from_json(text)
    assert config.from_json(read.to_json()) == read
    if name in recipes.names():
        assert read == _without_lanes(config.load_recipe(name))
    known = read.earlier_digests(text)
    assert {BEFORE[name]["digest"], BEFORE[name]["identity"]} <= known
    other = read.earlier_digests(json.dumps(stored | {"seed": 1}))
    assert BEFORE[name]["digest"] in other, "only what became objectives is taken from the text"
    # What is not of before has no other digest than that of its text.
    assert len(read.earlier_digests(read.to_json())) == 1


def test_what_was_learnt_before_there_were_objectives_is_learnt_today():
    odd = config.from_json(json.dumps(BEFORE["odd"]["text"]))
    assert odd.objectives == (
        config.PairsConfig(weight=2.0, chunk_size=24, negatives="hard", negatives_per_image=3),
        config.PairsConfig(loss="softmax", weight=0.5, chunk_size=24),
        config.DistillConfig("a", target="pairs", weight=0.5, chunk_size=24),
    )
    assert odd.similarity == config.SimilarityConfig(temperature_init=5.0, bias_init=None)
    assert odd.run.exchange == "ring"
    classes = config.from_json(json.dumps(BEFORE["classes"]["text"]))
    assert classes.objectives == (
        config.DistillConfig("a", temperature=2.0),
        config.DistillConfig("b", weight=3.0),
    )


def test_run_from_before_there_were_objectives_goes_on(tmp_path, examples, vocabulary):
    demo = _without_lanes(DEMO)
    job = Job(demo, examples / "Split-train", vocabulary, "code")
    before = BEFORE["siglip_demo"]
    (tmp_path / "sigline.json").write_text(json.dumps(before["text"], sort_keys=True, indent=1))
    claim = json.dumps(json.loads(job.identity) | {"config": before["identity"]}, sort_keys=True)
    assert claim != job.identity
    assert job.is_of(claim, tmp_path)
    other = dataclasses.replace(demo, objectives=(config.PairsConfig(weight=2.0),))
    assert not Job(other, examples / "Split-train", vocabulary, "code").is_of(claim, tmp_path)


def _claim_of_before(job, stored):
    """What version 0.1 wrote: digests of texts."""
    theirs = json.loads(job.identity) | {"config": digests.text_digest(stored)}
    return json.dumps(theirs, sort_keys=True)


def test_run_of_version_0_1_goes_on(tmp_path, examples, vocabulary):
    demo, folder = _without_lanes(DEMO), examples / "Split-train"
    stored = (GOLDEN / "siglip_demo.json").read_text()
    description = tmp_path / "described"
    description.mkdir()
    (description / "sigline.json").write_text(stored)
    job = Job(demo, folder, vocabulary, "code")
    claim = _claim_of_before(job, stored.removesuffix("\n"))
    assert claim != job.identity
    assert job.is_of(job.identity, tmp_path / "none")
    assert job.is_of(claim, description)
    assert not job.is_of(claim, tmp_path / "none")
    for other in (dataclasses.replace(demo, seed=1), config.override(demo, ["steps=7"])):
        assert not Job(other, folder, vocabulary, "code").is_of(claim, description)
    assert not Job(demo, folder, vocabulary + b" ", "code").is_of(claim, description)
    logged = config.override(demo, ["run.log_steps=1"])
    assert Job(logged, folder, vocabulary, "code").is_of(claim, description)


def test_run_from_before_there_were_lanes_goes_on_in_its_own_order(tmp_path, examples, vocabulary):
    """The command says how: nobody's order changes unasked."""
    folder = examples / "Split-train"
    job = Job(DEMO, folder, vocabulary, "code")
    before = Job(_without_lanes(DEMO), folder, vocabulary, "code")
    # Digests of before had no key for the order.
    assert "lanes" not in json.dumps(before.config._outcome())
    (tmp_path / claims.FILE).write_text(json.dumps([before.identity]))
    train._claim_run(tmp_path, before)
    with pytest.raises(ValueError, match=r"give --set data\.lanes=none.*data\.lanes=16"):
        train._claim_run(tmp_path, job)
    with pytest.raises(ValueError, match="holds a run with another configuration"):
        train._claim_run(tmp_path, Job(config.override(DEMO, ["seed=1"]), folder, vocabulary, ""))


def test_lanes_decide_the_outcome_though_they_have_a_default():
    assert DEMO.digest() != _without_lanes(DEMO).digest()
    assert DEMO.digest() != config.override(DEMO, ["data.lanes=8"]).digest()
    stored = json.loads(DEMO.to_json())
    assert config.from_json(json.dumps(stored)) == DEMO
    del stored["data"]["lanes"]
    assert config.from_json(json.dumps(stored)) == _without_lanes(DEMO)


@dataclasses.dataclass(frozen=True)
class _Circle:
    kind: ClassVar[str] = "circle"
    radius: float = 1.0


@dataclasses.dataclass(frozen=True)
class _Square:
    kind: ClassVar[str] = "square"
    side: float = 1.0


@dataclasses.dataclass(frozen=True)
class _Drawing:
    shapes: tuple[_Circle | _Square, ...] = ()
    frame: _Square | None = None
    names: dict[str, int] = dataclasses.field(default_factory=dict)


def test_kind_chooses_among_dataclasses():
    drawing = _Drawing((_Circle(2.0), _Square()), _Square(3.0), {"a": 1})
    data = strict.to_dict(drawing)
    assert data["shapes"] == [{"kind": "circle", "radius": 2.0}, {"kind": "square", "side": 1.0}]
    assert strict.build(_Drawing, json.loads(json.dumps(data))) == drawing
    assert strict.changed(drawing)["shapes"] == [
        {"kind": "circle", "radius": 2.0},
        {"kind": "square"},
    ]
    assert strict.changed(_Drawing()) == {}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            {"shapes": [{"kind": "cirle"}]},
            r"shapes\[0\].kind must be one of circle, square. .* Did",
        ),
        ({"shapes": [{"radius": 1}]}, r"shapes\[0\]\.kind must be one of circle, square"),
        ({"shapes": [3]}, r"shapes\[0\]\.kind must be one of circle, square\. Received: .*=3"),
        ({"shapes": [{"kind": "circle", "side": 1}]}, r"Unknown key shapes\[0\]\.side"),
        ({"shapes": [{"kind": "circle", "radius": "1"}]}, r"shapes\[0\]\.radius must be a number"),
        ({"names": {"a": "b"}}, r"names\.a must be a whole number"),
        ({"names": []}, "names must be keys and values"),
        (
            {"shape": []},
            "Unknown key shape. Known keys: shapes, frame, names. Did you mean shapes?",
        ),
        ([], "the configuration must be keys and values"),
    ],
)
def test_wrong_data_is_named(data, message):
    with pytest.raises(ValueError, match=message):
        strict.build(_Drawing, data)


def test_weights_of_a_run_of_version_0_1_are_told_to_be_uncompared(
    tmp_path, examples, vocabulary, capsys
):
    text = (GOLDEN / "siglip_demo.json").read_text()
    (tmp_path / "sigline.json").write_text(text)
    demo = _without_lanes(DEMO)
    weights = Weights(demo, {"scale": np.zeros(1, np.float32)}, vocabulary)
    job = Job(demo, examples / "Split-train", vocabulary, "code", weights=weights)
    before = json.loads(_claim_of_before(job, text.removesuffix("\n")))
    assert job.is_of(json.dumps(before | {"weights_digest": "another"}), tmp_path)
    assert "whose weights_digest cannot be compared" in capsys.readouterr().err
    # A run that began without weights, or with a teacher, is another one.
    del before["weights_digest"]
    assert not job.is_of(json.dumps(before), tmp_path)
    assert capsys.readouterr().err == ""
