"""Metrics over several seeds of one recipe, and whether two recipes differ."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sigline.components.evaluate.metrics import intervals
from sigline.components.evaluate.metrics.intervals import Estimate

# The content of a run's `metrics.json`: results by the name of the metric.
Run = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class OverSeeds:
    """A metric over runs.

    Attributes:
        mean: Over the runs, with Student's t interval.
        std: Standard deviation between the runs, which the gate takes as `seed_std`.
        examples: How many examples each run was judged by; 0 for a cost.
        other: The same mean of the runs compared with; None without them.
        difference: Mean minus the other mean, with Welch's t interval; None without others.
    """

    mean: Estimate
    std: float
    examples: int
    other: Estimate | None = None
    difference: Estimate | None = None


def aggregate(
    runs: Sequence[Run],
    others: Sequence[Run] = (),
    *,
    confidence: float = intervals.CONFIDENCE,
) -> dict[str, OverSeeds]:
    """Returns the metrics that all runs have, by name, sorted.

    Args:
        runs: What each run reached.
        others: What each run reached of what they are compared with; none to compare nothing.
        confidence: Confidence level of the intervals.

    Raises:
        ValueError: If there are fewer than two runs of a kind, or they were judged by different
            numbers of examples.
    """
    everything = [*runs, *others]
    by_metric = {}
    for name in sorted(set.intersection(*(set(run) for run in everything))):
        items = [run[name] for run in everything]
        examples = {item["examples"] for item in items}
        if len(examples) > 1:
            raise ValueError(
                "Runs must have been judged by the same data. Received: "
                f"{name} over {', '.join(map(str, sorted(examples)))} examples"
            )
        values = [item["value"] for item in items]
        if any(value is None for value in values):
            continue
        own, other = values[: len(runs)], values[len(runs) :]
        by_metric[name] = OverSeeds(
            intervals.over_seeds(own, confidence=confidence),
            float(np.std(own, ddof=1)),
            examples.pop(),
            intervals.over_seeds(other, confidence=confidence) if other else None,
            intervals.between_seeds(own, other, confidence=confidence) if other else None,
        )
    return by_metric


def incomplete(runs: Sequence[Run]) -> list[str]:
    """Returns the names of metrics that some runs have and others do not, sorted."""
    held = [{name for name, item in run.items() if item["value"] is not None} for run in runs]
    return sorted(set.union(*held) - set.intersection(*held))
