"""The data report: one page of HTML, with pictures, that needs nothing else.

What it says is prepared here, and has no tag; how it looks is in `report.html.jinja`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sigline.components.shared import report_pages
from sigline.components.validate.gate import Described
from sigline.schemas import record

TEMPLATE = report_pages.template(Path(__file__).parent)
_BAR_WIDTH, _FEATURE_WIDTH = 16, 8
# Values that are shown of a feature; the rest is added up.
_VALUES = 20
_TEXT_LENGTH = 160
_SHOWN_CAPTIONS = 3
# Kinds of passed-over things that are shown, those of most things.
_GROUPS = 60


def page(
    data: Described,
    samples: Mapping[str, Any],
    problems: Sequence[str],
    warnings: Sequence[str] = (),
    *,
    date: str = "",
    reports: str = "",
) -> str:
    """Returns the report.

    Args:
        data: What ingest says of the data.
        samples: Pairs to look at, by split or reason.
        problems: What the data gate found.
        warnings: What it only warns of.
        date: When the data were checked.
        reports: Address of the page with the links to all reports of the run; empty for none.
    """
    shown = TEMPLATE.render(
        content(data, samples), problems=problems, warnings=warnings, date=date, reports=reports
    )
    # Keys may hold halves of surrogate pairs, which no file takes.
    return shown.encode("utf-8", "replace").decode()


def content(data: Described, samples: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what the report says of data and samples, by the template's names.

    Args:
        data: What ingest says of the data.
        samples: Pairs to look at, by split or reason.
    """
    counts, profile = data
    rejected = _most_first(counts["rejected_by_reason"])
    headings = {split: f"Some of {split}" for split in record.SPLITS}
    headings |= {reason: f"Some rejected: {reason}" for reason, _ in rejected}
    return {
        "title": "Data report",
        "numbers": _numbers(data),
        "rejected": _chart(rejected),
        "passed_over": _passed_over(counts.get("passed_over")),
        "features": _features(profile),
        "remarks": _chart(_most_first(counts.get("remarks") or {})),
        "sampled": [
            (heading, [_pair(sample) for sample in samples[name]])
            for name, heading in headings.items()
            if samples.get(name)
        ],
    }


def _most_first(numbers: Mapping[str, int]) -> list[tuple[str, int]]:
    return sorted(numbers.items(), key=lambda item: (-item[1], item[0]))


def _numbers(data: Described) -> list[tuple[str, str]]:
    counts = data.counts
    shown = [("pairs read", counts["input"]), ("written", counts["written"])]
    shown += [(split, counts["splits"].get(split, 0)) for split in record.SPLITS]
    if data.captions_are_optional:
        shown.append(("without captions", counts[record.WITHOUT_CAPTIONS]))
    share = f" ({counts['rejected'] / counts['input']:.1%})" if counts["input"] else ""
    shown.append((f"rejected{share}", counts["rejected"]))
    return [(name, f"{number:,}") for name, number in shown]


def _chart(items: Sequence[tuple[str, int]]) -> dict[str, Any]:
    """Returns bars that are as long as their numbers, the longest as wide as the chart."""
    most = max((number for _, number in items), default=0)
    return {
        "width": _BAR_WIDTH,
        "ticks": ("0", f"{most:,}"),
        "bars": [
            {"name": name, "number": f"{number:,}", "width": f"{_BAR_WIDTH * number / most:.2f}"}
            for name, number in items
        ],
    }


def _passed_over(account: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Returns what was passed over; None for a report of an earlier version."""
    if account is None:
        return None
    kinds = (("files", account["files"]), ("members of archives", account["members"]))
    return {
        "sentences": [
            f"Of {numbers['total']:,} {kind}, {numbers['read']:,} were read and "
            f"{numbers['passed_over']:,} passed over."
            for kind, numbers in kinds
            if numbers["total"]
        ],
        "groups": [
            {
                "folder": group["folder"],
                "suffix": group["suffix"],
                "reason": group["reason"],
                "number": f"{group['count']:,}",
                "names": ", ".join(group["names"]),
                "counted": group["counted"],
            }
            for group in account["groups"][:_GROUPS]
        ],
        "others": max(len(account["groups"]) - _GROUPS, 0),
    }


def _features(profile: Mapping[str, Any]) -> list[dict[str, Any]]:
    names = sorted({name for split in profile.values() for name in split})
    return [_feature(name, profile) for name in names]


def _feature(name: str, profile: Mapping[str, Any]) -> dict[str, Any]:
    splits = {split: profile.get(split, {}).get(name, {}) for split in record.SPLITS}
    totals = {split: sum(numbers.values()) for split, numbers in splits.items()}
    values = sorted(
        {value for numbers in splits.values() for value in numbers},
        key=lambda value: -sum(numbers.get(value, 0) for numbers in splits.values()),
    )
    shown, rest = sorted(values[:_VALUES], key=_in_order), values[_VALUES:]
    rows = []
    for value, own in [*((value, [value]) for value in shown), (f"{len(rest)} others", rest)]:
        if not own:
            continue
        bars, number = [], 0
        for split, numbers in splits.items():
            count = sum(numbers.get(item, 0) for item in own)
            number += count
            share = count / totals[split] if totals[split] else 0
            if count:
                width = f"{_FEATURE_WIDTH * share:.2f}"
                bars.append({"split": split, "share": f"{share:.1%}", "width": width})
        rows.append({"name": value, "number": f"{number:,}", "bars": bars})
    return {"name": name, "width": _FEATURE_WIDTH, "rows": rows}


def _in_order(value: str) -> tuple[float, str]:
    """Sorts numbers and ranges by their beginning, and all else behind them by name."""
    begin = value.split("-")[0]
    try:
        return float(begin), value
    except ValueError:
        return float("inf"), value


def _pair(sample: Mapping[str, Any]) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "pictures": [
            {"name": name, "encoded": sample[kind]}
            for kind, name in (("image", "the picture"), ("other", "what it is a copy of"))
            if sample.get(kind)
        ]
    }
    if "text" in sample:
        captions = [text[:_TEXT_LENGTH] for text in sample["text"][:_SHOWN_CAPTIONS]]
        place = f"{sample['source']} / {sample['key']}"
        return shown | {"captions": captions, "detail": "", "place": place}
    place = " ".join(str(sample[name]) for name in ("shard", "position", "key"))
    return shown | {"captions": [], "detail": sample["detail"], "place": place}
