import numpy as np
import pytest
import reference_losses
import tensorflow as tf

from sigline.trainer.losses import pair_labels, pair_losses
from sigline.trainer.losses.negatives import Negatives

BATCH = 12


def _loss(labels=None, negatives=None, chunk_size=5):
    image, text = reference_losses.pairs(BATCH)
    inputs = [tf.constant(x, tf.float32) for x in (image, text)]
    inputs += [tf.constant(10.0), tf.constant(-3.0)]
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        outcome = pair_losses.sigmoid_loss(
            *inputs[:2],
            temperature=inputs[2],
            bias=inputs[3],
            labels=labels,
            negatives=negatives,
            chunk_size=chunk_size,
        )
    names = ("image", "text", "temperature", "bias")
    gradients = dict(zip(names, tape.gradient(outcome.loss, inputs), strict=True))
    return {"loss": outcome.loss} | gradients


def _assert_matches(found, targets, weights=1.0):
    image, text = reference_losses.pairs(BATCH)
    expected = reference_losses.sigmoid(image, text, 10.0, -3.0, targets, weights)
    reference_losses.assert_close(found, expected)


def test_groups_give_several_positives_a_row_and_a_column():
    images, texts = np.arange(BATCH) // 2, np.arange(BATCH) // 3
    labels = pair_labels.same_group(tf.constant(images), tf.constant(texts))
    _assert_matches(_loss(labels), (images[:, None] == texts).astype(float))


def test_identity_in_the_general_form_equals_the_default():
    general = _loss(pair_labels.identity(BATCH, tf.zeros((), tf.int32)))
    for name, value in _loss().items():
        np.testing.assert_allclose(general[name], value, atol=2e-6 * np.abs(value).max(), rtol=0)


def test_soft_targets_and_weights_of_a_matrix():
    rng = np.random.default_rng(0)
    targets, weights = rng.random((BATCH, BATCH)), rng.random((BATCH, BATCH))
    labels = pair_labels.from_matrix(
        tf.constant(targets), weights=tf.constant(weights), first_row=tf.constant(0)
    )
    _assert_matches(_loss(labels), targets, weights)


def test_soft_targets_are_the_teachers_probabilities():
    image, text = reference_losses.pairs(BATCH, dim=6, seed=3)
    labels = pair_labels.from_teacher(
        tf.constant(image), tf.constant(text), temperature=5.0, bias=-1.0
    )
    _assert_matches(_loss(labels), 1 / (1 + np.exp(-(5.0 * image @ text.T - 1.0))))


def test_student_that_equals_its_teacher_has_no_gradient():
    image, text = (tf.constant(x, tf.float32) for x in reference_losses.pairs(BATCH))
    labels = pair_labels.from_teacher(image, text, temperature=10.0, bias=-3.0)
    found = _loss(labels)
    for name in ("image", "text", "temperature", "bias"):
        np.testing.assert_allclose(found[name], 0.0, atol=1e-6)


def test_labels_get_no_gradient():
    image, text = (tf.constant(x, tf.float32) for x in reference_losses.pairs(BATCH))
    with tf.GradientTape() as tape:
        tape.watch((image, text))
        labels = pair_labels.from_teacher(image, text, temperature=10.0, bias=-3.0)
        constants = [tf.stop_gradient(x) for x in (image, text)]
        loss = pair_losses.sigmoid_loss(*constants, temperature=5.0, bias=0.0, labels=labels).loss
    assert tape.gradient(loss, (image, text)) == (None, None)


def test_masked_rows_have_neither_loss_nor_gradient():
    images, texts = np.arange(BATCH) != 3, np.arange(BATCH) < 10
    labels = pair_labels.masked(
        pair_labels.identity(BATCH, tf.zeros((), tf.int32)),
        image=tf.constant(images),
        text=tf.constant(texts),
    )
    found = _loss(labels)
    _assert_matches(found, np.eye(BATCH), np.outer(images, texts))
    assert not found["image"].numpy()[3].any()
    assert not found["text"].numpy()[10:].any()


def _kept(kind, per_image, **options):
    """Returns which negatives count, `(images, texts)`, read off the labels themselves."""
    image, text = (tf.constant(x, tf.float32) for x in reference_losses.pairs(BATCH))
    from sigline.trainer.losses import collectives

    labels = Negatives(kind, per_image, **options).select(
        image, text, labels=None, chunk_size=5, exchange=collectives.single_replica()
    )
    targets, weights = labels.block(labels.image, labels.text)
    np.testing.assert_array_equal(targets, np.eye(BATCH))
    weights = weights.numpy().T
    assert (np.diag(weights) == 1).all()
    return weights - np.eye(BATCH)


@pytest.mark.parametrize(("kind", "sign"), [("hard", -1), ("easy", 1)])
def test_hard_and_easy_negatives_are_those_with_extreme_scores(kind, sign):
    image, text = reference_losses.pairs(BATCH)
    scores = sign * (image @ text.T)
    np.fill_diagonal(scores, np.inf)
    expected = np.zeros((BATCH, BATCH))
    np.put_along_axis(expected, np.argsort(scores, axis=1)[:, :4], 1.0, axis=1)
    np.testing.assert_array_equal(_kept(kind, 4), expected)


def test_random_negatives_are_drawn_anew_for_each_seed_and_spread_evenly():
    draws = np.stack([_kept("random", 4, seed=seed) for seed in range(60)])
    assert (draws.sum(axis=2) == 4).all()
    assert (_kept("random", 4, seed=1) == draws[1]).all()
    # Each of 132 pairs is drawn 4 times in 11; four standard deviations of 60 draws.
    share = draws.mean(axis=0)[~np.eye(BATCH, dtype=bool)]
    assert np.abs(share - 4 / 11).max() < 4 * np.sqrt(4 / 11 * 7 / 11 / 60)


def test_loss_with_hard_negatives_matches_the_masked_reference():
    _assert_matches(
        _loss(negatives=Negatives("hard", 4)), np.eye(BATCH), np.eye(BATCH) + _kept("hard", 4)
    )


def test_masked_pairs_are_no_negatives():
    texts = np.arange(BATCH) < 10
    masked = pair_labels.masked(
        pair_labels.identity(BATCH, tf.zeros((), tf.int32)),
        image=tf.ones(BATCH, tf.bool),
        text=tf.constant(texts),
    )
    image, text = reference_losses.pairs(BATCH)
    scores = np.where(np.eye(BATCH) + ~texts, -np.inf, image @ text.T)
    weights = np.eye(BATCH) * texts
    np.put_along_axis(weights, np.argsort(-scores, axis=1)[:, :4], 1.0, axis=1)
    _assert_matches(_loss(masked, negatives=Negatives("hard", 4)), np.eye(BATCH), weights)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "hardest", "per_image": 1}, "kind must be one of random, hard, easy"),
        ({"kind": "hard", "per_image": 0}, "per_image must be at least 1. Received: per_image=0"),
    ],
)
def test_impossible_choices_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Negatives(**options)
