"""Dimensions of slices: source, language, length of the caption, size of the image."""

from collections.abc import Iterable, Mapping

import numpy as np

from sigline.components.evaluate.metrics import intervals
from sigline.components.evaluate.predictions import EvalRecord

# Dimensions that divide the examples into slices.
PARTS = ("source", "image_size", "language", "caption_words")
# Upper bounds of the slices: words of a caption, and pixels of an image's shorter side.
_WORDS = (5, 10, 20, 40)
_PIXELS = (64, 128, 224, 384, 768)


# A unit's slice along one dimension, or several slices.
Value = str | tuple[str, ...]


def of_record(record: EvalRecord) -> dict[str, Value]:
    """Returns the slice of a record in each dimension; of captions the first one counts.

    A record without a caption is in no slice of languages and of words.
    """
    nothing: dict[str, Value] = {"source": record.source, "language": (), "caption_words": ()}
    return {
        "image_size": _bucket(min(record.width, record.height), _PIXELS, "px"),
        **(of_caption(record, 0) if record.text else nothing),
    }


def of_caption(record: EvalRecord, number: int) -> dict[str, Value]:
    """Returns the slice of one of a record's captions in each dimension.

    A caption that reads the same in several languages is in the slices of them all.
    """
    text = record.text[number]
    pairs = zip(record.text, record.language, strict=True)
    languages = tuple(dict.fromkeys(tag for other, tag in pairs if other == text))
    return {
        "source": record.source,
        "language": languages[0] if len(languages) == 1 else languages,
        "caption_words": _bucket(len(text.split()), _WORDS, "words"),
    }


def members(value: Value) -> tuple[str, ...]:
    """Returns the slices that a unit is in."""
    return value if isinstance(value, tuple) else (value,)


def transposed(rows: Iterable[dict[str, Value]]) -> dict[str, list[Value]]:
    """Returns the slices of units by dimension."""
    columns: dict[str, list[Value]] = {}
    for row in rows:
        for name, value in row.items():
            columns.setdefault(name, []).append(value)
    return columns


def _bucket(value: int, bounds: tuple[int, ...], unit: str) -> str:
    lower = 0
    for bound in bounds:
        if value <= bound:
            return f"{lower + 1}-{bound}{unit}"
        lower = bound
    return f"over{lower}{unit}"


def is_part(name: str) -> bool:
    """Returns whether a metric's name is that of some of the examples, as slices' names are.

    Other prompts and corruptions are over all examples, and costs have none.
    """
    return any(f"/{dimension}=" in name for dimension in PARTS)


def _renumbered(clusters: np.ndarray | None, inside: np.ndarray) -> np.ndarray | None:
    return None if clusters is None else np.unique(clusters[inside], return_inverse=True)[1]


def sliced(
    name: str, measure: intervals.Measure, slices: Mapping[str, list[Value]]
) -> dict[str, intervals.Measure]:
    """Returns a mean for each slice, as `NAME/DIMENSION=VALUE`.

    A dimension in which all units are alike says nothing and is left out.

    Args:
        name: The metric's name.
        measure: A mean over units; others cannot be sliced and give nothing.
        slices: By dimension, the slice of each unit, or several.
    """
    if measure.values is None:
        return {}
    measures = {}
    for dimension, values in slices.items():
        of_units = [members(value) for value in values]
        distinct = sorted({value for of_unit in of_units for value in of_unit})
        if len(distinct) < 2:
            continue
        for value in distinct:
            inside = np.flatnonzero([value in of_unit for of_unit in of_units])
            measures[f"{name}/{dimension}={value}"] = intervals.mean(
                [measure.units[i] for i in inside],
                measure.values[inside],
                clusters=_renumbered(measure.clusters, inside),
                chances=None if measure.chances is None else measure.chances[inside],
            )
    return measures
