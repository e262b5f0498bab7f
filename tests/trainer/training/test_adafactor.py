"""Adafactor moves parameters as big_vision's does, whose shapes have other axes than ours."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from sigline.trainer import config
from sigline.trainer.config import ImageTowerConfig, TextTowerConfig, TrainConfig
from sigline.trainer.training import optimizers
from sigline.trainer.training.checkpoints import Checkpoints
from sigline.trainer.training.state import TrainState

SIZES = {"depth": 1, "mlp_dim": 64}


def _settings(**changes):
    """Returns a model with an image tower of few heads, and a text tower of many."""
    found = TrainConfig(
        name="x",
        steps=1,
        global_batch_size=1,
        image=ImageTowerConfig(size=64, patch=32, width=128, num_heads=2, **SIZES),
        text=TextTowerConfig(width=128, num_heads=16, **SIZES),
        optimizer=config.OptimizerConfig(
            name="adafactor", learning_rate=1e-2, weight_decay=0.0, beta_2=0.95
        ),
    )
    return dataclasses.replace(found, **changes)


# Our names and shapes, and the axes that big_vision has for the same numbers.
ATTENTION = "encoder/block_0/attention"
CASES = {
    f"image/{ATTENTION}/query/kernel": ((128, 128), (128, 2, 64)),
    f"image/{ATTENTION}/value/bias": ((128,), (2, 64)),
    f"image/{ATTENTION}/out/kernel": ((128, 128), (2, 64, 128)),
    f"image/{ATTENTION}/out/bias": ((128,), (128,)),
    "image/pool/attention/key/kernel": ((128, 128), (128, 2, 64)),
    "image/embedding/kernel": ((32 * 32 * 3, 128), (32, 32, 3, 128)),
    "image/encoder/block_0/mlp/up/kernel": ((128, 64), (128, 64)),
    # Heads of 8 channels: nothing is factored there.
    f"text/{ATTENTION}/query/kernel": ((128, 128), (128, 16, 8)),
    f"text/{ATTENTION}/out/kernel": ((128, 128), (16, 8, 128)),
}


def big_vision_adafactor(value, gradients, *, learning_rate, beta_1, beta_2):
    """Moves a parameter in big_vision's shape by `scale_by_adafactor`, in float64.

    Written from optax's `scale_by_factored_rms`: of the two largest axes, if both are of at least
    32, the squares are averaged along either.
    """
    order = np.argsort(value.shape)
    factored = value.ndim > 1 and value.shape[order[-2]] >= 32
    smaller, larger = (order[-2], order[-1]) if factored else (0, 0)
    momentum, rows, columns = np.zeros_like(value), 0.0, 0.0
    for count, gradient in enumerate(gradients, start=1):
        decay = min(beta_2, 1 - count**-0.8)
        squared = gradient**2 + 1e-30
        if factored:
            rows = decay * rows + (1 - decay) * squared.mean(larger, keepdims=True)
            columns = decay * columns + (1 - decay) * squared.mean(smaller, keepdims=True)
            second = rows / rows.mean(smaller, keepdims=True) * columns
        else:
            rows = second = decay * rows + (1 - decay) * squared
        momentum = beta_1 * momentum + (1 - beta_1) * gradient / np.sqrt(second)
        value = value - learning_rate * momentum
    return value


def _moved(name, value, gradients, settings):
    """Returns a parameter after updates as the trainer makes them."""
    shape = optimizers.shapes({name: value.shape}, settings)[name]
    specs = optimizers.slot_specs(shape, settings.optimizer)
    slots = {slot: tf.zeros(spec.shape, spec.dtype) for slot, spec in specs.items()}
    found = tf.constant(value, tf.float32)
    for step, gradient in enumerate(gradients):
        update = optimizers.make_update(
            tf.constant(1.0), tf.constant(step), config=settings.optimizer
        )
        found, slots = update(
            found,
            slots,
            tf.constant(gradient, tf.float32),
            rate=1.0,
            decay=0.0,
            shape=shape,
        )
    return found.numpy()


@pytest.mark.parametrize("name", CASES)
def test_moves_are_those_of_big_vision(name):
    ours, theirs = CASES[name]
    rng = np.random.default_rng(0)
    # Rows, columns and heads of different sizes, so that it matters which are averaged.
    scales = np.exp(rng.standard_normal(theirs))
    value = rng.standard_normal(ours)
    gradients = [(rng.standard_normal(theirs) * scales).reshape(ours) for _ in range(5)]
    settings = _settings()
    found = _moved(name, value, gradients, settings)
    options = settings.optimizer
    expected = big_vision_adafactor(
        value.reshape(theirs),
        [gradient.reshape(theirs) for gradient in gradients],
        learning_rate=options.learning_rate,
        beta_1=options.beta_1,
        beta_2=options.beta_2,
    ).reshape(ours)
    moves = np.abs(expected - value).mean()
    np.testing.assert_allclose(found, expected, atol=1e-4 * moves, rtol=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_shapes_are_those_of_big_vision(name):
    ours, theirs = CASES[name]
    settings = _settings()
    assert optimizers.shapes({name: ours}, settings) == {name: theirs}
    other = dataclasses.replace(settings, optimizer=config.OptimizerConfig())
    assert optimizers.shapes({name: ours}, other) == {name: ours}


def test_slots_are_made_in_the_shapes_that_are_seen():
    name = f"image/{ATTENTION}/query/kernel"
    slots = optimizers.make_slots({name: tf.Variable(tf.zeros((128, 128)))}, _settings())[name]
    assert {slot: tuple(value.shape) for slot, value in slots.items()} == {
        "first": (128, 2, 64),
        "rows": (2, 64),
        "columns": (128, 2),
    }


def test_slots_of_other_shapes_are_no_checkpoint_of_this_model(tmp_path):
    def state(slots):
        numbers = (tf.Variable(tf.zeros((), tf.int64)), tf.Variable(tf.zeros((2,), tf.int64)))
        return TrainState({}, {"a": slots}, {}, *numbers)

    merged = {"rows": tf.Variable(tf.zeros(128)), "columns": tf.Variable(tf.zeros(128))}
    Checkpoints(tmp_path, state(merged)).save()
    apart = {"rows": tf.Variable(tf.zeros((2, 64))), "columns": tf.Variable(tf.zeros((128, 2)))}
    with pytest.raises(RuntimeError, match="is of another model"):
        Checkpoints(tmp_path, state(apart)).restore_latest()
