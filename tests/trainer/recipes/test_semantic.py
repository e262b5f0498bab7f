"""The recipe of a tree of classes: what it learns, and that it asks for its tree."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from sigline.components.scenes import grammar
from sigline.trainer import config
from sigline.trainer.export.capabilities import classify
from sigline.trainer.export.served import Served
from sigline.trainer.inputs import data
from sigline.trainer.losses import semantic_softmax
from sigline.trainer.models import two_tower
from sigline.trainer.run import Job
from sigline.trainer.training import mixup, steps
from sigline.trainer.training.calls import Models, mixup_seed

# The first 6 of the 36 classes of scenes are at the top, and each of them is above 5 others.
_PARENTS = (*(-1 for _ in range(6)), *(i % 6 for i in range(30)))
_LABELS = dataclasses.replace(grammar.label_set(), parents=_PARENTS)


@pytest.fixture(scope="module")
def tiny():
    recipe = config.tiny(config.load_recipe("semantic_21k_b16"))
    sizes = ["image.depth=1", "image.patch=8", "image.size=16", "image.classes=36"]
    options = ["data.randaugment=none", "objectives.classify.unlabelled=skip"]
    return config.override(recipe, [*sizes, *options])


@pytest.fixture(scope="module")
def model(tiny):
    return two_tower.build(tiny)


@pytest.fixture(scope="module")
def batch(tiny, model, split_dir):
    models = Models.of(tiny, model, labels=_LABELS)
    return next(iter(data.training_batches(split_dir, tiny, models.needs, first_step=0)))


def test_recipe_is_that_of_the_authors():
    recipe = config.load_recipe("semantic_21k_b16")
    assert recipe.class_loss == "semantic"
    assert recipe.steps == 80 * 11_797_632 // 512
    assert (recipe.image.classes, recipe.objectives[0].smoothing) == (11_221, 0.2)
    assert (recipe.data.crop_min_area, recipe.image.resize) == (None, "squash")
    assert config.load_gate("semantic_21k_b16") == config.load_gate("vit_s16")


def test_descent_makes_each_level_surer(tiny, model, batch):
    models = Models.of(tiny, model, labels=_LABELS)
    parameters = {n: tf.convert_to_tensor(x) for n, x in two_tower.named_variables(model).items()}

    @tf.function(autograph=False, jit_compile=True)
    def compute(parameters):
        return steps.forward_backward(parameters, batch, tf.constant(0), models=models)

    found = []
    for _ in range(8):
        outcome = compute(parameters)
        found.append({name: float(x) for name, x in outcome.shares.items()})
        parameters = {name: x - 0.2 * outcome.gradients[name] for name, x in parameters.items()}
    # A head of zeros gives all classes of a level the same: ln 6, and ln 30 of five sixths of the
    # classes where a label lies below the top.
    label = batch["label"].numpy()
    below = (label.max(1) >= 6)[label.max(1) >= 0]
    expected = np.log(6) + (36 / 30) * np.log(30) * below.mean()
    assert found[0]["loss"] == pytest.approx(expected, rel=1e-5)
    assert found[-1]["loss"] < found[0]["loss"] - 0.5
    assert found[-1]["accuracy"] > found[0]["accuracy"]


def test_mixup_mixes_the_targets_of_all_levels(tiny, model, batch):
    labels = tf.where(batch["label"] < 0, tf.constant([[7] + [-1] * 7]), batch["label"])
    inputs = batch | {"label": labels}
    changes = ["objectives.classify.unlabelled=refuse", "data.mixup=1"]
    settings = config.override(tiny, changes)
    models = Models.of(settings, model, labels=_LABELS)
    targets = models.objectives[0].targets(inputs)
    (name,) = targets
    mixed = mixup.mixed_up(
        {**inputs, **targets},
        ["image", name],
        concentration=1.0,
        seed=mixup_seed(settings, tf.constant(1, tf.int64)),
    )
    rng = np.random.default_rng(0)
    parameters = {
        n: tf.constant(x.numpy() + 0.1 * rng.standard_normal(x.shape), tf.float32)
        for n, x in two_tower.named_variables(model).items()
    }

    def loss(config, examples, number):
        of = Models.of(config, model, labels=_LABELS)
        step = tf.constant(number, tf.int64)
        return float(steps.forward_backward(parameters, examples, step, models=of).shares["loss"])

    # The targets of a mixture are the mixture of targets: both losses, by how much is kept.
    plain = config.override(settings, ["data.mixup=0"])
    rolled = mixed | {"label": tf.roll(labels, 1, axis=0)}
    own, neighbour = (loss(plain, x, 1) for x in (mixed | {"label": labels}, rolled))
    both = targets[name].numpy(), np.roll(targets[name].numpy(), 1, axis=0)
    row, column = np.argwhere(np.abs(both[0] - both[1]) > 0.5)[0]
    share = (mixed[name].numpy() - both[1])[row, column] / (both[0] - both[1])[row, column]
    expected = share * own + (1 - share) * neighbour
    assert loss(settings, inputs, 1) == pytest.approx(expected, rel=1e-4)


def test_served_probabilities_are_those_of_each_level(tiny, model, scene_records):
    head = model.image.head.kernel
    head.assign(np.random.default_rng(2).standard_normal(head.shape))
    served = Served(model, tiny, labels=_LABELS)
    images = tf.constant([record.image for record in scene_records[:2]])
    answer = classify.make(served)(images)
    logits = served.look(served.load(images))[two_tower.CLASSES]
    levels = semantic_softmax.levels_of(_PARENTS)
    expected = semantic_softmax.semantic_probabilities(logits, levels=levels).numpy()
    np.testing.assert_allclose(answer["scores"][:, 0], expected.max(1), rtol=1e-5)
    best = [_LABELS.names[i].encode() for i in expected.argmax(1)]
    assert answer["classes"][:, 0].numpy().tolist() == best


@pytest.mark.parametrize("labels", [None, grammar.label_set()])
def test_without_a_tree_nothing_is_trained_and_nothing_served(tiny, labels, model, tmp_path):
    message = r"objectives\[0\].loss=semantic needs a tree of the classes.*Received: .*label set"
    with pytest.raises(ValueError, match=message):
        Job(tiny, tmp_path, None, "code", labels=labels)
    with pytest.raises(ValueError, match=message):
        Models.of(tiny, model, labels=labels)
    with pytest.raises(ValueError, match=message):
        classify.make(Served(model, tiny, labels=grammar.label_set()))


def test_tree_is_part_of_the_run_and_names_are_not(tiny, split_dir):
    job = Job(tiny, split_dir, None, "code", labels=_LABELS)
    names = tuple(name.upper() for name in _LABELS.names)
    renamed = dataclasses.replace(_LABELS, names=names)
    assert dataclasses.replace(job, labels=renamed).identity == job.identity
    flat = dataclasses.replace(_LABELS, parents=(*_PARENTS[:-1], -1))
    assert dataclasses.replace(job, labels=flat).identity != job.identity
