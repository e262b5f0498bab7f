"""DeiT: a class token and a distillation token, each with a head and an objective."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from sigline.trainer import config
from sigline.trainer.export import saved_model
from sigline.trainer.inputs import preprocess
from sigline.trainer.losses import cross_entropy, divergence
from sigline.trainer.models import specs, two_tower
from sigline.trainer.objectives import frozen
from sigline.trainer.training import calls, mixup, start, steps
from sigline.trainer.training.calls import Models
from sigline.trainer.weights.model_weights import Weights

_CLASSES = 5
_SIZES = ["image.depth=1", "image.patch=4", "image.size=8", f"image.classes={_CLASSES}"]


def _values(model, seed):
    """Returns random values of a model's parameters, those of its heads too."""
    rng = np.random.default_rng(seed)
    return {
        name: (x.numpy() + 0.3 * rng.standard_normal(x.shape)).astype(np.float32)
        for name, x in two_tower.named_variables(model).items()
    }


@pytest.fixture(scope="module")
def settings():
    tiny = config.tiny(config.load_recipe("deit_s16"))
    return config.override(tiny, [*_SIZES, "data.mixup=0", "image.num_registers=1"])


@pytest.fixture(scope="module")
def model(settings):
    built = two_tower.build(settings)
    values = _values(built, 1)
    for name, variable in two_tower.named_variables(built).items():
        variable.assign(values[name])
    return built


@pytest.fixture(scope="module")
def teachers(settings):
    image = dataclasses.replace(settings.image, distillation_token=False, pool="gap")
    plain = dataclasses.replace(
        settings, image=image, objectives=(config.ClassifyConfig(),), name="teacher"
    )
    weights = Weights(plain, _values(two_tower.build(plain), 2))
    return frozen.make({"teacher": weights}, settings, vocabulary=None, labels=None)


@pytest.fixture(scope="module")
def inputs():
    rng = np.random.default_rng(0)
    labels = np.full((6, 8), -1, np.int32)
    labels[:, 0] = rng.integers(0, _CLASSES, 6)
    pixels = rng.integers(0, 256, (6, 8, 8, 3), np.uint8)
    return {"image": tf.constant(pixels), "label": tf.constant(labels)}


def _step(settings, model, teachers, inputs, *, step):
    parameters = {n: tf.convert_to_tensor(x) for n, x in two_tower.named_variables(model).items()}
    values = {
        n: {k: tf.convert_to_tensor(x) for k, x in t.variables.items()} for n, t in teachers.items()
    }
    models = Models.of(settings, model, frozen=teachers)
    compute = tf.function(
        lambda p, x, number, v: steps.forward_backward(p, x, number, v, models=models),
        autograph=False,
    )
    return compute(parameters, inputs, tf.constant(step, tf.int64), values)


def test_model_has_the_published_number_of_parameters():
    # timm's and the authors' `deit_small_distilled_patch16_224`.
    parameters = specs.parameter_specs(config.load_recipe("deit_s16"))
    assert sum(x.shape.num_elements() for x in parameters.values()) == 22_436_432


def test_tokens_stand_before_the_patches_at_positions_of_their_own(settings):
    tower = two_tower.build(settings).image
    rng = np.random.default_rng(3)
    for name in ("token", "distillation_token", "token_positions", "positions", "registers"):
        variable = getattr(tower, name)
        variable.assign(rng.standard_normal(variable.shape))
    seen = []
    tower.encoder.call = lambda x, seed=None, tokens=None: seen.append((x, tokens)) or x[:, tokens]
    class_token, distilled = tower(tf.zeros((2, 8, 8, 3)), with_distilled=True)
    ((sequence, tokens),) = seen
    assert tokens == slice(0, 2)
    own = np.concatenate([tower.token.numpy()[0], tower.distillation_token.numpy()[0]])
    own = own + tower.token_positions.numpy()[0]
    # The patches of a black picture are the bias of their layer, which is zero.
    expected = np.concatenate([own, tower.positions.numpy()[0], tower.registers.numpy()[0]])
    np.testing.assert_allclose(sequence[1], expected, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(class_token[1], expected[0], rtol=1e-6)
    np.testing.assert_allclose(distilled[1], expected[1], rtol=1e-6)


def test_fixed_positions_leave_the_tokens_without():
    tiny = config.tiny(config.load_recipe("deit_s16"))
    fixed = config.override(tiny, [*_SIZES, "image.positions=sincos2d"])
    names = specs.parameter_specs(fixed)
    assert "image/distillation_token" in names
    assert not [name for name in names if "positions" in name]


def test_logits_are_the_mean_of_both_heads(settings, model, inputs):
    pixels = preprocess.to_model_range(inputs["image"], settings.image)
    said = model.look(pixels)
    vectors = model.image(pixels, with_distilled=True)
    values = {n: x.numpy() for n, x in two_tower.named_variables(model).items()}
    heads = [
        x.numpy() @ values[f"image/head/{name}kernel"] + values[f"image/head/{name}bias"]
        for x, name in zip(vectors, ("", "distilled/"), strict=True)
    ]
    np.testing.assert_allclose(said[two_tower.CLASS_HEAD], heads[0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(said[two_tower.DISTILLATION_HEAD], heads[1], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(said[two_tower.CLASSES], sum(heads) / 2, rtol=1e-4, atol=1e-5)
    assert np.abs(heads[0] - heads[1]).max() > 0.1
    unit = vectors[0].numpy() / np.linalg.norm(vectors[0], axis=1, keepdims=True)
    np.testing.assert_allclose(said[two_tower.EMBEDDING], unit, rtol=1e-5, atol=1e-6)


def test_loss_and_served_probabilities_equal_golden_values():
    of_class, of_distillation = tf.constant([[1.0, 2.0, 3.0]]), tf.constant([[0.0, 1.0, -1.0]])
    targets = cross_entropy.softmax_targets(tf.constant([[2]]), classes=3)
    labels = cross_entropy.softmax_cross_entropy(of_class, targets)
    taught = divergence.hard_cross_entropy(tf.constant([[0.1, 0.9, 0.3]]), of_distillation)
    assert float(0.5 * labels[0] + 0.5 * taught[0]) == pytest.approx(0.407605964444, rel=1e-6)
    served = tf.nn.softmax(0.5 * (of_class + of_distillation))
    golden = [[0.186323723226, 0.506480391056, 0.307195885718]]
    np.testing.assert_allclose(served, golden, rtol=1e-6)


@pytest.mark.parametrize("hard", [True, False])
def test_each_head_learns_its_own_target_of_the_mixed_image(
    settings, model, teachers, inputs, hard
):
    changes = ["data.mixup=1", f"objectives.distill.hard={str(hard).lower()}"]
    changed = config.override(settings, changes)
    outcome = _step(changed, model, teachers, inputs, step=2)
    targets = cross_entropy.softmax_targets(inputs["label"], classes=_CLASSES, smoothing=0.1)
    mixed = mixup.mixed_up(
        {"image": inputs["image"], "targets": targets},
        ["image", "targets"],
        concentration=1.0,
        seed=calls.mixup_seed(changed, tf.constant(2, tf.int64)),
    )
    pixels = preprocess.to_model_range(mixed["image"], settings.image)
    said, theirs = model.look(pixels), teachers["teacher"].model.look(pixels)[two_tower.CLASSES]
    ours = said[two_tower.DISTILLATION_HEAD]
    labels = cross_entropy.softmax_cross_entropy(said[two_tower.CLASS_HEAD], mixed["targets"])
    loss = divergence.hard_cross_entropy if hard else divergence.kl_divergence
    expected = float(tf.reduce_mean(labels)), float(tf.reduce_mean(loss(theirs, ours)))
    found = [float(outcome.shares[f"loss/{x}"]) for x in ("classify", "teacher_classes")]
    assert found == pytest.approx(expected, rel=1e-4)
    assert float(outcome.shares["loss"]) == pytest.approx(0.5 * sum(expected), rel=1e-4)
    gradients = outcome.gradients
    slopes = tf.reduce_mean(tf.nn.softmax(said[two_tower.CLASS_HEAD]) - mixed["targets"], axis=0)
    np.testing.assert_allclose(gradients["image/head/bias"], 0.5 * slopes, atol=1e-5)
    best = tf.one_hot(tf.argmax(theirs, -1), _CLASSES) if hard else tf.nn.softmax(theirs)
    slopes = tf.reduce_mean(tf.nn.softmax(ours) - best, axis=0)
    np.testing.assert_allclose(gradients["image/head/distilled/bias"], 0.5 * slopes, atol=1e-5)
    assert float(tf.reduce_max(abs(gradients["image/distillation_token"]))) > 0


def test_teacher_of_a_tree_of_classes_is_refused(settings):
    objectives = (config.ClassifyConfig(loss="semantic"), *settings.objectives[1:])
    weights = Weights(dataclasses.replace(settings, objectives=objectives), {})
    with pytest.raises(ValueError, match=r"teacher must give one distribution.*loss='semantic'"):
        frozen.make({"teacher": weights}, settings, vocabulary=None, labels=None)


def test_embedding_does_not_depend_on_a_head_and_can_be_frozen(settings, model):
    digest = saved_model.image_digest(model)
    weights = Weights(settings, {n: x.numpy() for n, x in two_tower.named_variables(model).items()})
    tower = start.frozen_tower(settings, weights)
    assert not [name for name in two_tower.named_variables(tower) if name.startswith("image/head")]
    pixels = tf.random.stateless_uniform((2, 8, 8, 3), (0, 0), -1.0, 1.0)
    expected = model.look(pixels)[two_tower.EMBEDDING]
    np.testing.assert_allclose(tower.embed_image(pixels), expected, rtol=1e-5, atol=1e-6)
    assert saved_model.image_digest(tower) == digest


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["image.pool=gap"], "image.pool must be tok with image.distillation_token"),
        (
            ['objectives=[{"kind": "classify"}]'],
            "distillation_token needs an objective of kind distill.*Received: objectives=classify",
        ),
        (["objectives.distill.temperature=2"], "hard must be false.*temperature=2.0"),
    ],
)
def test_configurations_that_make_no_sense_are_refused(settings, changes, message):
    with pytest.raises(ValueError, match=message):
        config.override(settings, changes)
