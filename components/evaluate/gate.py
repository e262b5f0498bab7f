"""The gate: a pure function from results to a verdict with reasons."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from sigline.components.evaluate.metrics import intervals
from sigline.components.evaluate.results import Result
from sigline.schemas.gate import Gate


@dataclass(frozen=True)
class Check:
    """One comparison of the gate.

    Attributes:
        metric: The metric.
        rule: The rule in words.
        value: What the model reached; None where there is no such metric.
        limit: What it had to reach; None where that is not known.
        passed: Whether it did.
        note: What else matters, such as that a drop may be chance.
    """

    metric: str
    rule: str
    value: float | None
    limit: float | None
    passed: bool
    note: str = ""

    def describe(self) -> str:
        """Returns a sentence with both numbers."""
        verb = "passes" if self.passed else "fails"
        if self.value is None and self.limit is None:
            return f"{self.metric} {verb}: {self.rule}"
        value = "the metric is missing" if self.value is None else f"{self.value:.4g}"
        limit = "not known" if self.limit is None else f"{self.limit:.4g}"
        note = f" ({self.note})" if self.note else ""
        return f"{self.metric} {verb}: {value}, {self.rule}: {limit}{note}"


@dataclass(frozen=True)
class Verdict:
    """The outcome: blessed if there was a check, and every check passed."""

    checks: tuple[Check, ...]

    @property
    def blessed(self) -> bool:
        """Whether the model may be published."""
        return bool(self.checks) and all(check.passed for check in self.checks)

    def failures(self) -> list[str]:
        """Returns a sentence for each failed check."""
        if not self.checks:
            return [
                "nothing was checked: all rules are about the last blessed model, of which none is"
            ]
        return [check.describe() for check in self.checks if not check.passed]

    def to_dict(self) -> dict[str, Any]:
        """Returns the verdict for JSON."""
        return {
            "blessed": self.blessed,
            "checks": [asdict(check) for check in self.checks],
            "failures": self.failures(),
        }


def judge(
    results: Mapping[str, Result],
    gate: Gate,
    *,
    has_baseline: bool,
    problems: Sequence[str] = (),
    more: Sequence[Check] = (),
) -> Verdict:
    """Compares results with the thresholds and with the last blessed model.

    A metric that is missing or NaN fails its check, and so does one that the baseline lacks.
    Without a baseline, as for the first model, the rules about it do not apply, as in TFX.

    Args:
        results: What the candidate reached, with the baseline beside it.
        gate: The thresholds.
        has_baseline: Whether there is a baseline.
        problems: What makes the model unfit whatever it reached, a sentence each.
        more: Checks that were made already.
    """
    checks = [Check("model", problem, None, None, passed=False) for problem in problems]
    checks += more
    checks += _absolute(results, gate)
    checks += _slices(results, gate.slice_minimum, gate, _at_least)
    if has_baseline:
        for name, margin in sorted(gate.max_drop.items()):
            checks.append(_drop(name, results.get(name), margin))
        for name, margin in sorted(gate.max_rise.items()):
            checks.append(_drop(name, results.get(name), margin, rise=True))
        for name, factor in sorted(gate.max_ratio.items()):
            checks.append(_ratio(name, results.get(name), factor))
        drops = _slices(results, gate.slice_max_drop, gate, _drop)
        checks += _forgiven(drops, results, gate.confidence)
    return Verdict(tuple(checks))


def _absolute(results: Mapping[str, Result], gate: Gate) -> Iterator[Check]:
    for name, limit in sorted(gate.minimum.items()):
        yield _at_least(name, results.get(name), limit)
    for name, limit in sorted(gate.maximum.items()):
        value = _value(results.get(name))
        yield Check(name, "at most", value, limit, passed=value is not None and value <= limit)
    for name, factor in sorted(gate.above_chance.items()):
        result = results.get(name)
        chance = None if result is None else result.chance
        limit = None if chance is None else factor * chance
        yield _at_least(name, result, limit, rule=f"at least {factor:g} times chance")


def _slices(results, limits: Mapping[str, Mapping[str, float]], gate: Gate, check) -> list[Check]:
    """Returns a check for every slice that is large enough."""
    checks = []
    for metric, dimensions in sorted(limits.items()):
        for dimension, limit in sorted(dimensions.items()):
            prefix = f"{metric}/{dimension}="
            names = [name for name in sorted(results) if name.startswith(prefix)]
            large = [n for n in names if results[n].examples >= gate.min_slice_examples]
            checks += [check(name, results[name], limit) for name in large]
            if not large:
                # Without any slice of enough examples, the metric over all of them is judged.
                whole = check(metric, results.get(metric), limit)
                note = f"all examples: no slices by {dimension} of enough examples"
                checks.append(replace(whole, note=f"{whole.note}; {note}" if whole.note else note))
    return checks


def _forgiven(
    checks: Sequence[Check], results: Mapping[str, Result], confidence: float
) -> list[Check]:
    """Passes slices whose drop is what chance does to one of so many of them."""
    known: dict[int, float] = {}
    for i, check in enumerate(checks):
        result = results.get(check.metric)
        if result is not None and result.p_value is not None and not math.isnan(result.p_value):
            known[i] = result.p_value
    adjusted = dict(zip(known, intervals.holm(list(known.values())), strict=True))
    judged = []
    for i, check in enumerate(checks):
        if not check.passed and adjusted.get(i, 0.0) > 1.0 - confidence:
            note = f"{check.note}: not told apart from chance in one of {len(known)} slices"
            check = replace(check, passed=True, note=note)
        judged.append(check)
    return judged


def _value(result: Result | None) -> float | None:
    return None if result is None or math.isnan(result.value) else result.value


def _at_least(
    name: str, result: Result | None, limit: float | None, *, rule: str = "at least"
) -> Check:
    value = _value(result)
    passed = value is not None and limit is not None and value >= limit
    return Check(name, rule, value, limit, passed)


def _drop(name: str, result: Result | None, margin: float, *, rise: bool = False) -> Check:
    """Refuses what is worse by more than the margin, unless chance explains it."""
    sign, word = (1, "above") if rise else (-1, "below")
    rule = f"at most {margin:g} {word} the last blessed model's"
    value = _value(result)
    if result is None or value is None or result.baseline is None or result.difference is None:
        return Check(name, rule, value, None, passed=False)
    limit = result.baseline + sign * margin
    exceeds = not sign * result.difference <= margin
    if result.difference_low is None or result.difference_high is None:
        return Check(name, rule, value, limit, passed=not exceeds)
    by_chance = result.difference_low <= 0.0 <= result.difference_high
    interval = f"difference {result.difference_low:+.4g} to {result.difference_high:+.4g}"
    note = f"{interval}: not told apart from chance" if exceeds and by_chance else interval
    return Check(name, rule, value, limit, passed=by_chance or not exceeds, note=note)


def _ratio(name: str, result: Result | None, factor: float) -> Check:
    rule, value = f"at most {factor:g} times the last blessed model's", _value(result)
    if result is None or value is None or result.baseline is None:
        return Check(name, rule, value, None, passed=False)
    limit = factor * result.baseline
    return Check(name, rule, value, limit, passed=value <= limit)
