"""Decides whether ingested data may be trained on: a pure function with reasons."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sigline.schemas import record


@dataclass(frozen=True)
class DataGate:
    """What the data must satisfy.

    Attributes:
        max_rejected_share: Largest share of the input that ingest may reject.
        min_records: Smallest number of records of each split.
        max_unreadable: Largest number of pairs of evaluation sets that could not be looked at.
        max_shares: Largest shares of the input by reason of rejection, such as `leak: 0`.
    """

    max_rejected_share: float = 0.1
    min_records: int = 10
    max_unreadable: int = 0
    max_shares: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 0 <= self.max_rejected_share <= 1:
            raise ValueError(
                "max_rejected_share must be between 0 and 1. "
                f"Received: max_rejected_share={self.max_rejected_share}"
            )


def data_problems(
    counts: dict[str, Any], anomalies: dict[str, dict[str, str]], gate: DataGate
) -> list[str]:
    """Returns a sentence for everything that is wrong; none means the data is good.

    Args:
        counts: Ingest's counts.
        anomalies: TFDV's descriptions by feature, by split.
        gate: The limits.
    """
    problems = []
    total = counts["input"]
    if counts["written"] + counts["rejected"] != total:
        problems.append(
            f"ingest does not add up: {total} pairs in, {counts['written']} written, "
            f"{counts['rejected']} rejected"
        )
    share = counts["rejected"] / total if total else 0.0
    if share > gate.max_rejected_share:
        reasons = ", ".join(f"{k} {v}" for k, v in sorted(counts["rejected_by_reason"].items()))
        problems.append(
            f"{share:.1%} of {total} pairs were rejected, the limit is "
            f"{gate.max_rejected_share:.1%} ({reasons})"
        )
    unreadable = sum(counts.get("eval_sets_unreadable", {}).values())
    if unreadable > gate.max_unreadable:
        problems.append(
            f"{unreadable} pairs of evaluation sets could not be looked at, the limit is "
            f"{gate.max_unreadable}; their pictures may be among the training pairs"
        )
    for reason, limit in sorted(gate.max_shares.items()):
        number = counts["rejected_by_reason"].get(reason, 0)
        if number > limit * total:
            problems.append(
                f"{number} of {total} pairs were rejected as {reason}, {number / total:.1%}; the "
                f"limit is {limit:.1%}"
            )
    for split in record.SPLITS:
        found = counts["splits"].get(split, 0)
        if found < gate.min_records:
            problems.append(f"split {split} holds {found} records, the least is {gate.min_records}")
    for split, by_feature in sorted(anomalies.items()):
        for feature, description in sorted(by_feature.items()):
            problems.append(f"split {split}, feature {feature}: {description}")
    return problems
