"""The model report: one page of HTML, with pictures and plots, that needs nothing else.

What it says is prepared here, and has no tag; how it looks is in `report.html.jinja`.
"""

import base64
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from markupsafe import Markup

from sigline.components.evaluate import plots, slices
from sigline.components.evaluate.findings import Example, Findings
from sigline.components.evaluate.gate import Verdict
from sigline.components.evaluate.results import Result, to_dict
from sigline.components.evaluate.tasks import grids, images
from sigline.components.shared import report_pages
from sigline.schemas import strength

TEMPLATE = report_pages.template(Path(__file__).parent)
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
_LATENCY = "latency_ms/embed_image@1"


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
    return TEMPLATE.render(content(verdict, results, findings, subject))


def content(
    verdict: Verdict, results: Mapping[str, Result], findings: Findings, subject: Subject
) -> dict[str, Any]:
    """Returns what the report says, by the template's names: texts, and plots as SVG.

    Args:
        verdict: The gate's.
        results: All metrics.
        findings: What there is to look at.
        subject: What else is known.
    """
    pictures = subject.pictures
    retrieved = (*findings.wrong, *findings.right)
    reliability = findings.reliability
    of_slices = [result for _, result in findings.worst_slices]
    return {
        "title": subject.title,
        "date": subject.date,
        "reports": subject.reports,
        "verdict": _verdict(verdict, results),
        "worst": [_card(example, pictures) for example in findings.worst],
        "checks": _checks(verdict),
        "metrics": _metrics(results),
        "grids": _grids(results),
        "slices": _table(findings.worst_slices, _has_baseline(of_slices)),
        "confusions": findings.confusions,
        "retrieved": [_card(example, pictures) for example in retrieved],
        "searches": _searches(findings, pictures),
        "reliability": Markup(plots.reliability(reliability)) if reliability else "",
        "curves": _curves(subject),
        "data": subject.data,
        "lineage": subject.lineage,
    }


def _verdict(verdict: Verdict, results: Mapping[str, Result]) -> dict[str, Any]:
    words = strength.sentence(to_dict(results))
    return {
        "blessed": verdict.blessed,
        "count": len(verdict.checks),
        "failures": verdict.failures(),
        "worth": words[:1].upper() + words[1:],
    }


def _checks(verdict: Verdict) -> list[dict[str, Any]]:
    """Returns the rows of what was checked, those that failed first."""
    return [
        {
            "passed": check.passed,
            "metric": check.metric,
            "value": strength.written(check.metric, check.value),
            "rule": check.rule,
            "limit": strength.written(check.metric, check.limit),
            "note": check.note,
        }
        for check in sorted(verdict.checks, key=lambda c: c.passed)
    ]


def _metrics(results: Mapping[str, Result]) -> dict[str, Any]:
    whole = [n for n in results if not slices.is_part(n) and _grid(n) is None]
    order = sorted(whole, key=lambda n: (_MAIN.index(n) if n in _MAIN else len(_MAIN), n))
    return _table([(name, results[name]) for name in order], _has_baseline(results.values()))


def _grid(name: str) -> int | None:
    """Returns the grid that a metric is of; None of one that is of no grid."""
    number = name.partition(f"/{grids.DIMENSION}=")[2]
    return int(number) if number else None


def _grids(results: Mapping[str, Result]) -> dict[str, Any] | None:
    """Returns quality and latency of a FlexiViT's grids; None of a model of one grid."""

    def at(name: str, grid: int) -> Result | None:
        return results.get(f"{name}/{grids.DIMENSION}={grid}")

    known = sorted({grid for grid in map(_grid, results) if grid is not None})
    metric = next((x for x in images.MAIN if known and at(x, known[0]) is not None), None)
    if metric is None:
        return None
    rows, points = [], []
    for grid in known:
        quality, latency = at(metric, grid), at(_LATENCY, grid)
        assert quality is not None
        rows.append(
            {
                "grid": f"{grid} x {grid}",
                "quality": _row(metric, quality),
                "change": _with_interval(metric, at(f"{metric}_difference", grid)),
                "latency": "" if latency is None else _with_interval(_LATENCY, latency, sign=""),
            }
        )
        if latency is not None:
            points.append(plots.GridPoint(grid, latency, quality))
    return {
        "metric": strength.label(metric),
        "rows": rows,
        "plot": Markup(plots.grids(strength.label(metric), points)) if points else "",
    }


def _with_interval(name: str, result: Result | None, *, sign: str = "+") -> str:
    """Returns a value with its interval; nothing for none."""
    if result is None:
        return ""
    value, low, high = (
        strength.written(name, x, sign=sign) for x in (result.value, result.low, result.high)
    )
    return f"{value} ({low} to {high})"


def _has_baseline(results: Iterable[Result]) -> bool:
    return any(result.baseline is not None for result in results)


def _table(rows: Sequence[tuple[str, Result]], has_baseline: bool) -> dict[str, Any]:
    return {"rows": [_row(name, result) for name, result in rows], "has_baseline": has_baseline}


def _row(name: str, result: Result) -> dict[str, Any]:
    interval, line = "", ""
    if result.low is not None and result.high is not None:
        low, high = strength.written(name, result.low), strength.written(name, result.high)
        interval = f"{low} to {high}"
        if strength.is_share(name):
            line = Markup(plots.interval(result.value, result.low, result.high, result.chance))
    return {
        "name": name,
        "value": strength.written(name, result.value),
        "interval": interval,
        "line": line,
        "chance": strength.written(name, result.chance),
        "examples": result.examples or "",
        "baseline": strength.written(name, result.baseline),
        "difference": _difference(name, result),
        "significant": result.significant,
    }


def _difference(name: str, result: Result) -> str:
    text = strength.written(name, result.difference, sign="+")
    if result.difference is None or result.difference_low is None:
        return text
    low, high = (
        strength.written(name, x, sign="+") for x in (result.difference_low, result.difference_high)
    )
    return f"{text} ({low} to {high})"


def _card(example: Example, pictures: Mapping[str, bytes]) -> dict[str, Any]:
    return {
        "unit": example.unit,
        "picture": _picture(example.unit, pictures),
        "expected": example.expected[:_SHOWN_CAPTIONS],
        "taken_for": [(text, f"{score:.3f}") for text, score in example.predictions],
        "right": example.right,
        "rank": example.rank,
    }


def _picture(unit: str, pictures: Mapping[str, bytes]) -> dict[str, str] | None:
    """Returns a picture with its bytes in its address; None for one that is not there."""
    encoded = pictures.get(unit)
    if encoded is None:
        return None
    kind = "png" if encoded.startswith(b"\x89PNG") else "jpeg"
    text = base64.b64encode(encoded).decode()
    return {"unit": unit, "address": f"data:image/{kind};base64,{text}"}


def _searches(findings: Findings, pictures: Mapping[str, bytes]) -> list[dict[str, Any]]:
    """Returns captions, each with the pictures found and whether each of them is right."""
    return [
        {
            "text": text,
            "images": [
                (picture, right)
                for unit, right in images
                if (picture := _picture(unit, pictures)) is not None
            ],
        }
        for text, images in findings.searches
    ]


def _curves(subject: Subject) -> list[Markup]:
    drawn = [plots.curve(name, points) for name, points in sorted(subject.curves.items()) if points]
    return [Markup(svg) for svg in drawn if svg]
