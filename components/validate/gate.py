"""Decides whether ingested data may be trained on: a pure function with reasons."""

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple

from sigline.schemas import record, strict

_LIMITS = ("max_shares", "max_change", "max_shift", "max_drift", "max_skew")
# Tolerance for rounding in the difference of two shares.
_ROUNDING = 1e-9
# Maximum number of kinds of passed-over files that a sentence names.
_SHOWN = 5
# Key of `max_change` that stands for all reasons of rejection together.
REJECTED = "rejected"


@dataclass(frozen=True)
class DataGate:
    """What the data must satisfy.

    Attributes:
        max_rejected_share: Largest share of the input that ingest may reject.
        min_records: Smallest number of records of each split.
        max_unreadable: Largest number of pairs of evaluation sets that could not be looked at.
        max_passed_over_share: Largest share of what ingest may pass over, of it and the pairs, such
            as files of an unknown format. What holds no pairs, such as a `README.md`, is not
            counted.
        max_shares: Largest shares of the input by reason of rejection, such as `leak: 0`.
        max_change: Largest changes of shares of the input since the last data that was accepted, by
            reason, or of all that is `rejected`.
        max_shift: Largest changes since then of the share of any value of a feature of the report,
            such as `words` or `language`, in a split.
        max_drift: Largest differences since then of features of the records, by TFDV's comparators.
        max_skew: Likewise of the training split from the eval split.
        warn: Fields of a gate that only warns, none of which is on by default.
    """

    max_rejected_share: float = 0.1
    min_records: int = 10
    max_unreadable: int = 0
    max_passed_over_share: float = 0.01
    max_shares: Mapping[str, float] = field(default_factory=dict)
    max_change: Mapping[str, float] = field(default_factory=dict)
    max_shift: Mapping[str, float] = field(default_factory=dict)
    max_drift: Mapping[str, float] = field(default_factory=dict)
    max_skew: Mapping[str, float] = field(default_factory=dict)
    warn: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        shares = ("max_rejected_share", "max_passed_over_share")
        for name in (*shares, "min_records", "max_unreadable"):
            value = getattr(self, name)
            if not isinstance(value, int | float) or isinstance(value, bool):
                raise ValueError(f"{name} must be a number. Received: {name}={value!r}")
        for name in shares:
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(
                    f"{name} must be between 0 and 1. Received: {name}={getattr(self, name)}"
                )
        for name in _LIMITS:
            limits = getattr(self, name)
            if not isinstance(limits, Mapping) or not all(
                isinstance(limit, int | float) and 0 <= limit <= 1 for limit in limits.values()
            ):
                raise ValueError(f"{name} must be numbers of 0 to 1 by name. Received: {limits!r}")
        known = {item.name for item in fields(self)} - {"warn"}
        if not isinstance(self.warn, Mapping) or set(self.warn) - known:
            raise ValueError(
                f"warn must hold some of {', '.join(sorted(known))}. Received: warn={self.warn!r}"
            )

    @property
    def warning(self) -> "DataGate":
        """The gate that only warns."""
        nothing: dict[str, Any] = {
            "max_rejected_share": 1,
            "min_records": 0,
            "max_unreadable": sys.maxsize,
            "max_passed_over_share": 1,
        }
        return strict.build(DataGate, nothing | dict(self.warn), "data_gate.warn.")


class Described(NamedTuple):
    """Ingest's description of data: its counts, and its profile by split, feature and value."""

    counts: Mapping[str, Any]
    profile: Mapping[str, Any]

    @property
    def captions_are_optional(self) -> bool:
        """Whether ingest kept pictures without captions."""
        return record.WITHOUT_CAPTIONS in self.counts


def data_problems(
    data: Described,
    anomalies: Mapping[str, Mapping[str, str]],
    gate: DataGate,
    earlier: Described | None = None,
) -> list[str]:
    """Returns a sentence for everything that is wrong; none means the data is good.

    Args:
        data: What ingest says of it.
        anomalies: TFDV's descriptions by feature, by split.
        gate: The limits.
        earlier: Ingest's description of the last accepted data, if there was any.
    """
    problems = []
    counts = data.counts
    total = counts["input"]
    if counts["written"] + counts["rejected"] != total:
        problems.append(
            f"ingest does not add up: {total} pairs in, {counts['written']} written, "
            f"{counts['rejected']} rejected"
        )
    share = counts["rejected"] / total if total else 0.0
    if share > gate.max_rejected_share:
        listed = ", ".join(f"{k} {v}" for k, v in sorted(counts["rejected_by_reason"].items()))
        problems.append(
            f"{share:.1%} of {total} pairs were rejected, the limit is "
            f"{gate.max_rejected_share:.1%} ({listed})"
        )
    unreadable = sum(counts.get("eval_sets_unreadable", {}).values())
    if unreadable > gate.max_unreadable:
        problems.append(
            f"{unreadable} pairs of evaluation sets or earlier spans could not be looked at or are "
            f"trained on already, the limit is {gate.max_unreadable}"
        )
    problems += _passed_over(counts, gate)
    for reason, limit in sorted(gate.max_shares.items()):
        number = counts["rejected_by_reason"].get(reason, 0)
        if number > limit * total:
            problems.append(
                f"{number} of {total} pairs were rejected as {reason}, {number / total:.1%}; the "
                f"limit is {limit:.1%}"
            )
    for split in record.SPLITS:
        records = counts["splits"].get(split, 0)
        if records < gate.min_records:
            problems.append(
                f"split {split} holds {records} records, the least is {gate.min_records}"
            )
    for split, by_feature in sorted(anomalies.items()):
        for feature, description in sorted(by_feature.items()):
            problems.append(f"split {split}, feature {feature}: {description}")
    if earlier is not None:
        problems += [*_changes(counts, earlier.counts, gate), *_shifts(data, earlier, gate)]
    return problems


def _passed_over(counts: Mapping[str, Any], gate: DataGate) -> Iterator[str]:
    account = counts.get("passed_over")
    # Reports of earlier versions lack the account of files.
    if account is None or not account["counted"]:
        return
    number, total = account["counted"], account["counted"] + counts["input"]
    if number <= gate.max_passed_over_share * total:
        return
    counted = [item for item in account["groups"] if item["counted"]]
    shown = "; ".join(
        f"{item['count']} {item['suffix'] or 'without suffix'} in {item['folder'] or 'the folder'} "
        f"({item['reason']}), such as {item['names'][0]}"
        for item in counted[:_SHOWN]
    )
    more = len(counted) - _SHOWN
    yield (
        f"{number} things that may hold pairs were passed over beside {counts['input']} pairs, "
        f"{number / total:.1%}; the limit is {gate.max_passed_over_share:.1%}: {shown}"
        + (f"; and {more} other kinds" if more > 0 else "")
    )


def _changes(
    counts: Mapping[str, Any], earlier: Mapping[str, Any], gate: DataGate
) -> Iterator[str]:
    for name, limit in sorted(gate.max_change.items()):
        now, before = (_share(of_data, name) for of_data in (counts, earlier))
        if abs(now - before) > limit + _ROUNDING:
            yield (
                f"{now:.1%} of the pairs were rejected{'' if name == REJECTED else f' as {name}'}, "
                f"{before:.1%} of the last accepted data; the limit of the change is {limit:.1%}"
            )


def _share(counts: Mapping[str, Any], name: str) -> float:
    number = counts["rejected"] if name == REJECTED else counts["rejected_by_reason"].get(name, 0)
    return number / counts["input"] if counts["input"] else 0.0


def _shifts(data: Described, earlier: Described, gate: DataGate) -> Iterator[str]:
    for split in record.SPLITS:
        for name, limit in sorted(gate.max_shift.items()):
            now, before = (
                _shares(described.profile.get(split, {}).get(name, {}))
                for described in (data, earlier)
            )
            values = sorted(now.keys() | before.keys())
            if not values:
                yield f"split {split} has no {name} to compare with the last accepted data"
                continue
            value = max(values, key=lambda item: abs(now.get(item, 0) - before.get(item, 0)))
            if abs(now.get(value, 0) - before.get(value, 0)) > limit + _ROUNDING:
                yield (
                    f"split {split}, {name}: {now.get(value, 0):.1%} are {value}, "
                    f"{before.get(value, 0):.1%} of the last accepted data; the limit of the "
                    f"change is {limit:.1%}"
                )


def _shares(numbers: Mapping[str, int]) -> dict[str, float]:
    total = sum(numbers.values())
    return {value: number / total for value, number in numbers.items()}
