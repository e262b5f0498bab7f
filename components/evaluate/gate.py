"""The gate: a pure function from metrics to a verdict with reasons."""

import math
from dataclasses import asdict, dataclass
from typing import Any

from sigline.schemas.gate import Gate


@dataclass(frozen=True)
class Check:
    """One comparison of the gate.

    Attributes:
        metric: The metric.
        rule: The rule in words.
        value: What the model reached; NaN where the metric is missing.
        limit: What it had to reach.
        passed: Whether it did.
    """

    metric: str
    rule: str
    value: float
    limit: float
    passed: bool

    def describe(self) -> str:
        """Returns a sentence with both numbers."""
        verb = "passes" if self.passed else "fails"
        if math.isnan(self.value):
            return (
                f"{self.metric} {verb} ({self.rule}): the metric is missing, needs {self.limit:.4f}"
            )
        relation = ">=" if self.passed else "<"
        return f"{self.metric} {verb} ({self.rule}): {self.value:.4f} {relation} {self.limit:.4f}"


@dataclass(frozen=True)
class Verdict:
    """The outcome: blessed if every check passed."""

    checks: tuple[Check, ...]

    @property
    def blessed(self) -> bool:
        """Whether the model may be published."""
        return all(check.passed for check in self.checks)

    def failures(self) -> list[str]:
        """Returns a sentence for each failed check."""
        return [check.describe() for check in self.checks if not check.passed]

    def to_dict(self) -> dict[str, Any]:
        """Returns the verdict for JSON; a missing metric is null."""
        checks = [
            asdict(check) | {"value": None if math.isnan(check.value) else check.value}
            for check in self.checks
        ]
        return {"blessed": self.blessed, "checks": checks, "failures": self.failures()}


def judge(candidate: dict[str, float], baseline: dict[str, float] | None, gate: Gate) -> Verdict:
    """Compares a candidate with the thresholds and with the last blessed model.

    A metric that is missing or NaN fails its check. Without a baseline, as for the first model, the
    rules about drops do not apply.

    Args:
        candidate: The candidate's metrics.
        baseline: Metrics of the last blessed model on the same data, if there is one.
        gate: The thresholds.
    """
    checks = [
        _check(candidate, name, "minimum", limit) for name, limit in sorted(gate.minimum.items())
    ]
    for name, (chance, factor) in sorted(gate.above_chance.items()):
        limit = factor * candidate.get(chance, math.nan)
        checks.append(_check(candidate, name, f"{factor:g} times chance", limit))
    if baseline is not None:
        for name, drop in sorted(gate.max_drop.items()):
            limit = baseline.get(name, math.nan) - drop
            rule = f"at most {drop:g} below the last blessed model"
            checks.append(_check(candidate, name, rule, limit))
    return Verdict(tuple(checks))


def _check(metrics: dict[str, float], name: str, rule: str, limit: float) -> Check:
    value = metrics.get(name, math.nan)
    # Comparisons with NaN are false: what cannot be compared does not pass.
    return Check(metric=name, rule=rule, value=value, limit=limit, passed=value >= limit)
