import dataclasses
import json

import numpy as np
import pytest
import reference_losses
import tensorflow as tf

from sigline.components.scenes import grammar
from sigline.schemas import tf_example
from sigline.trainer import config
from sigline.trainer.inputs import data, needs, preprocess
from sigline.trainer.inputs.views import View
from sigline.trainer.losses import divergence
from sigline.trainer.models import two_tower
from sigline.trainer.objectives import frozen
from sigline.trainer.training import calls, loop, mixup, start, steps
from sigline.trainer.training.calls import Models
from sigline.trainer.weights.model_weights import Weights

_CLASSES = 36

_OF_PAIRS = {"kind": "distill", "teacher": "a", "target": "pairs"}

# Small towers of few parameters.
_SIZES = ["image.depth=1", "image.patch=8", "image.size=16", "image.pool=gap"]
_NO_BIASES = ["block.qkv_bias=false", "block.mlp_bias=false"]
_IMAGE = [*_SIZES, *(f"image.{option}" for option in _NO_BIASES)]
_TEXT = ["text.depth=1", *(f"text.{option}" for option in _NO_BIASES)]


def _weights(settings, vocabulary=None, seed=7) -> Weights:
    """Returns random weights, those of the head too."""
    model = two_tower.build(dataclasses.replace(settings, seed=seed))
    values = {name: variable.numpy() for name, variable in two_tower.named_variables(model).items()}
    rng = np.random.default_rng(seed)
    for name, value in values.items():
        if name.startswith("image/head/"):
            values[name] = rng.standard_normal(value.shape).astype(np.float32)
    return Weights(settings, values, vocabulary)


@pytest.fixture(scope="module")
def pairs():
    """A two-tower student of one two-tower teacher."""
    tiny = config.tiny(config.load_recipe("distill_siglip_s16"))
    return config.override(tiny, [*_IMAGE, *_TEXT])


@pytest.fixture(scope="module")
def classes():
    """A student of images alone of a teacher with a head."""
    tiny = config.tiny(config.load_recipe("distill_vit_s16"))
    return config.override(tiny, [f"image.classes={_CLASSES}", *_IMAGE])


@pytest.fixture(scope="module")
def pixels():
    rng = np.random.default_rng(0)
    return tf.constant(rng.integers(0, 256, (8, 16, 16, 3), np.uint8))


@pytest.fixture(scope="module")
def ids():
    return tf.constant(np.random.default_rng(1).integers(1, 200, (8, 16)), tf.int32)


def _made(settings, weights, *, vocabulary=None, labels=None):
    return frozen.make(weights, settings, vocabulary=vocabulary, labels=labels)


def _step(settings, made, inputs, *, model=None, step=0, compiled=False):
    model = model or two_tower.build(settings)
    parameters = {n: tf.convert_to_tensor(v) for n, v in two_tower.named_variables(model).items()}
    values = {
        n: {k: tf.convert_to_tensor(v) for k, v in t.variables.items()} for n, t in made.items()
    }
    compute = tf.function(
        lambda p, x, number, v: steps.forward_backward(
            p, x, number, v, models=Models.of(settings, model, frozen=made)
        ),
        jit_compile=compiled,
        autograph=False,
    )
    return compute(parameters, inputs, tf.constant(step, tf.int64), values)


def _float64_divergence(teacher, student, temperature):
    def log_softmax(x):
        x = x.astype(np.float64) / temperature
        x = x - x.max(-1, keepdims=True)
        return x - np.log(np.exp(x).sum(-1, keepdims=True))

    p, q = log_softmax(teacher), log_softmax(student)
    return temperature**2 * (np.exp(p) * (p - q)).sum(-1)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 10.0])
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "xla"])
def test_divergence_and_its_gradient_equal_float64(temperature, compiled):
    rng = np.random.default_rng(3)
    teacher, student = (5 * rng.standard_normal((6, 11)).astype(np.float32) for _ in range(2))

    def compute(t, s):
        with tf.GradientTape() as tape:
            tape.watch((t, s))
            value = divergence.kl_divergence(t, s, temperature=temperature)
        return value, *tape.gradient(value, (t, s), unconnected_gradients="zero")

    run = tf.function(compute, jit_compile=True, autograph=False) if compiled else compute
    value, of_teacher, of_student = run(tf.constant(teacher), tf.constant(student))
    expected = _float64_divergence(teacher, student, temperature)
    np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(of_teacher, np.zeros_like(teacher))
    step = 1e-5
    for column in range(student.shape[1]):
        moved = student.astype(np.float64) + step * np.eye(student.shape[1])[column]
        slope = (_float64_divergence(teacher, moved, temperature) - expected) / step
        np.testing.assert_allclose(of_student[:, column], slope, rtol=2e-3, atol=2e-3)


def test_divergence_of_other_shapes_is_refused():
    with pytest.raises(ValueError, match=r"same shape.*student.shape=\(2, 4\)"):
        divergence.kl_divergence(tf.zeros((2, 3)), tf.zeros((2, 4)))


def test_student_with_the_teachers_weights_has_nothing_to_learn(classes, pixels):
    weights = _weights(classes)
    model = two_tower.build(classes)
    for name, variable in two_tower.named_variables(model).items():
        variable.assign(weights.parameters[name])
    outcome = _step(classes, _made(classes, {"vit": weights}), {"image": pixels}, model=model)
    assert float(outcome.shares["loss"]) == pytest.approx(0.0, abs=1e-6)
    assert max(float(tf.reduce_max(abs(g))) for g in outcome.gradients.values()) < 1e-5


def test_loss_is_the_mean_divergence_of_the_mixed_images(classes, pixels):
    weights = _weights(classes)
    made = _made(classes, {"vit": weights})
    settings = config.override(classes, ["data.mixup=0.5"])
    outcome = _step(settings, made, {"image": pixels}, step=5)
    mixed = _mixed_up({"image": pixels}, settings, 5)["image"]
    models = made["vit"].model, two_tower.build(settings)
    logits = [
        m.look(preprocess.to_model_range(mixed, m.config.image))["classes"].numpy() for m in models
    ]
    expected = _float64_divergence(*logits, 1.0).mean()
    assert float(outcome.shares["loss"]) == pytest.approx(expected, rel=1e-4)


def _mixed_up(inputs, settings, step):
    names = [name for name in inputs if name.endswith("image")]
    seed = calls.mixup_seed(settings, tf.constant(step, tf.int64))
    return mixup.mixed_up(inputs, names, concentration=settings.data.mixup, seed=seed)


def test_mixup_mixes_neighbours_by_less_than_half_as_the_step_says(classes, pixels):
    x = tf.cast(pixels, tf.float32).numpy()
    inputs = {"image": pixels, "vit_image": pixels[:, ::2, ::2], "text": tf.zeros((8, 2))}
    shares = []
    for p in (1.0, 0.2):
        settings = config.override(classes, [f"data.mixup={p}"])
        for step in range(40):
            found = _mixed_up(inputs, settings, step)
            before = np.roll(x, 1, axis=0)
            share = float(
                np.mean((found["image"] - before)[x != before] / (x - before)[x != before])
            )
            np.testing.assert_allclose(found["image"], share * x + (1 - share) * before, atol=1e-2)
            small = share * x + (1 - share) * before
            np.testing.assert_allclose(found["vit_image"], small[:, ::2, ::2], atol=1e-2)
            np.testing.assert_array_equal(found["text"], inputs["text"])
            shares.append(share)
    assert min(shares) >= 0.5 - 1e-4
    assert max(shares) <= 1.0 + 1e-4
    # max(a, 1 - a) of a uniform a has the mean 3/4; of Beta(0.2, 0.2) it lies near the ends.
    assert np.mean(shares[:40]) == pytest.approx(0.75, abs=0.08)
    assert np.mean(shares[40:]) > 0.85
    again = _mixed_up(inputs, settings, 39)
    np.testing.assert_array_equal(again["image"], found["image"])


@pytest.mark.parametrize("concentration", [0.01, 0.2, 1.0, 3.0])
def test_shares_of_mixup_are_those_of_beta_under_xla_too(concentration):
    uniform = np.linspace(0.0, 1.0, 41, dtype=np.float32)[1:-1]
    draw = tf.function(
        lambda u: tf.map_fn(lambda x: mixup._upper_beta(concentration, x), u),
        jit_compile=True,
        autograph=False,
    )
    found = draw(tf.constant(uniform)).numpy()
    assert np.isfinite(found).all()
    # The upper half of the distribution: as many draws of Beta lie below each share.
    draws = np.random.default_rng(0).beta(concentration, concentration, 200_000)
    upper = np.maximum(draws, 1 - draws)
    below = (upper[:, None] <= found + 1e-6).mean(0)
    inside = found < 0.9999
    np.testing.assert_allclose(below[inside], uniform[inside], atol=0.01)
    assert (np.diff(found) >= 0).all()


def test_mixup_of_one_image_is_refused(classes, pixels):
    with pytest.raises(ValueError, match="needs at least two images"):
        _mixed_up({"image": pixels[:1]}, classes, 0)


def test_student_may_teach_in_its_turn(pairs, vocabulary, pixels, ids):
    alone = dataclasses.replace(pairs, objectives=pairs.objectives[1:])
    settings = config.override(alone, ["data.mixup=1", "image.classes=3"])
    both = config.PairsConfig(), config.PairsConfig(loss="softmax", weight=0.5)
    odd = dataclasses.replace(settings, data=pairs.data, objectives=both)
    for taught in (settings, odd):
        made = _made(pairs, {"siglip": _weights(taught, vocabulary)}, vocabulary=vocabulary)
        outcome = _step(pairs, made, {"image": pixels, "text": ids})
        assert np.isfinite(float(outcome.shares["loss"]))


def test_texts_are_tokenized_once_for_equal_tokens(pairs, vocabulary):
    wide = config.override(pairs, ["text.width=64", "text.depth=2", "image.width=64"])
    made = _made(pairs, {"siglip": _weights(wide, vocabulary)}, vocabulary=vocabulary)
    assert made["siglip"].own == needs.Needs()


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "xla"])
def test_pairs_are_taught_by_soft_cross_entropy(pairs, vocabulary, pixels, ids, compiled):
    weights = _weights(pairs, vocabulary)
    # A teacher that is sure of some pairs and not of others.
    weights.parameters["bias"] = np.float32(-1.0)
    settings = config.override(pairs, ["objectives.pairs.weight=0.25"])
    made = _made(settings, {"siglip": weights}, vocabulary=vocabulary)
    model = two_tower.build(settings)
    inputs = {"image": pixels, "text": ids}
    outcome = _step(settings, made, inputs, model=model, compiled=compiled)
    image, text = model(preprocess.to_model_range(pixels, settings.image), ids)
    theirs = made["siglip"].model(preprocess.to_model_range(pixels, settings.image), ids)
    targets = 1 / (1 + np.exp(-(10.0 * theirs[0].numpy() @ theirs[1].numpy().T - 1.0)))
    expected = {
        name: reference_losses.sigmoid(image.numpy(), text.numpy(), 10.0, -10.0, labels)["loss"]
        for name, labels in (("pairs", np.eye(8)), ("siglip_pairs", targets))
    }
    for name, value in expected.items():
        assert float(outcome.shares[f"loss/{name}"]) == pytest.approx(value, rel=1e-5)
    total = 0.25 * expected["pairs"] + expected["siglip_pairs"]
    assert float(outcome.shares["loss"]) == pytest.approx(total, rel=1e-5)


def test_softmax_loss_is_added_to_the_sigmoid_one_by_weight(pairs, pixels, ids):
    plain = dataclasses.replace(pairs, objectives=(config.PairsConfig(),))
    softmax = config.PairsConfig(loss="softmax", weight=0.5)
    both = dataclasses.replace(pairs, objectives=(config.PairsConfig(weight=2.0), softmax))
    alone = config.override(plain, ["objectives.pairs.loss=softmax"])
    model, inputs = two_tower.build(plain), {"image": pixels, "text": ids}
    found = [_step(x, {}, inputs, model=model) for x in (plain, alone, both)]
    sigmoid, softmax, total = (float(outcome.shares["loss"]) for outcome in found)
    assert total == pytest.approx(2 * sigmoid + 0.5 * softmax, rel=1e-6)
    assert float(found[2].shares["loss/softmax"]) == pytest.approx(softmax, rel=1e-6)
    for name, value in found[2].gradients.items():
        parts = [outcome.gradients[name] for outcome in found[:2]]
        np.testing.assert_allclose(value, 2 * parts[0] + 0.5 * parts[1], atol=1e-5, err_msg=name)


def test_losses_of_several_teachers_are_added_by_weight(classes, pixels):
    settings = dataclasses.replace(
        classes,
        objectives=(
            config.DistillConfig("a", weight=0.5, temperature=2.0),
            config.DistillConfig("b", weight=2.0),
        ),
    )
    made = _made(settings, {"a": _weights(classes, seed=1), "b": _weights(classes, seed=2)})
    found = {n: float(x) for n, x in _step(settings, made, {"image": pixels}).shares.items()}
    total = 0.5 * found["loss/a_classes"] + 2.0 * found["loss/b_classes"]
    assert found["loss"] == pytest.approx(total, rel=1e-6)
    assert found["loss/a_classes"] != found["loss/b_classes"]


def test_teacher_without_a_head_tells_classes_by_their_texts(classes, pairs, vocabulary, pixels):
    labels = grammar.label_set()
    weights = _weights(pairs, vocabulary)
    settings = dataclasses.replace(
        classes, objectives=(config.DistillConfig("siglip"),), data=pairs.data
    )
    made = _made(settings, {"siglip": weights}, labels=labels)
    teacher = made["siglip"]
    said = frozen.look(teacher, teacher.variables, {"image": pixels})
    tokenizer = preprocess.Tokenizer(vocabulary, pairs.text)
    image = teacher.model.embed_image(preprocess.to_model_range(pixels, pairs.image)).numpy()
    for number, prompts in list(enumerate(labels.prompts()))[::7]:
        text = teacher.model.embed_text(tokenizer(tf.constant(prompts))).numpy().mean(0)
        expected = 10.0 * image @ (text / np.linalg.norm(text))
        np.testing.assert_allclose(said["classes"][:, number], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["classes", "pairs"])
def test_microbatches_give_the_same_loss_and_gradients(request, kind, vocabulary, pixels, ids):
    settings = request.getfixturevalue(kind)
    name = settings.teachers[0]
    made = _made(settings, {name: _weights(settings, vocabulary)}, vocabulary=vocabulary)
    inputs = {"image": pixels, "text": ids} if kind == "pairs" else {"image": pixels}
    whole = _step(settings, made, inputs, compiled=True)
    parts = _step(dataclasses.replace(settings, microbatches=4), made, inputs, compiled=True)
    assert float(parts.shares["loss"]) == pytest.approx(float(whole.shares["loss"]), rel=1e-5)
    for key, value in whole.gradients.items():
        scale = float(tf.reduce_max(abs(value)))
        np.testing.assert_allclose(
            parts.gradients[key], value, atol=2e-5 * scale + 1e-7, rtol=0, err_msg=key
        )


def test_teacher_of_another_resolution_sees_the_same_crop(classes, split_dir):
    large = dataclasses.replace(classes.image, size=32)
    settings = config.override(classes, ["data.crop_min_area=0.3", "data.flip=true"])
    both = needs.Needs({"image": View(settings.image), "vit_image": View(large)})
    batch = next(iter(data.training_batches(split_dir, settings, both, first_step=0)))
    small, seen = batch["image"].numpy().astype(int), batch["vit_image"].numpy().astype(int)
    assert "text" not in batch
    assert seen.shape == (8, 32, 32, 3)
    # Every second pixel of twice the size lies within a pixel of the small picture's.
    matches = [[np.abs(a - b[::2, ::2]).mean() for b in (*seen, *seen[:, :, ::-1])] for a in small]
    assert np.argmin(matches, axis=1).tolist() == list(range(8))


def test_teacher_reads_with_its_own_vocabulary(pairs, vocabulary, split_dir):
    settings = dataclasses.replace(pairs, text=dataclasses.replace(pairs.text, length=8))
    made = _made(settings, {"siglip": _weights(pairs, vocabulary)}, vocabulary=vocabulary)
    tokenizer = preprocess.Tokenizer(vocabulary, settings.text)
    model = two_tower.build(settings)
    models = Models.of(settings, model, tokenizer=tokenizer, frozen=made)
    batch = next(iter(data.training_batches(split_dir, settings, models.needs, first_step=0)))
    assert batch["text"].shape == (8, 8)
    assert batch["siglip_text"].shape == (8, 16)
    np.testing.assert_array_equal(batch["text"][:, :5], batch["siglip_text"][:, :5])
    assert "siglip_image" not in batch


def test_images_without_texts_teach_a_model_of_images_alone(
    classes, pairs, scene_records, vocabulary, tmp_path
):
    folder = tmp_path / "Split-train"
    folder.mkdir()
    silent = []
    for item in scene_records[:24]:
        example = tf.train.Example.FromString(tf_example.encode(item))
        del example.features.feature["text"], example.features.feature["label"]
        silent.append(example.SerializeToString())
    tf_example.write_shard(str(folder / "a.gz"), silent)
    settings = dataclasses.replace(classes, objectives=(config.DistillConfig("siglip"),), steps=3)
    result = loop.train(
        settings,
        split_dir=folder,
        vocabulary=None,
        checkpoint_dir=tmp_path / "checkpoints",
        teachers={"siglip": _weights(pairs, vocabulary)},
        labels=grammar.label_set(),
    )
    assert np.isfinite(result.final_loss)
    assert result.final_loss > 0
    assert set(two_tower.named_variables(result.model)) == set(_weights(settings).parameters)
    saved = tf.train.list_variables(str(tmp_path / "checkpoints"))
    assert not any("class_embeddings" in name for name, _ in saved)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["objectives=[]"], "something to learn"),
        (['objectives=[{"kind": "pairs"}, {"kind": "pairs"}]'], "must each be there once"),
        (
            ["objectives=" + json.dumps([_OF_PAIRS] * 2)],
            "must each be there once.*Received: a_pairs, a_pairs",
        ),
        (["text=none"], r"objectives\[0\] is of images and texts and needs a text tower"),
        (["data.mixup=1"], "mixed image does not belong"),
        (["objectives.distill.teacher=a b"], "must be a name of letters"),
        (["objectives.distill.weight=0"], r"objectives\[1\].weight must be positive"),
        (["objectives.distill.target=classes"], "target=classes needs a head"),
        (["objectives[1].target=x"], "must be one of classes, pairs"),
        (["objectives.pairs.loss=softmax"], "needs a text tower, and the sigmoid loss"),
        (["objectives.distill.temperature=2"], "temperature must be 1 for pairs"),
        (["objectives.pairs.weight=NaN"], r"objectives\[0\].weight must be positive"),
        (["objectives.pair.weight=1"], "Unknown key objectives.pair.weight.*Did you mean"),
        (["objectives.pairs.wieght=1"], "Unknown key objectives.pairs.wieght.*Did you mean"),
        (["objectives[2].weight=1"], r"holds objectives\[0\] \(pairs\), objectives\[1\]"),
        (["objectives.classify.loss=softmax"], r"must name one of objectives and a key of it"),
        (["loss.weight=0"], r"loss.weight is objectives.pairs.weight now"),
        (["loss.bias_init=0"], r"loss.bias_init is similarity.bias_init now"),
        (["distillation=[]"], r"distillation is in objectives, with kind=distill, now"),
    ],
)
def test_objectives_that_make_no_sense_are_refused(pairs, change, message):
    with pytest.raises(ValueError, match=message):
        config.override(pairs, change)


def test_teachers_that_do_not_fit_are_refused(pairs, classes, vocabulary):
    fine = _weights(pairs, vocabulary)
    with pytest.raises(ValueError, match=r"Received: none; the recipe's: siglip"):
        _made(pairs, {})
    image = {n: x for n, x in fine.parameters.items() if n.startswith("image/")}
    with pytest.raises(ValueError, match="must have a text tower"):
        _made(pairs, {"siglip": dataclasses.replace(fine, parameters=image)})
    softmax = dataclasses.replace(pairs, objectives=(config.PairsConfig(loss="softmax"),))
    with pytest.raises(ValueError, match="must be of the sigmoid loss"):
        _made(pairs, {"siglip": dataclasses.replace(fine, config=softmax)})
    with pytest.raises(ValueError, match="must come with the vocabulary"):
        _made(pairs, {"siglip": dataclasses.replace(fine, vocabulary=None)})
    by_texts = dataclasses.replace(classes, objectives=(config.DistillConfig("siglip"),))
    with pytest.raises(ValueError, match="label set"):
        _made(by_texts, {"siglip": fine})
    ten = config.override(by_texts, ["image.classes=10"])
    with pytest.raises(ValueError, match=r"image.classes=10, classes of the teacher=36"):
        _made(ten, {"siglip": fine}, labels=grammar.label_set())


def test_embedded_images_cannot_be_shown_to_a_teacher(pairs, tmp_path):
    (tmp_path / "Split-train").mkdir()
    counts = {"embeddings": {"dim": 3}, "splits": {"train": {"shards": {"a.gz": {"records": 1}}}}}
    (tmp_path / "manifest.json").write_text(json.dumps(counts))
    with pytest.raises(ValueError, match=r"shown to a teacher.*objectives=\['siglip_pairs'\]"):
        data.training_batches(tmp_path / "Split-train", pairs, needs.Needs(), first_step=0)


def test_model_that_reads_needs_a_vocabulary(pairs):
    with pytest.raises(ValueError, match="needs a vocabulary"):
        start.make_tokenizer(None, pairs)


def test_teacher_without_its_vocabulary_reads_no_texts(classes, pairs, vocabulary):
    # The student's would be another one: the rows of the teacher's token table mean other pieces.
    with pytest.raises(ValueError, match="teacher siglip reads texts and must come with the vocab"):
        _made(pairs, {"siglip": _weights(pairs)}, vocabulary=vocabulary)
    by_texts = dataclasses.replace(
        classes, objectives=(config.DistillConfig("siglip"),), data=pairs.data
    )
    with pytest.raises(ValueError, match="teacher siglip reads texts and must come with the vocab"):
        _made(by_texts, {"siglip": _weights(pairs)}, vocabulary=vocabulary)


def test_texts_are_tokenized_once_for_one_vocabulary_in_other_bytes(pairs, vocabulary):
    # With a field at its end that SentencePiece does not know.
    extended = vocabulary + bytes([0xC2, 0x0C, 0x01, 0x78])
    made = _made(pairs, {"siglip": _weights(pairs, extended)}, vocabulary=vocabulary)
    assert made["siglip"].own == needs.Needs()
