"""Describes the quality of a model in a sentence: compared with chance and with the last model.

A gate blesses a model that reaches its thresholds, which may be low. The sentence tells readers of
"blessed" how good the model is.
"""

from collections.abc import Mapping
from typing import Any

# The metrics that matter most to users; the lowest of them is reported.
_MAIN = (
    "classification_accuracy",
    "zero_shot_accuracy",
    "image_to_text_recall@1",
    "text_to_image_recall@1",
)
_FAR, _CLEAR = 10.0, 2.0
# Parts of the names of metrics that are shares, which are written as per cent.
_SHARES = ("accuracy", "recall@", "class_recall", "precision", "share", "all_labels")
# Ratios to the last model's that a reader would call equal.
_EQUAL = 0.995


def sentence(metrics: Mapping[str, Mapping[str, Any]]) -> str:
    """Returns a sentence such as `far above chance, below 80% of what the last model reached: ...`.

    Args:
        metrics: The content of `metrics.json`: by name, `value` and perhaps `chance` and
            `baseline`.

    Returns:
        The sentence without its full stop; empty if no main metric was measured.
    """
    measured = {name: metrics[name] for name in _MAIN if _is_number(metrics, name, "value")}
    if not measured:
        return ""
    weakest = min(measured, key=lambda name: measured[name]["value"])
    parts = [*_above_chance(measured), *_beside_baseline(measured)]
    measurement = f"{label(weakest)} {measured[weakest]['value']:.1%}"
    if _is_number(measured, weakest, "chance"):
        measurement += f" where chance has {measured[weakest]['chance']:.1%}"
    return f"{', '.join(parts)}: {measurement}" if parts else measurement


def is_share(name: str) -> bool:
    """Returns whether a metric is a share, which is written as per cent."""
    return any(part in name for part in _SHARES)


def written(name: str, value: float | None, *, sign: str = "") -> str:
    """Returns a value of a metric: per cent for shares, four digits for others, nothing for None.

    Args:
        name: Name of the metric.
        value: Its value, or a difference of two.
        sign: `+` for a difference.
    """
    if value is None:
        return ""
    return f"{value:{sign}.1%}" if is_share(name) else f"{value:{sign}.4g}"


def label(name: str) -> str:
    """Returns the name of a metric in words."""
    return name.replace("zero_shot", "zero-shot").replace("_", " ")


def _above_chance(measured: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Returns how far the metric that is nearest to chance is above it."""
    ratios = [
        item["value"] / item["chance"]
        for name, item in measured.items()
        if _is_number(measured, name, "chance") and item["chance"] > 0
    ]
    if not ratios:
        return []
    least = min(ratios)
    if least >= _FAR:
        return ["far above chance"]
    if least >= _CLEAR:
        return [f"{least:.1f} times chance"]
    return ["hardly above chance" if least > 1 else "not above chance"]


def _beside_baseline(measured: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Returns the least share of what the last model reached."""
    ratios = [
        item["value"] / item["baseline"]
        for name, item in measured.items()
        if _is_number(measured, name, "baseline") and item["baseline"] > 0
    ]
    if not ratios:
        return ["no last model to compare with"]
    least = min(ratios)
    if least >= _EQUAL:
        return ["no worse than the last model"]
    # Round up, so that the ratio is indeed below the per cent of the sentence.
    return [f"below {int(round(least * 100, 6)) + 1}% of what the last model reached"]


def _is_number(metrics: Mapping[str, Mapping[str, Any]], name: str, key: str) -> bool:
    value = metrics.get(name, {}).get(key)
    return isinstance(value, int | float) and value == value
