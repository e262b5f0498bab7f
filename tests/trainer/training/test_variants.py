"""Which grid a step of a FlexiViT has, and that all ways to compute the step agree at a grid."""

import dataclasses
import types

import numpy as np
import pytest
import tensorflow as tf

from sigline.trainer import config
from sigline.trainer.models import two_tower
from sigline.trainer.training import progress, steps, variants
from sigline.trainer.training.calls import Models, Variant


@pytest.mark.parametrize(
    ("seed", "count", "expected"),
    [
        (0, 3, [1, 1, 1, 2, 1, 1, 0, 1, 2, 2]),
        (0, 10, [9, 7, 3, 9, 2, 0, 7, 9, 3, 1]),
        (1, 10, [0, 3, 3, 1, 3, 0, 1, 1, 2, 5]),
    ],
)
def test_draws_are_what_they_always_were(seed, count, expected):
    assert [variants.draw(seed, number, count) for number in range(10)] == expected


def test_all_are_drawn_equally_often():
    counts = np.bincount([variants.draw(7, number, 10) for number in range(10_000)])
    # Three standard deviations of a binomial distribution.
    assert np.abs(counts - 1_000).max() < 3 * np.sqrt(10_000 * 0.1 * 0.9)


@pytest.fixture(scope="module")
def settings():
    tiny = config.tiny(config.load_recipe("siglip_demo"))
    grids = ["image.grids=[1,2,4]", "image.position_grid=3", "image.default_grid=2"]
    return config.override(tiny, ["image.depth=1", "text.depth=1", "image.pool=gap", *grids])


def _outcome(settings, grid):
    model = two_tower.build(settings)
    parameters = {n: tf.convert_to_tensor(x) for n, x in two_tower.named_variables(model).items()}
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (8, settings.image.size, settings.image.size, 3), np.uint8)
    ids = rng.integers(1, 500, (8, settings.text.length))
    inputs = {"image": tf.constant(pixels), "text": tf.constant(ids, tf.int32)}
    compute = tf.function(
        lambda: steps.forward_backward(
            parameters,
            inputs,
            tf.zeros((), tf.int64),
            models=Models.of(settings, model),
            variant=Variant(grid),
        ),
        autograph=False,
    )
    return compute()


@pytest.fixture(scope="module")
def plain(settings):
    return _outcome(settings, 4)


@pytest.mark.parametrize("option", ["rematerialize=true", "microbatches=2"])
def test_other_ways_to_compute_have_the_same_loss_and_gradients(settings, plain, option):
    outcome = _outcome(config.override(settings, [option]), 4)
    assert float(outcome.shares["loss"]) == pytest.approx(float(plain.shares["loss"]), rel=1e-6)
    for name, value in plain.gradients.items():
        scale = np.abs(value).max() + 1e-9
        np.testing.assert_allclose(
            outcome.gradients[name], value, atol=2e-5 * scale + 1e-7, rtol=0, err_msg=name
        )


def test_every_stored_parameter_gets_a_gradient(plain):
    for name in ("image/embedding/kernel", "image/positions"):
        assert (np.abs(plain.gradients[name]).max(axis=-1) > 0).all()


def test_images_that_are_embedded_before_are_of_the_default_grid(settings):
    models = Models.of(settings, two_tower.build(settings))
    drawn = {variants.of_step(models, number) for number in range(1, 30)}
    assert drawn == {Variant(1), Variant(2), Variant(4)}
    embedded = models._replace(embedded=True)
    assert {variants.of_step(embedded, number) for number in range(1, 30)} == {Variant()}


def test_steps_that_compile_are_not_timed(monkeypatch):
    times = iter([0.0, 100.0, 300.0, 301.0, 401.0, 403.0])
    clock = types.SimpleNamespace(perf_counter=lambda: next(times))
    monkeypatch.setattr(progress, "time", clock)
    meter = progress.Meter(30)
    # The second step of grid 2 takes a second, that of grid 4 two.
    for grid in (2, 4, 2, 8, 4):
        meter.step_done(Variant(grid))
    assert meter.images_per_second == pytest.approx(2 * 30 / 3)


def test_time_of_a_pause_is_not_that_of_steps(monkeypatch):
    # A pause from 2 to 9 within a step of eight seconds.
    times = iter([0.0, 1.0, 2.0, 9.0, 9.5])
    clock = types.SimpleNamespace(perf_counter=lambda: next(times))
    monkeypatch.setattr(progress, "time", clock)
    meter = progress.Meter(30)
    meter.step_done()
    with meter.paused():
        pass
    meter.step_done()
    assert meter.images_per_second == pytest.approx(30 / 1.5)


def test_loss_has_a_name_for_each_grid(settings):
    models = Models.of(settings, two_tower.build(settings))
    scalars = {"loss": 2.0, "bias": 1.0}
    assert variants.loss_by_variant(models, Variant(4), scalars) == {"loss/grid=4": 2.0}
    plain = dataclasses.replace(settings.image, grids=(), default_grid=None, position_grid=None)
    fixed = dataclasses.replace(settings, image=plain)
    models = Models.of(fixed, two_tower.build(fixed))
    variant = variants.of_step(models, 1)
    assert variants.loss_by_variant(models, variant, scalars) == {}
