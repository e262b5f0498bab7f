"""What an objective may have: layers, views, state without gradient, and variants of a step."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
import toy_objective
from forked import Forked

from sigline.trainer import config
from sigline.trainer.inputs import data, needs
from sigline.trainer.inputs.views import View
from sigline.trainer.models import two_tower
from sigline.trainer.objectives import making
from sigline.trainer.training import checkpoints, loop, start, steps, train_step, variants
from sigline.trainer.training.calls import Models, Variant


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    monkeypatch.setattr(making, "OBJECTIVES", toy_objective.register())
    known = tuple[config.ObjectiveConfig | toy_objective.ToyConfig, ...]
    monkeypatch.setitem(config.TrainConfig.__annotations__, "objectives", known)


@pytest.fixture(scope="module")
def tiny():
    tiny = config.tiny(config.load_recipe("vit_s16"))
    sizes = ["image.depth=1", "image.patch=8", "image.size=16", "image.classes=36"]
    options = ["data.mixup=0", "data.randaugment=none", "steps=6"]
    options += ["objectives.classify.unlabelled=skip"]
    tiny = config.override(tiny, [*sizes, *options])
    return dataclasses.replace(tiny, objectives=(*tiny.objectives, toy_objective.ToyConfig()))


class _Killed(BaseException):
    """Stands for a kill."""


def _train(tiny, split_dir, folder):
    return loop.train(tiny, split_dir=split_dir, vocabulary=None, checkpoint_dir=folder)


@pytest.fixture(scope="module")
def flexible(tiny):
    """A model of two grids beside an objective of two variants."""
    toy = dataclasses.replace(tiny.objectives[-1], variants=(1, 2))
    image = dataclasses.replace(tiny.image, grids=(1, 2))
    return dataclasses.replace(tiny, image=image, objectives=(*tiny.objectives[:-1], toy))


def test_state_layers_and_variants_are_resumed_to_the_bit(
    flexible, split_dir, tmp_path, monkeypatch
):
    tiny, compute, traced = flexible, steps.forward_backward, []

    def counting(*args, **options):
        traced.append(options["variant"])
        return compute(*args, **options)

    monkeypatch.setattr(steps, "forward_backward", counting)
    _train(tiny, split_dir, tmp_path / "whole")
    models = Models.of(tiny, two_tower.build(tiny))
    drawn = [variants.of_step(models, number) for number in range(1, 7)]
    # By a hash of seed and number: 1, 3, 3, 0, 0 and 3 of four.
    expected = [(1, 2), (2, 2), (2, 2), (1, 1), (1, 1), (2, 2)]
    assert drawn == [Variant(*pair) for pair in expected]
    # One program each.
    assert traced == list(dict.fromkeys(drawn))
    make_step, seen = loop.make_train_step, []

    def dying(*args):
        step = make_step(*args)

        def one(batch, number):
            if number == 4 and len(seen) < 4:
                raise _Killed
            scalars = step(batch, number)
            (grid,) = (name for name in scalars if name.startswith("loss/grid="))
            assert scalars[grid] == scalars["loss"]
            seen.append((int(grid.removeprefix("loss/grid=")), int(scalars["variant"])))
            return scalars

        return one

    monkeypatch.setattr(loop, "make_train_step", dying)
    with pytest.raises(_Killed):
        _train(tiny, split_dir, tmp_path / "half")
    seen.append(0)
    assert _train(tiny, split_dir, tmp_path / "half").first_step == 2
    assert seen == [*drawn[:3], 0, *drawn[2:]]
    whole, half = (_saved(tmp_path / name) for name in ("whole", "half"))
    assert any(name.startswith("extras/toy/mean") for name in whole)
    assert any(name.startswith("parameters/objectives.Stoy.Skernel") for name in whole)
    assert any(name.startswith("slots/objectives.Stoy.Skernel") for name in whole)
    assert whole.keys() == half.keys()
    for name, value in whole.items():
        np.testing.assert_array_equal(value, half[name], err_msg=name)


def _saved(folder):
    reader = tf.train.load_checkpoint(str(folder))
    names = reader.get_variable_to_shape_map()
    return {name: reader.get_tensor(name) for name in names if not name.startswith("_")}


def test_exported_model_has_nothing_of_an_objective(tiny, split_dir, tmp_path):
    result = _train(tiny, split_dir, tmp_path)
    assert not any("objectives" in name for name in two_tower.named_variables(result.model))
    path = list(checkpoints.find(tmp_path).values())[-1]
    reader = tf.train.load_checkpoint(str(path))
    assert any("objectives" in name for name in reader.get_variable_to_shape_map())


def test_step_that_is_not_finite_leaves_state_as_it_was(tiny, split_dir):
    models = Models.of(tiny, two_tower.build(tiny))
    state = start.make_state(models)
    step = train_step.make_train_step(models, state, tf.distribute.get_strategy())
    batch = next(iter(data.training_batches(split_dir, tiny, models.needs, first_step=0)))
    step(batch, 1)
    before = {name: value.numpy() for name, value in state.extras["toy"].items()}
    assert np.abs(before["mean"]).max() > 0
    kernel = state.parameters["objectives/toy/kernel"]
    kept = kernel.numpy()
    kernel.assign(kept * np.nan)
    assert int(step(batch, 1)["skipped_steps"]) == 1
    for name, value in before.items():
        np.testing.assert_array_equal(state.extras["toy"][name], value)
    kernel.assign(kept)
    step(batch, 1)
    assert not np.array_equal(state.extras["toy"]["mean"], before["mean"])


def test_two_crops_of_an_image_are_two_views(tiny, split_dir):
    settings = config.override(
        dataclasses.replace(tiny, objectives=tiny.objectives[:1]), ["data.crop_min_area=0.2"]
    )
    small = dataclasses.replace(settings.image, size=8)
    views = {
        "image": View(settings.image),
        "small_image": View(small),
        "other_image": View(settings.image, crop=1),
    }
    asked = needs.Needs(views)
    batch = next(iter(data.training_batches(split_dir, settings, asked, first_step=0)))
    first, small, other = (batch[name].numpy().astype(int) for name in views)
    again = next(iter(data.training_batches(split_dir, settings, asked, first_step=0)))
    np.testing.assert_array_equal(again["other_image"], other)
    same = np.abs(first[:, ::2, ::2] - small).mean(axis=(1, 2, 3))
    differs = np.abs(first - other).mean(axis=(1, 2, 3))
    assert same.mean() < 0.5 * differs.mean()
    alone = needs.Needs({"image": View(settings.image)})
    plain = next(iter(data.training_batches(split_dir, settings, alone, first_step=0)))
    np.testing.assert_array_equal(plain["image"], first)


def test_objectives_must_mean_the_same_by_a_name(tiny):
    one = needs.Needs({"image": View(tiny.image)})
    other = needs.Needs({"image": View(tiny.image, crop=1)})
    with pytest.raises(ValueError, match="must mean the same by image of a batch"):
        needs.merged([one, other])
    assert needs.merged([one, one]) == one


def test_only_one_objective_has_variants(tiny):
    models = Models.of(tiny, two_tower.build(tiny))
    classify, toy = models.objectives
    with pytest.raises(ValueError, match=r"Only one objective may have variants.*toy, toy"):
        variants.of_step(models._replace(objectives=(toy, toy)), 1)
    assert variants.of_step(models._replace(objectives=(classify,)), 1) == Variant()


@pytest.mark.slow
def test_two_replicas_and_microbatches_equal_one_step(split_dir, tmp_path):
    here = Path(__file__).parent
    folder = str(here.parents[1] / "references")
    process = Forked([str(here / "replica_objectives.py"), str(split_dir), folder], tmp_path)
    output, errors = process.communicate()
    assert process.returncode == 0, errors
    lines = [json.loads(line) for line in output.splitlines() if line.startswith("[")]
    assert len(lines) == 2
    reference = lines[0][1]
    expected = {"attention_entropy/image/encoder/block_0", "toy/mean", "toy_of_pairs/mean"}
    expected |= {"variant", "toy_of_pairs/variant"}
    assert expected <= reference.keys()
    for parts, one, two in lines:
        assert one.keys() == two.keys()
        # Of two objectives with a scalar of one name none is lost in parts.
        assert all(name.startswith("attention") for name in reference.keys() - one.keys())
        for name, value in one.items():
            assert two[name] == pytest.approx(value, rel=1e-3, abs=1e-5), (parts, name)
            assert value == pytest.approx(reference[name], rel=1e-3, abs=1e-5), (parts, name)
