"""The model report: one page of HTML, with pictures and plots, that needs nothing else."""

import base64
import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from sigline.components.evaluate import plots, slices
from sigline.components.evaluate.findings import Example, Findings
from sigline.components.evaluate.gate import Check, Verdict
from sigline.components.evaluate.results import Result, to_dict
from sigline.schemas import strength

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 76rem; margin: 2rem auto;
  padding: 0 1.5rem; }
h1 { font-weight: 600; margin-bottom: .3rem; }
h2 { margin-top: 2.5rem; border-bottom: 1px solid #ddd; }
.about { color: #666; margin-top: 0; }
.verdict { padding: .8rem 1.2rem; border-radius: .4rem; background: #e7f5ec; }
.verdict.bad { background: #fdecea; } .verdict b { font-size: 1.3rem; }
.verdict ul { margin: .3rem 0; }
table { border-collapse: collapse; }
th { text-align: left; font-weight: 600; color: #555; }
th, td { padding: .15rem 1rem .15rem 0; vertical-align: middle; }
td:first-child { white-space: nowrap; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
td.note { color: #666; font-size: .85rem; }
tr.failed td { background: #fdecea; } .worse { color: #b3261e; } .better { color: #1a7f3c; }
.cards { display: flex; flex-wrap: wrap; gap: .8rem; }
.card { box-sizing: border-box; flex: 0 0 calc(20% - .64rem); min-width: 12rem;
  background: #f5f6f8; border-radius: .4rem; padding: .6rem; font-size: .85rem;
  overflow-wrap: anywhere; border-top: .25rem solid #d9604c; }
.card.right { border-color: #2a9d50; }
.card img, .search img { width: 7rem; height: 7rem; object-fit: contain; background: #fff; }
.card .key { color: #666; font-size: .75rem; } .card p { margin: .3rem 0; }
.search { margin: .8rem 0; } .search img { border: .2rem solid #d9604c; margin-right: .3rem; }
.search img.right { border-color: #2a9d50; }
.legend { color: #666; font-size: .85rem; }
svg text { font: 11px system-ui, sans-serif; fill: #555; } svg text.tick { font-size: 9px; }
svg text.title { font-weight: 600; }
.plots { display: flex; flex-wrap: wrap; gap: 2rem; }
"""
_MAIN = (
    "classification_accuracy",
    "classification_accuracy@5",
    "classification_mean_class_recall",
    "zero_shot_accuracy",
    "zero_shot_accuracy@5",
    "zero_shot_mean_class_recall",
    "image_to_text_recall@1",
    "image_to_text_recall@5",
    "image_to_text_recall@10",
    "text_to_image_recall@1",
    "text_to_image_recall@5",
    "text_to_image_recall@10",
)
_SHOWN_CAPTIONS = 3


@dataclass(frozen=True)
class Subject:
    """What the report is about besides what was measured.

    Attributes:
        title: Name of the model.
        pictures: Encoded pictures that a browser shows, by the record's unit.
        curves: Points `(step, value)` of what was logged in training, by name.
        data: What is known of the data, a name and a value each.
        lineage: What made the model, a name and a value each: digests, versions, parents.
        date: When it was judged.
        reports: Address of the page with the links to all reports of the run; empty for none.
    """

    title: str
    pictures: Mapping[str, bytes] = field(default_factory=dict)
    curves: Mapping[str, Sequence[tuple[float, float]]] = field(default_factory=dict)
    data: Sequence[tuple[str, str]] = ()
    lineage: Sequence[tuple[str, str]] = ()
    date: str = ""
    reports: str = ""


def page(
    verdict: Verdict, results: Mapping[str, Result], findings: Findings, subject: Subject
) -> str:
    """Returns the report.

    Args:
        verdict: The gate's.
        results: All metrics.
        findings: What there is to look at.
        subject: What else is known.
    """
    pictures = subject.pictures
    worst = [_card(example, pictures) for example in findings.worst]
    parts = [
        f"<h1>{html.escape(subject.title)}</h1>",
        _about(subject),
        _verdict(verdict, results),
        *_section("The five worst examples", _cards(worst) if worst else ""),
        *_section("What the gate checked", _checks(verdict)),
        *_section("Metrics", _metrics(results)),
        *_section("Worst slices", _slices(findings)),
        *_section("What is taken for what", _confusions(findings)),
        *_section("Captions found for images", _retrieved(findings, pictures)),
        *_section("Images found for captions", _searches(findings, pictures)),
        *_section("Calibration", _calibration(findings)),
        *_section("Training", _curves(subject)),
        *_section("Data", _pairs(subject.data)),
        *_section("Where it comes from", _pairs(subject.lineage)),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f"<title>{html.escape(subject.title)}</title><style>{_STYLE}</style></head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


def _section(title: str, content: str) -> list[str]:
    return [f"<h2>{html.escape(title)}</h2>", content] if content else []


def _about(subject: Subject) -> str:
    words = [f"Judged on {html.escape(subject.date)}"] if subject.date else []
    if subject.reports:
        words.append(
            f'<a href="{html.escape(subject.reports, quote=True)}">data report, model card and '
            "all else of the run</a>"
        )
    return f'<p class="about">{"; ".join(words)}</p>' if words else ""


def _said(text: str) -> str:
    """Returns a text of the data: of its own direction, which may be from right to left."""
    return f"<bdi>{html.escape(text)}</bdi>"


def _verdict(verdict: Verdict, results: Mapping[str, Result]) -> str:
    reasons = "".join(f"<li>{html.escape(reason)}</li>" for reason in verdict.failures())
    count = len(verdict.checks)
    if verdict.blessed:
        words = strength.sentence(to_dict(results))
        worth = f" {html.escape(words[0].upper() + words[1:])}." if words else ""
        return f'<div class="verdict"><b>Blessed</b>: all {count} checks passed.{worth}</div>'
    return (
        f'<div class="verdict bad"><b>Not blessed</b>: {len(verdict.failures())} of {count} checks '
        f"failed.<ul>{reasons}</ul></div>"
    )


def _checks(verdict: Verdict) -> str:
    def row(check: Check) -> str:
        return (
            f"<tr{'' if check.passed else ' class=failed'}>"
            f"<td>{'passed' if check.passed else '<b>failed</b>'}</td>"
            f"<td>{html.escape(check.metric)}</td>"
            f'<td class="number">{strength.written(check.metric, check.value)}</td>'
            f"<td>{html.escape(check.rule)}</td>"
            f'<td class="number">{strength.written(check.metric, check.limit)}</td>'
            f'<td class="note">{html.escape(check.note)}</td></tr>'
        )

    rows = "".join(row(check) for check in sorted(verdict.checks, key=lambda c: c.passed))
    head = '<th></th><th>metric</th><th class="number">value</th><th>rule</th>'
    return f'<table><tr>{head}<th class="number">limit</th><th></th></tr>{rows}</table>'


def _metrics(results: Mapping[str, Result]) -> str:
    whole = [name for name in results if not slices.is_part(name)]
    order = sorted(whole, key=lambda n: (_MAIN.index(n) if n in _MAIN else len(_MAIN), n))
    has_baseline = any(result.baseline is not None for result in results.values())
    return _results_table([(name, results[name]) for name in order], has_baseline)


def _slices(findings: Findings) -> str:
    has_baseline = any(result.baseline is not None for _, result in findings.worst_slices)
    return _results_table(findings.worst_slices, has_baseline) if findings.worst_slices else ""


def _results_table(rows: Sequence[tuple[str, Result]], has_baseline: bool) -> str:
    if not rows:
        return ""
    head = ["", "value", "interval", "", "chance", "examples"]
    if has_baseline:
        head += ["last blessed", "difference (interval)"]
    cells = "".join(f'<th class="{"number" if i else ""}">{h}</th>' for i, h in enumerate(head))
    body = "".join(_result_row(name, result, has_baseline) for name, result in rows)
    return f"<table><tr>{cells}</tr>{body}</table>"


def _result_row(name: str, result: Result, has_baseline: bool) -> str:
    interval, line = "", ""
    if result.low is not None and result.high is not None:
        low, high = strength.written(name, result.low), strength.written(name, result.high)
        interval = f"{low} to {high}"
        if strength.is_share(name):
            line = plots.interval(result.value, result.low, result.high, result.chance)
    cells = [
        f"<td>{html.escape(name)}</td>",
        f'<td class="number"><b>{strength.written(name, result.value)}</b></td>',
        f'<td class="number">{interval}</td><td>{line}</td>',
        f'<td class="number">{strength.written(name, result.chance)}</td>',
        f'<td class="number">{result.examples or ""}</td>',
    ]
    if has_baseline:
        cells.append(f'<td class="number">{strength.written(name, result.baseline)}</td>')
        cells.append(f'<td class="number">{_difference(name, result)}</td>')
    return f"<tr>{''.join(cells)}</tr>"


def _difference(name: str, result: Result) -> str:
    if result.difference is None:
        return ""
    text = strength.written(name, result.difference, sign="+")
    if result.difference_low is None:
        return text
    low, high = (
        strength.written(name, x, sign="+") for x in (result.difference_low, result.difference_high)
    )
    text = f"{text} ({low} to {high})"
    return f"<b>{text}</b>" if result.significant else text


def _cards(cards: Sequence[str]) -> str:
    return f'<div class="cards">{"".join(cards)}</div>'


def _card(example: Example, pictures: Mapping[str, bytes]) -> str:
    expected = "<br>".join(_said(text) for text in example.expected[:_SHOWN_CAPTIONS])
    found = "<br>".join(f"{_said(text)} ({score:.3f})" for text, score in example.found)
    return (
        f'<div class="card{" right" if example.right else ""}">'
        f"{_picture(example.unit, pictures)}"
        f"<p><b>is</b> {expected}</p><p><b>taken for</b> {found}</p>"
        f'<p class="key">{_said(example.unit)}; {example.rank} wrong before the right one</p>'
        "</div>"
    )


def _picture(unit: str, pictures: Mapping[str, bytes], kind: str = "") -> str:
    content = pictures.get(unit)
    if content is None:
        return ""
    name = "png" if content.startswith(b"\x89PNG") else "jpeg"
    encoded = base64.b64encode(content).decode()
    return (
        f'<img class="{kind}" alt="{html.escape(unit, quote=True)}" '
        f'title="{html.escape(unit, quote=True)}" src="data:image/{name};base64,{encoded}">'
    )


def _confusions(findings: Findings) -> str:
    rows = "".join(
        f'<tr><td>{_said(name)}</td><td>{_said(other)}</td><td class="number">{count}</td></tr>'
        for name, other, count in findings.confusions
    )
    if not rows:
        return ""
    return (
        f'<table><tr><th>is</th><th>taken for</th><th class="number">times</th></tr>{rows}</table>'
    )


def _retrieved(findings: Findings, pictures: Mapping[str, bytes]) -> str:
    shown = [_card(example, pictures) for example in (*findings.wrong, *findings.right)]
    return _cards(shown) if shown else ""


def _searches(findings: Findings, pictures: Mapping[str, bytes]) -> str:
    return "".join(
        f'<div class="search"><div>{_said(text)}</div>'
        + "".join(_picture(unit, pictures, "right" if right else "wrong") for unit, right in images)
        + "</div>"
        for text, images in findings.searches
    )


def _calibration(findings: Findings) -> str:
    if not findings.reliability:
        return ""
    return (
        plots.reliability(findings.reliability)
        + '<p class="legend">Share of pairs of image and class that belong together, by the '
        "probability that the model gave them; on the line, the probability means what it says. "
        "The larger a dot, the more pairs.</p>"
    )


def _curves(subject: Subject) -> str:
    drawn = "".join(
        plots.curve(name, points) for name, points in sorted(subject.curves.items()) if points
    )
    return f'<div class="plots">{drawn}</div>' if drawn else ""


def _pairs(pairs: Sequence[tuple[str, str]]) -> str:
    rows = "".join(
        f"<tr><td>{html.escape(name)}</td><td>{html.escape(value)}</td></tr>"
        for name, value in pairs
    )
    return f"<table>{rows}</table>" if rows else ""
