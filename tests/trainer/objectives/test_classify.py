"""Supervised classification: losses, targets, and runs that learn from labels."""

import dataclasses
import json
import re

import numpy as np
import pytest
import tensorflow as tf

from sigline.schemas import record, tf_example
from sigline.trainer import config
from sigline.trainer.export import saved_model
from sigline.trainer.inputs import data, needs, shards, usable
from sigline.trainer.inputs.preprocess import to_model_range
from sigline.trainer.losses import cross_entropy
from sigline.trainer.models import two_tower
from sigline.trainer.training import calls, loop, mixup, steps
from sigline.trainer.training.calls import Models

# Small, of few parameters.
_SIZES = [
    "image.depth=1",
    "image.patch=8",
    "image.size=16",
    "image.classes=36",
    "data.mixup=0",
    "data.crop_min_area=none",
    "data.flip=false",
    "data.randaugment=none",
]


@pytest.fixture(scope="module")
def tiny():
    return config.override(config.tiny(config.load_recipe("vit_s16")), _SIZES)


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    labels = np.full((8, 8), -1, np.int32)
    labels[:, 0] = rng.integers(0, 36, 8)
    labels[1, 1:3] = labels[1, 0] + np.array([1, 2]) if labels[1, 0] < 34 else [0, 1]
    pixels = rng.integers(0, 256, (8, 16, 16, 3), np.uint8)
    return {"image": tf.constant(pixels), "label": tf.constant(labels)}


def _outcome(settings, inputs, *, compiled=True, step=0):
    model = two_tower.build(settings)
    rng = np.random.default_rng(3)
    parameters = {
        name: tf.constant(value.numpy() + 0.1 * rng.standard_normal(value.shape), tf.float32)
        for name, value in two_tower.named_variables(model).items()
    }
    models = Models.of(settings, model)
    compute = tf.function(
        lambda p, x: steps.forward_backward(p, x, tf.constant(step, tf.int64), models=models),
        jit_compile=compiled,
        autograph=False,
    )
    return compute(parameters, inputs), parameters, models


# Independent values: float64, by hand.
_LOGITS = np.array([[1.0, 2.0, 3.0], [0.0, -1.0, 2.0]], np.float32)
_LABELS = tf.constant([[0, 2], [0, -1]])


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "xla"])
def test_cross_entropies_equal_golden_values(compiled):
    def compute(logits):
        hot = {"classes": 3}
        return (
            cross_entropy.softmax_cross_entropy(
                logits, cross_entropy.softmax_targets(_LABELS, **hot)
            ),
            cross_entropy.sigmoid_cross_entropy(
                logits, cross_entropy.sigmoid_targets(_LABELS, **hot)
            ),
        )

    softmax, sigmoid = tf.function(compute, jit_compile=compiled)(tf.constant(_LOGITS))
    np.testing.assert_allclose(softmax, [1.407605964444, 2.169846019556], rtol=1e-6)
    np.testing.assert_allclose(sigmoid, [2.488777050135, 3.133336879121], rtol=1e-6)


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "xla"])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("name", ["softmax", "sigmoid"])
def test_losses_and_gradients_equal_float64(name, smoothing, compiled):
    rng = np.random.default_rng(1)
    logits = 5 * rng.standard_normal((6, 11))
    labels = np.full((6, 4), -1, np.int32)
    for row in labels[:5]:
        count = rng.integers(1, 4)
        row[:count] = rng.choice(11, count, replace=False)
    hot = np.zeros((6, 11))
    for i, row in enumerate(labels):
        hot[i, row[row >= 0]] = 1.0
    if name == "softmax":
        shares = hot / np.maximum(hot.sum(1, keepdims=True), 1)
        targets = (1 - smoothing) * shares + smoothing / 11
        log_sum = np.log(np.exp(logits).sum(1, keepdims=True))
        expected = (targets * (log_sum - logits)).sum(1)
        slopes = targets.sum(1, keepdims=True) * np.exp(logits - log_sum) - targets
    else:
        targets = (1 - smoothing) * hot + smoothing / 2
        positive, negative = np.log1p(np.exp(-logits)), np.log1p(np.exp(logits))
        expected = (targets * positive + (1 - targets) * negative).sum(1)
        slopes = 1 / (1 + np.exp(-logits)) - targets

    def compute(x):
        make = getattr(cross_entropy, f"{name}_targets")
        loss = getattr(cross_entropy, f"{name}_cross_entropy")
        with tf.GradientTape() as tape:
            tape.watch(x)
            made = make(tf.constant(labels), classes=11, smoothing=smoothing)
            value = loss(x, made)
        return made, value, tape.gradient(value, x)

    made, value, gradient = tf.function(compute, jit_compile=compiled)(
        tf.constant(logits, tf.float32)
    )
    np.testing.assert_allclose(made, targets, atol=1e-6)
    np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(gradient, slopes, rtol=1e-5, atol=2e-6)


def test_shapes_that_differ_are_refused():
    with pytest.raises(ValueError, match=r"same shape.*targets.shape=\(2, 4\)"):
        cross_entropy.softmax_cross_entropy(tf.zeros((2, 3)), tf.zeros((2, 4)))


@pytest.mark.parametrize(
    ("loss", "classes", "bias", "expected"),
    [
        ("softmax", 1000, 0.0, np.log(1000)),
        ("sigmoid", 1000, -6.9, 7.907277954),
        ("sigmoid", 21843, -10.0, 10.991648156),
    ],
)
def test_initial_loss_is_that_of_the_prior(tiny, batch, loss, classes, bias, expected):
    settings = config.override(
        tiny,
        [
            f"image.classes={classes}",
            f"image.head_bias_init={bias}",
            f"objectives.classify.loss={loss}",
        ],
    )
    model = two_tower.build(settings)
    parameters = {n: tf.convert_to_tensor(v) for n, v in two_tower.named_variables(model).items()}
    single = batch | {"label": batch["label"][:, :1]}
    outcome = steps.forward_backward(
        parameters, single, tf.constant(0), models=Models.of(settings, model)
    )
    assert float(outcome.shares["loss"]) == pytest.approx(expected, rel=1e-5)


def test_head_bias_changes_no_embedding_and_no_digest_of_a_tower(tiny):
    other = config.override(tiny, ["image.head_bias_init=-6.9"])
    assert saved_model.answering(other.image) == saved_model.answering(tiny.image)
    assert other.digest() != tiny.digest()


def test_loss_and_accuracy_are_means_over_labelled_images(tiny, batch):
    labels = batch["label"].numpy().copy()
    labels[[2, 5]] = -1
    inputs = batch | {"label": tf.constant(labels)}
    settings = config.override(tiny, ["objectives.classify.unlabelled=skip"])
    outcome, parameters, models = _outcome(settings, inputs)
    kept = [0, 1, 3, 4, 6, 7]
    alone, *_ = _outcome(settings, {n: tf.gather(x, kept) for n, x in inputs.items()})
    assert float(outcome.shares["loss"]) == pytest.approx(float(alone.shares["loss"]), rel=1e-5)
    for name, value in alone.gradients.items():
        np.testing.assert_allclose(outcome.gradients[name], value, atol=2e-6, err_msg=name)
    for name, variable in two_tower.named_variables(models.model).items():
        variable.assign(parameters[name])
    said = models.model.look(to_model_range(inputs["image"], settings.image))["classes"].numpy()
    best = said.argmax(1)
    right = [best[i] in labels[i][labels[i] >= 0] for i in kept]
    assert float(outcome.shares["accuracy"]) == pytest.approx(np.mean(right), abs=1e-6)


def test_batch_without_a_label_has_nothing_to_learn_and_is_no_error(tiny, batch):
    settings = config.override(tiny, ["objectives.classify.unlabelled=skip"])
    outcome, *_ = _outcome(settings, batch | {"label": tf.fill((8, 8), -1)})
    assert float(outcome.shares["loss"]) == 0.0
    assert all(float(tf.reduce_max(abs(x))) == 0.0 for x in outcome.gradients.values())


def test_mixup_mixes_labels_as_it_mixes_pixels(tiny, batch):
    settings = config.override(tiny, ["data.mixup=1", "objectives.classify.smoothing=0.1"])
    outcome, *_ = _outcome(settings, batch, step=3, compiled=False)
    seed = calls.mixup_seed(settings, tf.constant(3, tf.int64))
    targets = cross_entropy.softmax_targets(batch["label"], classes=36, smoothing=0.1)
    mixed = mixup.mixed_up(
        {"image": batch["image"], "t": targets}, ["image", "t"], concentration=1.0, seed=seed
    )
    ours, theirs = targets.numpy(), np.roll(targets.numpy(), 1, axis=0)
    row = int(np.abs(ours - theirs).sum(1).argmax())
    column = int(np.abs(ours - theirs)[row].argmax())
    share = (mixed["t"].numpy() - theirs)[row, column] / (ours - theirs)[row, column]
    assert 0.5 <= share <= 1.0
    np.testing.assert_allclose(mixed["t"], share * ours + (1 - share) * theirs, atol=1e-5)
    _, parameters, models = _outcome(tiny, batch)
    for name, variable in two_tower.named_variables(models.model).items():
        variable.assign(parameters[name])
    logits = models.model.look(to_model_range(mixed["image"], tiny.image))["classes"]
    expected = tf.reduce_mean(cross_entropy.softmax_cross_entropy(logits, mixed["t"]))
    assert float(outcome.shares["loss"]) == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "xla"])
@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
def test_microbatches_give_the_gradients_of_the_whole_batch(tiny, batch, loss, compiled):
    labels = batch["label"].numpy().copy()
    # A part without a label.
    labels[4:6] = -1
    inputs = batch | {"label": tf.constant(labels)}
    changes = [f"objectives.classify.loss={loss}", "objectives.classify.unlabelled=skip"]
    settings = config.override(tiny, changes)
    whole, *_ = _outcome(settings, inputs, compiled=compiled)
    parts, *_ = _outcome(config.override(settings, ["microbatches=4"]), inputs, compiled=compiled)
    assert set(parts.shares) == set(whole.shares) == {"loss", "accuracy"}
    for name, value in whole.shares.items():
        assert float(parts.shares[name]) == pytest.approx(float(value), rel=1e-5)
    for name, value in whole.gradients.items():
        scale = float(tf.reduce_max(abs(value)))
        np.testing.assert_allclose(
            parts.gradients[name], value, atol=2e-5 * scale + 1e-7, rtol=0, err_msg=name
        )


@pytest.mark.parametrize("number", [1, 2, 4])
def test_pairs_and_labels_are_learnt_together(number, batch):
    demo = config.tiny(config.load_recipe("siglip_demo"))
    both = '[{"kind": "pairs"}, {"kind": "classify", "weight": 0.5, "unlabelled": "skip"}]'
    sizes = ["image.depth=1", "text.depth=1", "image.patch=8", "image.size=16"]
    settings = config.override(demo, [*sizes, "image.classes=36", f"objectives={both}"])
    texts = tf.constant(np.random.default_rng(1).integers(1, 200, (8, 16)), tf.int32)
    inputs = batch | {"text": texts}
    pairs = dataclasses.replace(settings, objectives=settings.objectives[:1])
    classify = config.override(
        dataclasses.replace(settings, objectives=settings.objectives[1:]), ["text=none"]
    )
    outcome, *_ = _outcome(config.override(settings, [f"microbatches={number}"]), inputs)
    assert set(outcome.shares) == {"loss", "loss/pairs", "loss/classify", "accuracy"}
    # Alone, a head that nothing reads has to be frozen, and parameters are drawn in their order.
    frozen = config.override(pairs, ['optimizer.rates=[["image/head/.*", null], [".*", 1]]'])
    one, parameters, _ = _outcome(frozen, inputs)
    assert float(outcome.shares["loss/pairs"]) == pytest.approx(float(one.shares["loss"]), rel=1e-5)
    model = two_tower.build(classify)
    images = {n: x for n, x in parameters.items() if n.startswith("image/")}
    other = steps.forward_backward(images, batch, tf.constant(0), models=Models.of(classify, model))
    loss = float(other.shares["loss"]) / 0.5
    assert float(outcome.shares["loss/classify"]) == pytest.approx(loss, rel=1e-5)
    for name, value in outcome.gradients.items():
        expected = tf.zeros_like(value)
        for part in (one, other):
            expected += part.gradients.get(name, 0.0)
        scale = float(tf.reduce_max(abs(expected)))
        np.testing.assert_allclose(value, expected, atol=2e-5 * scale + 1e-7, err_msg=name)


def _relabelled(split_dir, folder, change):
    """Writes the scenes with other labels: `change` gets place and labels."""
    folder.mkdir(parents=True)
    place = 0
    for path in sorted(split_dir.iterdir()):
        records = []
        for serialized in tf_example.read_shard(str(path)):
            example = tf.train.Example.FromString(serialized)
            held = example.features.feature[record.LABEL].int64_list
            ids = change(place, list(held.value))
            del held.value[:]
            held.value.extend(ids)
            records.append(example.SerializeToString(deterministic=True))
            place += 1
        tf_example.write_shard(str(folder / path.name), records)
    return folder


@pytest.fixture(scope="module")
def labelled(split_dir, tmp_path_factory):
    """The scenes, each with one label."""
    folder = tmp_path_factory.mktemp("labelled") / "Split-train"
    return _relabelled(split_dir, folder, lambda i, ids: ids[:1] or [i % 36])


def test_batches_hold_labels_filled_up(tiny, split_dir, tmp_path):
    folder = _relabelled(split_dir, tmp_path / "a", lambda i, ids: [i % 36, 35][: i % 3])
    labels = needs.Labels(36, 2, required=False)
    asked = needs.of_pairs(tiny.image, None)._replace(labels=labels)
    found = next(iter(data.training_batches(folder, tiny, asked, first_step=0)))["label"].numpy()
    assert found.shape == (8, 2)
    assert found.dtype == np.int32
    keys = data.batch_keys(folder, tiny, number=1)
    order = [
        tf_example.key(item)
        for path in shards.shard_files(folder)
        for item in tf_example.read_shard(path)
    ]
    for row, key in zip(found, keys, strict=True):
        i = order.index(key)
        assert [x for x in row if x >= 0] == [i % 36, 35][: i % 3]


@pytest.mark.parametrize(
    ("ids", "reason"),
    [
        ([36], "label must be at least 0 and below image.classes=36"),
        ([-1], "label must be at least 0 and below image.classes=36"),
        ([2**40], "label must be at least 0 and below image.classes=36"),
        ([1] * 9, "no more labels than labels_per_image=8 are read"),
        ([], "no label, which unlabelled=skip allows"),
    ],
)
def test_labels_that_are_none_are_told_by_key(tiny, labelled, tmp_path, ids, reason):
    folder = _relabelled(labelled, tmp_path / "b", lambda i, held: ids if i == 7 else held)
    items = list(tf_example.read_shard(shards.shard_files(folder)[0]))
    models = Models.of(tiny, two_tower.build(tiny))
    problems = usable.Check(tiny, models.needs)(items[:9])
    assert list(problems) == [7]
    assert problems[7].startswith(f"key {tf_example.key(items[7])!r}: {reason}")


def test_labels_that_are_none_stop_the_run_or_are_left_out(tiny, labelled, tmp_path):
    folder = _relabelled(labelled, tmp_path / "b", lambda i, held: [36] if i == 7 else held)
    items = list(tf_example.read_shard(shards.shard_files(folder)[0]))
    reason = "label must be at least 0 and below image.classes=36"
    settings = config.override(tiny, ["steps=20", "global_batch_size=25"])
    with pytest.raises(RuntimeError, match=re.escape(reason)) as caught:
        loop.train(settings, split_dir=folder, vocabulary=None, checkpoint_dir=tmp_path / "ck")
    assert f".gz: record 7, key {tf_example.key(items[7])!r}: " in str(caught.value)
    # As other records that cannot be used, so many may be left out.
    allowed = config.override(settings, ["run.max_damaged_records=1", "steps=4"])
    result = loop.train(allowed, split_dir=folder, vocabulary=None, checkpoint_dir=tmp_path / "d")
    assert np.isfinite(result.final_loss)


def test_labels_are_learnt_and_resumed_to_the_bit(tiny, labelled, tmp_path, monkeypatch):
    settings = config.override(
        tiny,
        ["steps=60", "optimizer.learning_rate=1e-2", "data.mixup=0.2", "run.checkpoint_steps=30"],
    )

    def train(settings, folder):
        return loop.train(
            settings, split_dir=labelled, vocabulary=None, checkpoint_dir=tmp_path / folder
        )

    whole = train(settings, "whole")
    assert whole.final_loss < np.log(36) - 0.3
    make_step = loop.make_train_step

    def stopping(*args):
        step = make_step(*args)

        def one(batch, number):
            if number == 31:
                raise KeyboardInterrupt
            return step(batch, number)

        return one

    monkeypatch.setattr(loop, "make_train_step", stopping)
    with pytest.raises(KeyboardInterrupt):
        train(settings, "half")
    monkeypatch.undo()
    resumed = train(settings, "half")
    assert resumed.first_step == 30
    values = two_tower.named_variables(resumed.model)
    for name, value in two_tower.named_variables(whole.model).items():
        np.testing.assert_array_equal(values[name], value, err_msg=name)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["image.classes=none"], r"objectives\[0\] needs a head.*image.classes=none"),
        (["objectives.classify.loss=hinge"], "must be one of softmax, sigmoid"),
        (["objectives.classify.smoothing=1"], "at least 0 and less than 1"),
        (["objectives.classify.unlabelled=drop"], "must be one of refuse, skip"),
        (["objectives.classify.labels_per_image=0"], "must be at least 1"),
        (
            ["objectives.classify.unlabelled=skip", "data.mixup=0.2"],
            "must be refuse with data.mixup",
        ),
        (["image.head_bias_init=NaN"], "image.head_bias_init must be finite"),
        (["objectives=" + json.dumps([{"kind": "clasify"}])], "Did you mean classify"),
    ],
)
def test_configurations_that_make_no_sense_are_refused(tiny, changes, message):
    with pytest.raises(ValueError, match=message):
        config.override(tiny, changes)
