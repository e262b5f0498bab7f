"""Calibration, health, composition and agreement."""

import numpy as np
import pytest
from scipy import special, stats
from scipy.spatial import distance
from sklearn import calibration as sklearn_calibration
from sklearn import metrics as sklearn_metrics

from sigline.components.evaluate.metrics import (
    agreement,
    calibration,
    composition,
    health,
    intervals,
)

RNG = np.random.default_rng(0)
PROBABILITIES = RNG.random(500)
HAPPENED = RNG.random(500) < PROBABILITIES**2
UNITS = tuple(map(str, range(100)))
GRID = PROBABILITIES.reshape(100, 5), HAPPENED.reshape(100, 5)


def _unit_rows(count, dim=6):
    x = RNG.standard_normal((count, dim)) + 0.5
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def test_reliability_equals_scikit_learn():
    count, said, came = calibration.reliability(PROBABILITIES, HAPPENED, bins=10)
    expected_came, expected_said = sklearn_calibration.calibration_curve(
        HAPPENED, PROBABILITIES, n_bins=10
    )
    assert count.sum() == 500
    np.testing.assert_allclose(said, expected_said)
    np.testing.assert_allclose(came, expected_came)


def test_calibration_error_is_the_weighted_gap_of_the_bins():
    measure = calibration.calibration_error(UNITS, *GRID)
    count, said, came = calibration.reliability(PROBABILITIES, HAPPENED)
    assert measure.value == pytest.approx(np.nansum(count * np.abs(said - came)) / 500)


def test_calibration_error_of_a_draw_is_that_of_the_drawn_examples():
    weights = np.zeros((1, 100))
    weights[0, :20] = 2.0
    (found,) = calibration.calibration_error(UNITS, *GRID).statistic(weights)
    part = calibration.calibration_error(UNITS[:20], *(array[:20] for array in GRID))
    assert found == pytest.approx(part.value)


def test_bounds_belong_to_the_bin_below():
    assert calibration.bin_of(np.array([0.0, 0.1, 0.11, 1.0]), bins=10).tolist() == [0, 0, 1, 9]


def test_squared_error_is_scikit_learns_brier_score():
    found = calibration.squared_error(PROBABILITIES, HAPPENED).mean()
    assert found == pytest.approx(sklearn_metrics.brier_score_loss(HAPPENED, PROBABILITIES))


def test_effective_rank_is_the_entropy_of_singular_values():
    x = _unit_rows(100)
    singular = np.linalg.svd(x, compute_uv=False)
    expected = np.exp(stats.entropy(singular / singular.sum()))
    assert health.effective_rank(UNITS, x).value == pytest.approx(expected)


def test_effective_rank_of_collapsed_and_of_spread_embeddings():
    same = np.repeat(_unit_rows(1), 100, axis=0)
    assert health.effective_rank(UNITS, same).value == pytest.approx(1.0)
    axes = np.tile(np.eye(4), (25, 1))
    assert health.effective_rank(UNITS, axes).value == pytest.approx(4.0)


def test_effective_rank_of_a_draw_is_right_to_first_order():
    x, step = _unit_rows(100), 1e-5
    measure = health.effective_rank(UNITS, x)

    def exact(weights):
        singular = np.linalg.svd(x * np.sqrt(weights)[:, None], compute_uv=False)
        return np.exp(stats.entropy(singular / singular.sum()))

    for unit in (0, 7, 99):
        weights = np.ones(100)
        weights[unit] += step
        expected = (exact(weights) - exact(np.ones(100))) / step
        found = (measure.statistic(weights[None])[0] - measure.value) / step
        assert found == pytest.approx(expected, rel=1e-3)


def test_interval_of_an_effective_rank_is_as_wide_as_other_samples_differ():
    scales = np.array([4.0, 3.0, 2.0, 1.0, 0.5, 0.5, 0.2, 0.1])
    units = tuple(map(str, range(400)))
    found = [
        intervals.estimate(
            health.effective_rank(units, scales * np.random.default_rng(i).normal(size=(400, 8)))
        )
        for i in range(60)
    ]
    spread = np.std([item.value for item in found])
    half = np.mean([(item.high - item.low) / 2 for item in found])
    assert half / 1.96 == pytest.approx(spread, rel=0.25)


def test_mean_similarity_is_that_of_all_pairs():
    x = _unit_rows(100)
    expected = np.mean(1.0 - distance.pdist(x, "cosine"))
    assert health.mean_similarity(UNITS, x).value == pytest.approx(expected)


def test_modality_gap_is_the_distance_of_the_means():
    image, text = _unit_rows(100), _unit_rows(100)
    expected = distance.euclidean(image.mean(axis=0), text.mean(axis=0))
    assert health.modality_gap(UNITS, image, text).value == pytest.approx(expected)


def test_winoground_by_hand():
    scores = np.array(
        [
            [[0.9, 0.1], [0.2, 0.8]],  # Everything right.
            [[0.9, 0.1], [0.95, 0.96]],  # Images pick their texts, a text picks the wrong image.
            [[0.5, 0.5], [0.1, 0.9]],  # A tie.
        ]
    )
    found = composition.winoground(scores)
    assert found["text_acc"].tolist() == [True, True, False]
    assert found["image_acc"].tolist() == [True, False, True]
    assert found["acc"].tolist() == [True, False, False]


def test_altered_caption_that_scores_as_high_is_a_mistake():
    right, wrong = np.array([0.3, 0.3]), np.array([0.2, 0.3])
    assert composition.sugar_crepe(right, wrong).tolist() == [True, False]


def test_divergence_equals_scipys():
    student, teacher = RNG.standard_normal((2, 20, 5))
    p, q = special.softmax(teacher, axis=1), special.softmax(student, axis=1)
    expected = special.rel_entr(p, q).sum(axis=1)
    np.testing.assert_allclose(agreement.divergence(student, teacher), expected)
    np.testing.assert_allclose(agreement.divergence(teacher, teacher), 0.0, atol=1e-12)


def test_agreement_is_the_same_best_class():
    student, teacher = np.array([[0.1, 0.9], [0.8, 0.2]]), np.array([[1.0, 2.0], [1.0, 2.0]])
    assert agreement.agreement(student, teacher).tolist() == [True, False]


@pytest.mark.parametrize("name", ["rank", "gap", "similarity", "error"])
def test_intervals_hold_their_value_though_draws_have_copies(name):
    x = RNG.standard_normal((100, 64))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    y = np.roll(x, 1, axis=0)
    said = RNG.random((100, 3))
    measure = {
        "rank": health.effective_rank(UNITS, x),
        "gap": health.modality_gap(UNITS, x, y + 0.01),
        "similarity": health.mean_similarity(UNITS, x),
        "error": calibration.calibration_error(UNITS, said, RNG.random((100, 3)) < said),
    }[name]
    found = intervals.estimate(measure)
    assert found.low < found.value < found.high


def test_rounding_does_not_tell_equal_captions_apart():
    scores = np.full((1, 2, 2), 0.3) + 1e-8 * np.eye(2)
    assert not composition.winoground(scores)["acc"].any()
    assert not composition.sugar_crepe(np.array([0.3 + 1e-8]), np.array([0.3])).any()
