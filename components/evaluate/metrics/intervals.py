"""How sure a metric is: bootstrap intervals, paired comparison, several seeds.

A metric is held as a function of how often each example counts. What is drawn with replacement is
examples (images, or texts for retrieval of images); the gallery and the classes stay as they are.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

DRAWS = 1000
# Number of draws for slow metrics, such as those with a matrix decomposition.
COSTLY_DRAWS = 200
CONFIDENCE = 0.95
# Weights held in memory at a time: 128 MiB of float64.
_WEIGHTS = 1 << 24


@dataclass(frozen=True)
class Measure:
    """A metric over examples.

    Attributes:
        units: The examples, by keys that another model's measure of the same data has too.
        statistic: From weights, shape `(draws, units)`, float64, to values, shape `(draws,)`.
        values: What each unit counts, shape `(units,)`, where the metric is their mean.
        costly: Whether a draw takes long.
        biased: Whether drawing with replacement shifts the metric, as copies of an example do to
            distances: the interval is then moved by what the draws lie off in the middle.
        clusters: Which units are drawn together, shape `(units,)`, integers from 0; each alone by
            default.
        chances: The expected value of each unit under guessing, where that is known, shape
            `(units,)`.
    """

    units: tuple[str, ...]
    statistic: Callable[[np.ndarray], np.ndarray]
    values: np.ndarray | None = None
    costly: bool = False
    biased: bool = False
    clusters: np.ndarray | None = None
    chances: np.ndarray | None = None

    @property
    def chance(self) -> float | None:
        """The metric that guessing reaches, where that is known."""
        return None if self.chances is None else float(np.mean(self.chances))

    @property
    def value(self) -> float:
        """The metric itself: every unit counts once."""
        return float(self.statistic(np.ones((1, len(self.units))))[0])


@dataclass(frozen=True)
class Estimate:
    """A value between the bounds of its interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """A candidate's metric minus the baseline's on the same examples, with its interval.

    Attributes:
        difference: Candidate minus baseline.
        low: Lower bound of the interval of the difference.
        high: Upper bound.
        examples: How many examples both have.
        p_value: How likely chance alone makes a difference at least as large, by the draws'
            standard deviation; at least that of the exact sign test, where there is one.
    """

    difference: float
    low: float
    high: float
    examples: int
    p_value: float

    @property
    def significant(self) -> bool:
        """Whether the interval leaves out 0."""
        return self.low > 0.0 or self.high < 0.0


def mean(
    units: Sequence[str],
    values: Any,
    *,
    clusters: np.ndarray | None = None,
    chances: np.ndarray | None = None,
) -> Measure:
    """Returns the measure that is the mean of values, one a unit; the rest is as in `Measure`."""
    values = np.asarray(values, np.float64)
    return Measure(
        tuple(units),
        lambda weights: weights @ values / weights.sum(axis=1),
        values=values,
        clusters=clusters,
        chances=chances,
    )


def mean_of_means(
    units: Sequence[str],
    values: np.ndarray,
    groups: np.ndarray,
    *,
    chances: np.ndarray | None = None,
) -> Measure:
    """Returns the measure that is the mean over groups of the mean inside each.

    A group that no drawn unit belongs to is left out of that draw, as an absent class is.

    Args:
        units: The examples.
        values: Shape `(units,)`.
        groups: The group of each, shape `(units,)`, integers from 0.
        chances: As in `Measure`.
    """
    values = np.asarray(values, np.float64)
    _, groups = np.unique(groups, return_inverse=True)
    order = np.argsort(groups, kind="stable")
    # Sorted by group once, so that each draw sums over contiguous runs instead of over groups.
    starts = np.flatnonzero(np.diff(groups[order], prepend=-1))

    def statistic(weights: np.ndarray) -> np.ndarray:
        ordered = weights[:, order]
        sums = np.add.reduceat(ordered * values[order], starts, axis=1)
        counts = np.add.reduceat(ordered, starts, axis=1)
        # A group that is absent from a draw gives 0 / 0; nanmean leaves it out of that draw.
        with np.errstate(invalid="ignore"):
            return np.nanmean(np.where(counts > 0, sums / counts, np.nan), axis=1)

    return Measure(tuple(units), statistic, chances=chances)


def median(
    units: Sequence[str], values: np.ndarray, *, clusters: np.ndarray | None = None
) -> Measure:
    """Returns the measure that is the (lower) weighted median of values, one a unit."""
    values = np.asarray(values, np.float64)
    order = np.argsort(values, kind="stable")

    def statistic(weights: np.ndarray) -> np.ndarray:
        reached = np.cumsum(weights[:, order], axis=1)
        # argmax returns the first position at which half of the total weight is reached.
        return values[order][np.argmax(reached >= reached[:, -1:] / 2, axis=1)]

    return Measure(tuple(units), statistic, clusters=clusters)


def estimate(
    measure: Measure, *, seed: int = 0, draws: int | None = None, confidence: float = CONFIDENCE
) -> Estimate:
    """Returns the metric with its bootstrap interval, by percentiles.

    Args:
        measure: The metric.
        seed: Seeds the draws: the same seed and examples give the same draws.
        draws: How many; by default as many as the measure can afford.
        confidence: How often such intervals are to hold the true value.
    """
    drawn_values = _bootstrap(measure.statistic, measure, seed, draws or _draws(measure))
    value = measure.value
    low, high = _percentiles(drawn_values, confidence, around=value if measure.biased else None)
    return Estimate(value, low, high)


def compare(
    candidate: Measure,
    baseline: Measure,
    *,
    seed: int = 0,
    draws: int | None = None,
    confidence: float = CONFIDENCE,
) -> Comparison:
    """Returns the difference of two models' metric on the same examples, with its interval.

    Every draw takes the same examples for both, so that what makes examples easy or hard for both
    cancels. Where what a unit counts is 0 or 1, and so few units differ between the models that an
    even split of them explains it (the exact sign test, McNemar's), the interval is widened to hold
    0: draws of a handful of units claim too much.

    Raises:
        ValueError: If the two were not measured on the same examples.
    """
    if candidate.units != baseline.units:
        common = len(set(candidate.units) & set(baseline.units))
        raise ValueError(
            "Both models must be measured on the same examples. "
            f"Received: {len(candidate.units)} and {len(baseline.units)}, {common} in common"
        )

    def difference(weights: np.ndarray) -> np.ndarray:
        return candidate.statistic(weights) - baseline.statistic(weights)

    # The difference is drawn as one statistic, so that each draw weights the units of both models
    # alike. Intervals of the two models taken apart would ignore that their errors correlate.
    count = draws or min(_draws(candidate), _draws(baseline))
    drawn_values = _bootstrap(difference, candidate, seed, count)
    value = candidate.value - baseline.value
    biased = candidate.biased or baseline.biased
    low, high = _percentiles(drawn_values, confidence, around=value if biased else None)
    # With few units that differ, bootstrap draws are too narrow. The exact test then overrules an
    # interval that leaves out 0.
    by_sign = _sign_test(candidate.values, baseline.values)
    if by_sign >= 1 - confidence:
        low, high = min(low, 0.0), max(high, 0.0)
    drawn_values = drawn_values[~np.isnan(drawn_values)]
    std = float(drawn_values.std()) if len(drawn_values) else float("nan")
    # np.maximum propagates NaN, which `max` may drop.
    p_value = float(np.maximum(by_sign, _p_value(value, std)))
    return Comparison(value, low, high, len(candidate.units), p_value)


def _p_value(difference: float, std: float) -> float:
    """Returns how likely a normal variable around 0 lies at least as far from it; NaN of NaN."""
    if difference == 0.0:
        return 1.0
    with np.errstate(divide="ignore"):
        return float(2.0 * stats.norm.sf(np.divide(abs(difference), std)))


def _sign_test(candidate: np.ndarray | None, baseline: np.ndarray | None) -> float:
    """Returns how likely an even split of the units that differ is at least as uneven."""
    if candidate is None or baseline is None:
        return 0.0
    if not np.isin(candidate, (0.0, 1.0)).all() or not np.isin(baseline, (0.0, 1.0)).all():
        return 0.0
    # Units on which both models agree say nothing about which one is better.
    gained = np.count_nonzero(candidate > baseline)
    differ = np.count_nonzero(candidate != baseline)
    return float(stats.binomtest(gained, differ).pvalue) if differ else 1.0


def widened(
    comparison: Comparison, seed_std: float, *, confidence: float = CONFIDENCE
) -> Comparison:
    """Returns a comparison whose interval also holds what another seed of training changes.

    Variances add: a half of the interval becomes sqrt(half^2 + (z s sqrt(2))^2), since both models
    were trained from some seed; so does the variance that the p-value is by.

    Args:
        comparison: A comparison on examples.
        seed_std: Standard deviation s of the metric between seeds.
        confidence: The confidence of the comparison's interval.
    """
    # Each half is widened on its own, so that an asymmetric interval stays so.
    seeds = seed_std * np.sqrt(2.0)
    spread = stats.norm.ppf((1 + confidence) / 2) * seeds
    below, above = comparison.difference - comparison.low, comparison.high - comparison.difference
    # The p-value is turned back into the standard deviation that it came from.
    std = (
        abs(comparison.difference) / stats.norm.isf(comparison.p_value / 2)
        if comparison.p_value < 1
        else 0.0
    )
    p_value = max(comparison.p_value, _p_value(comparison.difference, float(np.hypot(std, seeds))))
    return Comparison(
        comparison.difference,
        float(comparison.difference - np.hypot(below, spread)),
        float(comparison.difference + np.hypot(above, spread)),
        comparison.examples,
        p_value,
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """Returns p-values that may be compared with one level though there are several of them.

    The smallest is multiplied by their number, the next by one less, and so on; none is below one
    before it (Holm 1979). Of those below a level p, one is there by chance with at most that
    probability, however they depend on each other.
    """
    values = np.asarray(p_values, np.float64)
    order = np.argsort(values)
    # Without the running maximum a larger p-value could be adjusted to less than a smaller one.
    adjusted = np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1))
    corrected = np.empty_like(values)
    corrected[order] = np.minimum(adjusted, 1.0)
    return corrected.tolist()


def over_seeds(values: Sequence[float], *, confidence: float = CONFIDENCE) -> Estimate:
    """Returns the mean over runs with other seeds, with Student's t interval of that mean.

    Raises:
        ValueError: If there are fewer than two.
    """
    if len(values) < 2:
        raise ValueError(f"An interval over seeds needs two of them. Received: {len(values)}")
    per_run = np.asarray(values, np.float64)
    error = per_run.std(ddof=1) / np.sqrt(len(per_run))
    half = stats.t.ppf((1 + confidence) / 2, len(per_run) - 1) * error
    return Estimate(
        float(per_run.mean()), float(per_run.mean() - half), float(per_run.mean() + half)
    )


def between_seeds(
    values: Sequence[float], others: Sequence[float], *, confidence: float = CONFIDENCE
) -> Estimate:
    """Returns the difference of two means over runs, with Welch's t interval.

    The seeds of the one say nothing of those of the other: another recipe draws other numbers.

    Raises:
        ValueError: If there are fewer than two of either.
    """
    if min(len(values), len(others)) < 2:
        raise ValueError(
            "A comparison over seeds needs two runs of each. "
            f"Received: {len(values)} and {len(others)}"
        )
    difference = float(np.mean(values) - np.mean(others))
    # Welch's test divides by the variances, which all are 0 where runs agree exactly.
    if not (np.ptp(values) or np.ptp(others)):
        return Estimate(difference, difference, difference)
    tested = stats.ttest_ind(values, others, equal_var=False)
    low, high = tested.confidence_interval(confidence)
    return Estimate(difference, float(low), float(high))


def _draws(measure: Measure) -> int:
    return COSTLY_DRAWS if measure.costly else DRAWS


def _bootstrap(
    statistic: Callable[[np.ndarray], np.ndarray], measure: Measure, seed: int, draws: int
) -> np.ndarray:
    """Returns the values of draws, shape `(draws,)`."""
    rng = np.random.default_rng(seed)
    # Units of a cluster are not independent of each other, such as captions of one image. Drawing
    # clusters as a whole keeps them from narrowing the interval as if they were.
    clusters = measure.clusters
    drawn_from = len(measure.units) if clusters is None else int(clusters.max()) + 1
    values, rows = [], max(1, _WEIGHTS // max(drawn_from, len(measure.units), 1))
    for start in range(0, draws, rows):
        count = min(rows, draws - start)
        # The same distribution as rng.multinomial with equal chances, whose time is quadratic here.
        # Offsets by row make one bincount count all draws of the block.
        drawn = rng.integers(drawn_from, size=(count, drawn_from))
        drawn += drawn_from * np.arange(count)[:, None]
        weights = np.bincount(drawn.ravel(), minlength=count * drawn_from)
        weights = weights.reshape(count, drawn_from).astype(np.float64)
        values.append(statistic(weights if clusters is None else weights[:, clusters]))
    return np.concatenate(values)


def _percentiles(
    values: np.ndarray, confidence: float, *, around: float | None
) -> tuple[float, float]:
    values = values[~np.isnan(values)]
    if not len(values):
        return float("nan"), float("nan")
    # Draws hold copies of units, which biases statistics of distances. The spread of the draws is
    # kept, and they are moved until their median is the metric itself.
    if around is not None:
        values = values + (around - np.median(values))
    low, high = np.quantile(values, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)
