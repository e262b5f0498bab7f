import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sklearn_metrics

from sigline.components.evaluate.metrics import intervals

UNITS = tuple(f"{i}" for i in range(60))
UNITS_100 = tuple(map(str, range(100)))
VALUES = np.random.default_rng(0).standard_normal(60)


def test_mean_is_the_mean():
    assert intervals.mean(UNITS, VALUES).value == pytest.approx(VALUES.mean())


def test_median_is_that_of_numpy_below_the_middle():
    found = intervals.median(UNITS, VALUES).value
    assert found == pytest.approx(np.quantile(VALUES, 0.5, method="inverted_cdf"))


def test_mean_of_means_is_balanced_accuracy():
    rng = np.random.default_rng(1)
    labels, predicted = rng.integers(4, size=60), rng.integers(4, size=60)
    found = intervals.mean_of_means(UNITS, labels == predicted, labels)
    expected = sklearn_metrics.balanced_accuracy_score(labels, predicted)
    assert found.value == pytest.approx(expected)


def test_group_that_no_drawn_unit_has_is_left_out():
    found = intervals.mean_of_means(("a", "b"), np.array([1.0, 0.0]), np.array([3, 7]))
    assert found.statistic(np.array([[2.0, 0.0], [1.0, 1.0]])).tolist() == [1.0, 0.5]


def test_interval_of_a_mean_equals_scipys():
    found = intervals.estimate(intervals.mean(UNITS, VALUES), draws=20_000)
    expected = stats.bootstrap(
        (VALUES,), np.mean, method="percentile", n_resamples=20_000, rng=np.random.default_rng(5)
    ).confidence_interval
    assert found.low == pytest.approx(expected.low, abs=0.01)
    assert found.high == pytest.approx(expected.high, abs=0.01)


def test_intervals_hold_the_truth_as_often_as_they_say():
    held = 0
    for seed in range(200):
        sample = np.random.default_rng(seed).random(100) < 0.3
        units = tuple(map(str, range(100)))
        found = intervals.estimate(intervals.mean(units, sample), seed=seed, draws=300)
        held += found.low <= 0.3 <= found.high
    assert 0.90 <= held / 200 <= 0.99


def test_draws_do_not_depend_on_how_many_are_held_at_a_time(monkeypatch):
    whole = intervals.estimate(intervals.median(UNITS, VALUES), draws=100)
    monkeypatch.setattr(intervals, "_WEIGHTS", 7 * 60)
    assert intervals.estimate(intervals.median(UNITS, VALUES), draws=100) == whole


def test_comparison_is_paired():
    # Hard and easy examples differ far more than the models do.
    baseline = intervals.mean(UNITS, 10 * VALUES)
    candidate = intervals.mean(UNITS, 10 * VALUES - 0.1)
    found = intervals.compare(candidate, baseline)
    assert found.difference == pytest.approx(-0.1)
    assert (found.low, found.high) == (pytest.approx(-0.1), pytest.approx(-0.1))
    assert found.significant


def test_models_that_differ_by_chance_are_not_told_apart():
    rng = np.random.default_rng(3)
    candidate, baseline = (intervals.mean(UNITS, rng.random(60) < 0.5) for _ in range(2))
    assert not intervals.compare(candidate, baseline).significant


def test_other_examples_are_not_compared():
    with pytest.raises(ValueError, match="Received: 60 and 59, 59 in common"):
        intervals.compare(intervals.mean(UNITS, VALUES), intervals.mean(UNITS[1:], VALUES[1:]))


def test_interval_over_seeds_is_students():
    found = intervals.over_seeds([0.1, 0.2, 0.4])
    expected = stats.ttest_1samp([0.1, 0.2, 0.4], 0.0).confidence_interval(0.95)
    assert (found.low, found.high) == (pytest.approx(expected.low), pytest.approx(expected.high))
    with pytest.raises(ValueError, match=r"Received: 1$"):
        intervals.over_seeds([0.5])


def test_seeds_widen_an_interval_by_their_variance():
    std = 0.0075
    found = intervals.Comparison(-0.05, -0.06, -0.03, 60, 2 * stats.norm.sf(0.05 / std))
    wide = intervals.widened(found, 0.02)
    spread = stats.norm.ppf(0.975) * 0.02 * 2**0.5
    assert wide.low == pytest.approx(-0.05 - (0.01**2 + spread**2) ** 0.5)
    assert wide.high == pytest.approx(-0.05 + (0.02**2 + spread**2) ** 0.5)
    assert found.significant
    assert not wide.significant
    expected = 2 * stats.norm.sf(0.05 / (std**2 + 2 * 0.02**2) ** 0.5)
    assert wide.p_value == pytest.approx(expected)
    same = intervals.widened(found, 0.0)
    assert (same.low, same.high) == (found.low, found.high)
    assert same.p_value == pytest.approx(found.p_value)


def test_units_of_a_cluster_are_drawn_together():
    clusters = np.repeat(np.arange(20), 5)
    units = tuple(map(str, range(100)))
    held = 0
    for seed in range(150):
        hits = np.repeat(np.random.default_rng(seed).random(20) < 0.5, 5)
        measure = intervals.mean(units, hits, clusters=clusters)
        found = intervals.estimate(measure, seed=seed, draws=300)
        held += found.low <= 0.5 <= found.high
    # Alone they would hold it in six of ten.
    assert held / 150 > 0.87


def test_handful_of_units_that_differ_may_be_chance():
    baseline = np.ones(100)
    candidate = baseline.copy()
    candidate[:4] = 0.0
    few = intervals.compare(
        intervals.mean(UNITS_100, candidate), intervals.mean(UNITS_100, baseline)
    )
    assert stats.binomtest(0, 4).pvalue > 0.05
    assert not few.significant
    candidate[:8] = 0.0
    more = intervals.compare(
        intervals.mean(UNITS_100, candidate), intervals.mean(UNITS_100, baseline)
    )
    assert more.significant


def test_equal_models_differ_as_seldom_as_the_confidence_says():
    found = []
    for seed in range(300):
        rng = np.random.default_rng(seed)
        one, other = (intervals.mean(UNITS, rng.random(60) < 0.9) for _ in range(2))
        found.append(intervals.compare(one, other, seed=seed, draws=300).significant)
    assert np.mean(found) <= 0.05


def test_p_value_of_a_difference_is_that_of_the_paired_test():
    rng = np.random.default_rng(4)
    baseline = rng.standard_normal(60)
    candidate = baseline + 0.3 * rng.standard_normal(60) - 0.08
    found = intervals.compare(intervals.mean(UNITS, candidate), intervals.mean(UNITS, baseline))
    expected = stats.ttest_rel(candidate, baseline).pvalue
    assert found.p_value == pytest.approx(expected, abs=0.02)
    assert 0.01 < expected < 0.2


def test_p_value_is_one_where_nothing_differs_and_that_of_the_sign_test_for_a_handful():
    ones = intervals.mean(UNITS, np.ones(60))
    assert intervals.compare(ones, ones).p_value == 1.0
    fewer = np.ones(60)
    fewer[:6] = 0.0
    found = intervals.compare(intervals.mean(UNITS, fewer), ones)
    assert found.p_value == pytest.approx(stats.binomtest(0, 6).pvalue)


def test_several_p_values_by_hand():
    assert intervals.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert intervals.holm([0.9, 0.5]) == [1.0, 1.0]
    assert intervals.holm([]) == []


def test_p_value_of_what_is_not_a_number_is_none():
    broken = intervals.mean(UNITS, np.full(60, np.nan))
    fine = intervals.mean(UNITS, VALUES)
    assert np.isnan(intervals.compare(broken, fine).p_value)
