"""Results of a model: every metric with its interval, chance, and the baseline beside it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from sigline.components.evaluate.costs import Cost
from sigline.components.evaluate.metrics import intervals
from sigline.components.evaluate.metrics.intervals import Measure


@dataclass(frozen=True)
class Result:
    """One metric.

    Attributes:
        value: What the candidate reached.
        low: Lower bound of its interval; None for a cost that is no time.
        high: Upper bound.
        examples: How many examples it is over; 0 for a cost.
        chance: What guessing has, where that is known.
        baseline: What the baseline reached, where there is one.
        difference: Candidate minus baseline.
        difference_low: Lower bound of the interval of the difference.
        difference_high: Upper bound.
        p_value: How likely chance alone makes a difference at least as large.
    """

    value: float
    low: float | None = None
    high: float | None = None
    examples: int = 0
    chance: float | None = None
    baseline: float | None = None
    difference: float | None = None
    difference_low: float | None = None
    difference_high: float | None = None
    p_value: float | None = None

    @property
    def significant(self) -> bool:
        """Whether the difference is one that chance does not explain."""
        if self.difference_low is None or self.difference_high is None:
            return False
        return self.difference_low > 0.0 or self.difference_high < 0.0


def summarize(
    candidate: Mapping[str, Measure],
    baseline: Mapping[str, Measure] | None,
    *,
    confidence: float = intervals.CONFIDENCE,
    seed_std: Mapping[str, float] | None = None,
    seed: int = 0,
) -> dict[str, Result]:
    """Returns the results of all measures, by name.

    Args:
        candidate: The candidate's measures.
        baseline: The baseline's on the same examples, if there is one. A metric that it lacks is
            one without baseline.
        confidence: Confidence level of the intervals.
        seed_std: Standard deviations of metrics between seeds of training, where they are known;
            those of slices are taken for as large.
        seed: Seed of the bootstrap draws.
    """
    results = {}
    for name, measure in candidate.items():
        own = intervals.estimate(measure, confidence=confidence, seed=seed)
        result = Result(own.value, own.low, own.high, len(measure.units), measure.chance)
        other = (baseline or {}).get(name)
        if other is not None:
            compared = intervals.compare(measure, other, confidence=confidence, seed=seed)
            spread = (seed_std or {}).get(name.partition("/")[0])
            if spread is not None:
                compared = intervals.widened(compared, spread, confidence=confidence)
            result = Result(
                own.value,
                own.low,
                own.high,
                len(measure.units),
                measure.chance,
                other.value,
                compared.difference,
                compared.low,
                compared.high,
                compared.p_value,
            )
        results[name] = result
    return results


def costs(candidate: Mapping[str, Cost], baseline: Mapping[str, Cost] | None) -> dict[str, Result]:
    """Returns the results of what has no examples, such as times and sizes."""
    results = {}
    for name, cost in candidate.items():
        other = (baseline or {}).get(name)
        results[name] = Result(
            cost.value,
            cost.low,
            cost.high,
            baseline=None if other is None else other.value,
            difference=None if other is None else cost.value - other.value,
        )
    return results


def to_dict(results: Mapping[str, Result]) -> dict[str, Any]:
    """Returns results for JSON, sorted; what there is not is left out, and NaN is null."""
    return {
        name: {
            key: None if value != value else value
            for key, value in asdict(results[name]).items()
            if value is not None
        }
        for name in sorted(results)
    }
