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
# Draws of a metric that takes long, such as one with a decomposition in it.
COSTLY_DRAWS = 200
CONFIDENCE = 0.95
# Weights that are held at a time.
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
        chances: What guessing has of each unit, where that is known, shape `(units,)`.
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
        """What guessing has, where that is known."""
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
    starts = np.flatnonzero(np.diff(groups[order], prepend=-1))

    def statistic(weights: np.ndarray) -> np.ndarray:
        ordered = weights[:, order]
        sums = np.add.reduceat(ordered * values[order], starts, axis=1)
        counts = np.add.reduceat(ordered, starts, axis=1)
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
        # The first at which half of the weight is reached.
        return values[order][np.argmax(reached >= reached[:, -1:] / 2, axis=1)]

    return Measure(tuple(units), statistic, clusters=clusters)


def estimate(
    measure: Measure, *, seed: int = 0, draws: int | None = None, confidence: float = CONFIDENCE
) -> Estimate:
    """Returns the metric with its bootstrap interval, by percentiles.

    Args:
        measure: The metric.
        seed: Of the draws; the same for the same examples gives the same draws.
        draws: How many; by default as many as the measure can afford.
        confidence: How often such intervals are to hold the true value.
    """
    found = _bootstrap(measure.statistic, measure, seed, draws or _draws(measure))
    value = measure.value
    low, high = _percentiles(found, confidence, around=value if measure.biased else None)
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

    count = draws or min(_draws(candidate), _draws(baseline))
    found = _bootstrap(difference, candidate, seed, count)
    value = candidate.value - baseline.value
    biased = candidate.biased or baseline.biased
    low, high = _percentiles(found, confidence, around=value if biased else None)
    by_sign = _sign_test(candidate.values, baseline.values)
    if by_sign >= 1 - confidence:
        low, high = min(low, 0.0), max(high, 0.0)
    found = found[~np.isnan(found)]
    std = float(found.std()) if len(found) else float("nan")
    # NaN stays NaN.
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
    gained = np.count_nonzero(candidate > baseline)
    differ = np.count_nonzero(candidate != baseline)
    return float(stats.binomtest(gained, differ).pvalue) if differ else 1.0


def widened(found: Comparison, seed_std: float, *, confidence: float = CONFIDENCE) -> Comparison:
    """Returns a comparison whose interval also holds what another seed of training changes.

    Variances add: a half of the interval becomes sqrt(half^2 + (z s sqrt(2))^2), since both models
    were trained from some seed; so does the variance that the p-value is by.

    Args:
        found: A comparison on examples.
        seed_std: Standard deviation s of the metric between seeds.
        confidence: That of the comparison.
    """
    seeds = seed_std * np.sqrt(2.0)
    spread = stats.norm.ppf((1 + confidence) / 2) * seeds
    below, above = found.difference - found.low, found.high - found.difference
    # The standard deviation that the p-value stands for.
    std = abs(found.difference) / stats.norm.isf(found.p_value / 2) if found.p_value < 1 else 0.0
    p_value = max(found.p_value, _p_value(found.difference, float(np.hypot(std, seeds))))
    return Comparison(
        found.difference,
        float(found.difference - np.hypot(below, spread)),
        float(found.difference + np.hypot(above, spread)),
        found.examples,
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
    adjusted = np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1))
    found = np.empty_like(values)
    found[order] = np.minimum(adjusted, 1.0)
    return found.tolist()


def over_seeds(values: Sequence[float], *, confidence: float = CONFIDENCE) -> Estimate:
    """Returns the mean over runs with other seeds, with Student's t interval of that mean.

    Raises:
        ValueError: If there are fewer than two.
    """
    if len(values) < 2:
        raise ValueError(f"An interval over seeds needs two of them. Received: {len(values)}")
    found = np.asarray(values, np.float64)
    error = found.std(ddof=1) / np.sqrt(len(found))
    half = stats.t.ppf((1 + confidence) / 2, len(found) - 1) * error
    return Estimate(float(found.mean()), float(found.mean() - half), float(found.mean() + half))


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
    clusters = measure.clusters
    drawn_from = len(measure.units) if clusters is None else int(clusters.max()) + 1
    found, rows = [], max(1, _WEIGHTS // max(drawn_from, len(measure.units), 1))
    for start in range(0, draws, rows):
        count = min(rows, draws - start)
        # As rng.multinomial with equal chances, without its quadratic time.
        drawn = rng.integers(drawn_from, size=(count, drawn_from))
        drawn += drawn_from * np.arange(count)[:, None]
        weights = np.bincount(drawn.ravel(), minlength=count * drawn_from)
        weights = weights.reshape(count, drawn_from).astype(np.float64)
        found.append(statistic(weights if clusters is None else weights[:, clusters]))
    return np.concatenate(found)


def _percentiles(
    values: np.ndarray, confidence: float, *, around: float | None
) -> tuple[float, float]:
    values = values[~np.isnan(values)]
    if not len(values):
        return float("nan"), float("nan")
    if around is not None:
        values = values + (around - np.median(values))
    low, high = np.quantile(values, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)
