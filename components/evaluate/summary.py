"""The verdict for people and for CI: a table, Markdown, and JUnit's XML."""

import re
from collections.abc import Mapping
from xml.etree import ElementTree

from sigline.components.evaluate.gate import Check, Verdict
from sigline.components.evaluate.results import Result, to_dict
from sigline.schemas import strength

# Characters that XML 1.0 forbids; names of sources may contain them.
_FORBIDDEN = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_HEADLINES = (
    "zero_shot_accuracy",
    "zero_shot_mean_class_recall",
    "image_to_text_recall@1",
    "text_to_image_recall@1",
    "zero_shot_calibration_error",
)


def table(verdict: Verdict) -> str:
    """Returns the checks as aligned columns, those that failed first."""
    rows = [("", "metric", "value", "rule", "limit")]
    rows += [
        (_mark(check), check.metric, _number(check.value), check.rule, _number(check.limit))
        for check in _ordered(verdict)
    ]
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    return "\n".join(
        "  ".join([*(cell.ljust(w) for cell, w in zip(row, widths, strict=False)), row[4]]).rstrip()
        for row in rows
    )


def markdown(verdict: Verdict, results: Mapping[str, Result], *, title: str) -> str:
    """Returns a summary for a merge request: the verdict, what failed, and the main metrics."""
    state = "blessed" if verdict.blessed else "not blessed"
    lines = [f"## {title}: {state}", ""]
    if verdict.blessed and (words := strength.sentence(to_dict(results))):
        lines += [f"Blessed; {words}.", ""]
    if not verdict.blessed:
        lines += [*(f"- {_escaped(reason)}" for reason in verdict.failures()), ""]
    lines += ["| | metric | value | rule | limit | |", "|---|---|---|---|---|---|"]
    lines += [
        f"| {_mark(check)} | {_escaped(check.metric)} | {_number(check.value)} | "
        f"{_escaped(check.rule)} | {_number(check.limit)} | {_escaped(check.note)} |"
        for check in _ordered(verdict)
    ]
    shown = [name for name in _HEADLINES if name in results]
    if shown:
        lines += [
            "",
            "| metric | value (interval) | chance | last blessed | difference (interval) |",
            "|---|---|---|---|---|",
        ]
        lines += [_row(name, results[name]) for name in shown]
    return "\n".join(lines) + "\n"


def _row(name: str, result: Result) -> str:
    interval = "" if result.low is None else f" ({result.low:.4g} to {result.high:.4g})"
    difference = ""
    if result.difference_low is not None:
        difference = (
            f"{result.difference:+.4g} "
            f"({result.difference_low:+.4g} to {result.difference_high:+.4g})"
        )
    return (
        f"| {name} | {result.value:.4g}{interval} | {_number(result.chance)} | "
        f"{_number(result.baseline)} | {difference} |"
    )


def junit(verdict: Verdict, *, seconds: float) -> str:
    """Returns the checks as a JUnit test suite, a test case each."""
    failed = sum(not check.passed for check in verdict.checks)
    suite = ElementTree.Element(
        "testsuite",
        name="sigline gate",
        tests=str(len(verdict.checks)),
        failures=str(failed),
        errors="0",
        skipped="0",
        time=f"{seconds:.3f}",
    )
    for check in verdict.checks:
        case = ElementTree.SubElement(
            suite, "testcase", classname="sigline.gate", name=f"{check.metric} {check.rule}"
        )
        if not check.passed:
            failure = ElementTree.SubElement(case, "failure", message=check.describe())
            failure.text = check.describe()
        else:
            ElementTree.SubElement(case, "system-out").text = check.describe()
    root = ElementTree.Element("testsuites")
    root.append(suite)
    ElementTree.indent(root)
    text = ElementTree.tostring(root, encoding="unicode", xml_declaration=True)
    return _FORBIDDEN.sub("?", text) + "\n"


def _ordered(verdict: Verdict) -> list[Check]:
    return sorted(verdict.checks, key=lambda check: check.passed)


def _mark(check: Check) -> str:
    return "pass" if check.passed else "FAIL"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
