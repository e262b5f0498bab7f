"""The data report: one page of HTML, with pictures, that needs nothing else."""

import html
from collections.abc import Mapping, Sequence
from typing import Any

from sigline.components.validate.gate import Described
from sigline.schemas import record

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 72rem; margin: 2rem auto;
  padding: 0 1.5rem; }
h1 { font-weight: 600; } h2 { margin-top: 2.5rem; border-bottom: 1px solid #ddd; }
.verdict { padding: .8rem 1rem; border-radius: .4rem; background: #e7f5ec; }
.verdict.bad { background: #fdecea; } .verdict.warned { background: #fff6e0; }
.verdict + .verdict { margin-top: .6rem; } .verdict ul { margin: .3rem 0; }
.numbers { display: flex; gap: 1rem; flex-wrap: wrap; margin: 1.2rem 0; }
.numbers div { background: #f5f6f8; border-radius: .4rem; padding: .6rem 1.2rem; }
.numbers b { display: block; font-size: 1.6rem; font-variant-numeric: tabular-nums; }
table.bars { border-collapse: collapse; } table.bars td { padding: .1rem .6rem .1rem 0; }
table.bars td.number { text-align: right; font-variant-numeric: tabular-nums; }
.axis { display: flex; justify-content: space-between; border-bottom: 1px solid #bbb; }
table.bars th { font-size: .75rem; font-weight: normal; color: #666; text-align: left;
  padding: .1rem .6rem .1rem 0; }
.bar { background: #5b8def; height: .8rem; border-radius: .1rem; min-width: 1px; }
.bar.eval { background: #e8a33d; } .bar.rejected { background: #d9604c; }
table.passed { border-collapse: collapse; font-size: .85rem; overflow-wrap: anywhere; }
table.passed th { text-align: left; } table.passed td, table.passed th { padding: .1rem .8rem .1rem 0; }
table.passed td.number { text-align: right; font-variant-numeric: tabular-nums; }
table.passed tr.counted { color: #b3261e; }
.features { display: grid; grid-template-columns: repeat(auto-fill, minmax(20rem, 1fr)); gap: 1.5rem; }
.pairs { display: flex; flex-wrap: wrap; gap: .8rem; }
.pair { width: 15rem; background: #f5f6f8; border-radius: .4rem; padding: .6rem; font-size: .8rem;
  overflow-wrap: anywhere; }
.pair img { max-width: 7rem; max-height: 7rem; margin-right: .3rem; background: #fff; }
.pair .key { color: #666; }
.legend { color: #666; }
"""  # noqa: E501
_BAR_WIDTH, _FEATURE_WIDTH = 16, 8
# Values that are shown of a feature; the rest is added up.
_VALUES = 20
_TEXT_LENGTH = 160
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
    counts, profile = data
    rejected = sorted(counts["rejected_by_reason"].items(), key=lambda item: (-item[1], item[0]))
    parts = [
        "<h1>Data report</h1>",
        _about(date, reports),
        _verdict(problems, warnings),
        _numbers(data),
        "<h2>What was rejected</h2>",
        _bars(rejected, "rejected") if rejected else "<p>Nothing.</p>",
        *_passed_over(counts.get("passed_over")),
        "<h2>What the pairs are like</h2>",
        '<p class="legend">Blue: train. Orange: eval. Shares of each split.</p>',
        _features(profile),
        *_remarks(counts.get("remarks")),
        *(_pairs(f"Some of {split}", samples.get(split, [])) for split in record.SPLITS),
        *(_pairs(f"Some rejected: {reason}", samples.get(reason, [])) for reason, _ in rejected),
    ]
    body = "\n".join(parts)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>Data report</title>'
        f"<style>{_STYLE}</style></head>\n<body>\n{body}\n</body></html>\n"
    )


def _about(date: str, reports: str) -> str:
    words = [f"Checked on {_text(date)}"] if date else []
    if reports:
        words.append(f'<a href="{_text(reports)}">model report, model card and all else</a>')
    return f'<p class="legend">{"; ".join(words)}</p>' if words else ""


def _verdict(problems: Sequence[str], warnings: Sequence[str]) -> str:
    shown = _listed("bad", "The data gate stopped the pipeline:", problems)
    shown += _listed("warned", "The data gate warns:", warnings)
    return shown or '<div class="verdict">The data gate found nothing wrong.</div>'


def _listed(kind: str, title: str, sentences: Sequence[str]) -> str:
    if not sentences:
        return ""
    items = "".join(f"<li>{_text(sentence)}</li>" for sentence in sentences)
    return f'<div class="verdict {kind}">{title}<ul>{items}</ul></div>'


def _numbers(data: Described) -> str:
    counts = data.counts
    shown = [("pairs read", counts["input"]), ("written", counts["written"])]
    shown += [(split, counts["splits"].get(split, 0)) for split in record.SPLITS]
    if data.captions_are_optional:
        shown.append(("without captions", counts[record.WITHOUT_CAPTIONS]))
    share = f" ({counts['rejected'] / counts['input']:.1%})" if counts["input"] else ""
    shown.append((f"rejected{share}", counts["rejected"]))
    items = "".join(f"<div><b>{number:,}</b>{_text(name)}</div>" for name, number in shown)
    return f'<div class="numbers">{items}</div>'


def _bars(items: Sequence[tuple[str, int]], kind: str) -> str:
    most = max(number for _, number in items)
    rows = "".join(
        f'<tr><td>{_text(name)}</td><td class="number">{number:,}</td>'
        f'<td><div class="bar {kind}" style="width:{_BAR_WIDTH * number / most:.2f}rem"></div></td>'
        "</tr>"
        for name, number in items
    )
    head = f"<tr><th></th><th>number</th><th>{_axis(_BAR_WIDTH, '0', f'{most:,}')}</th></tr>"
    return f'<table class="bars">{head}{rows}</table>'


def _axis(width: float, *ticks: str) -> str:
    """Returns the numbers above bars, from the left end to the right one."""
    marks = "".join(f"<span>{_text(tick)}</span>" for tick in ticks)
    return f'<div class="axis" style="width:{width}rem">{marks}</div>'


def _remarks(remarks: Mapping[str, int] | None) -> list[str]:
    """Returns the section on what was left out of pairs; none if nothing was."""
    items = sorted((remarks or {}).items(), key=lambda item: (-item[1], item[0]))
    return ["<h2>What was left out of pairs</h2>", _bars(items, "rejected")] if items else []


def _passed_over(account: Mapping[str, Any] | None) -> list[str]:
    """Returns the section on what was passed over; none for a report of an earlier version."""
    if account is None:
        return []
    sentences = [
        f"Of {numbers['total']:,} {kind}, {numbers['read']:,} were read and "
        f"{numbers['passed_over']:,} passed over."
        for kind, numbers in (
            ("files", account["files"]),
            ("members of archives", account["members"]),
        )
        if numbers["total"]
    ]
    parts = ["<h2>What was passed over</h2>", f"<p>{' '.join(sentences)}</p>"]
    if account["groups"]:
        rows = "".join(_passed_over_row(item) for item in account["groups"][:_GROUPS])
        parts.append(
            '<table class="passed"><tr><th>folder</th><th>suffix</th><th>reason</th><th>number</th>'
            f"<th>such as</th></tr>{rows}</table>"
        )
    if (rest := len(account["groups"]) - _GROUPS) > 0:
        parts.append(f"<p>And {rest} other kinds; <code>passed_over/</code> names all.</p>")
    return parts


def _passed_over_row(item: Mapping[str, Any]) -> str:
    # The data gate counts what may hold pairs.
    kind = ' class="counted"' if item["counted"] else ""
    cells = (item["folder"], item["suffix"], item["reason"])
    shown = "".join(f"<td>{_text(cell)}</td>" for cell in cells)
    names = ", ".join(item["names"])
    return f'<tr{kind}>{shown}<td class="number">{item["count"]:,}</td><td>{_text(names)}</td></tr>'


def _features(profile: Mapping[str, Any]) -> str:
    names = sorted({name for split in profile.values() for name in split})
    return f'<div class="features">{"".join(_feature(name, profile) for name in names)}</div>'


def _feature(name: str, profile: Mapping[str, Any]) -> str:
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
        bars, number = "", 0
        for split, numbers in splits.items():
            count = sum(numbers.get(item, 0) for item in own)
            number += count
            share = count / totals[split] if totals[split] else 0
            bar = (
                f'<div class="bar {split}" style="width:{_FEATURE_WIDTH * share:.2f}rem" '
                f'title="{share:.1%} of {split}"></div>'
            )
            bars += bar if count else ""
        rows.append(
            f'<tr><td>{_said(value)}</td><td class="number">{number:,}</td><td>{bars}</td></tr>'
        )
    axis = _axis(_FEATURE_WIDTH, "0%", "50%", "100%")
    head = f"<tr><th>value</th><th>pairs</th><th>{axis}</th></tr>"
    return f'<div><b>{_text(name)}</b><table class="bars">{head}{"".join(rows)}</table></div>'


def _in_order(value: str) -> tuple[float, str]:
    """Sorts numbers and ranges by their beginning, and all else behind them by name."""
    begin = value.split("-")[0]
    try:
        return float(begin), value
    except ValueError:
        return float("inf"), value


def _pairs(title: str, samples: Sequence[Mapping[str, Any]]) -> str:
    if not samples:
        return ""
    items = "".join(_pair(sample) for sample in samples)
    return f'<h2>{_text(title)}</h2><div class="pairs">{items}</div>'


def _pair(sample: Mapping[str, Any]) -> str:
    pictures = "".join(
        f'<img src="data:image/jpeg;base64,{_text(sample[name])}" alt="{alt}">'
        for name, alt in (("image", "the picture"), ("other", "what it is a copy of"))
        if sample.get(name)
    )
    if "text" in sample:
        said = "<br>".join(_said(text[:_TEXT_LENGTH]) for text in sample["text"][:3])
        where = f"{sample['source']} / {sample['key']}"
    else:
        said = _text(sample["detail"])
        where = " ".join(str(sample[name]) for name in ("shard", "position", "key"))
    return (
        f'<div class="pair">{pictures}<div>{said}</div><div class="key">{_said(where)}</div></div>'
    )


def _said(value: object) -> str:
    """Returns a text of the data: of its own direction, which may be from right to left."""
    return f"<bdi>{_text(value)}</bdi>"


def _text(value: object) -> str:
    # Keys may hold halves of surrogate pairs, which no file takes.
    return html.escape(str(value).encode("utf-8", "replace").decode())
