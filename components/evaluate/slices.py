"""What records are sliced by: source, language, length of the caption, size of the image."""

from collections.abc import Mapping

import numpy as np

from sigline.components.evaluate.embeddings import EvalRecord
from sigline.components.evaluate.metrics import intervals

# Dimensions whose slices are parts of the examples.
PARTS = ("source", "image_size", "language", "caption_words")
# Words of a caption, and pixels of an image's shorter side: the first bound that is not exceeded.
_WORDS = (5, 10, 20, 40)
_PIXELS = (64, 128, 224, 384, 768)


def of_record(record: EvalRecord) -> dict[str, str]:
    """Returns the slice of a record in each dimension; of captions the first one counts."""
    return {
        "source": record.source,
        "image_size": _bucket(min(record.width, record.height), _PIXELS, "px"),
        **of_caption(record, 0),
    }


def of_caption(record: EvalRecord, number: int) -> dict[str, str]:
    """Returns the slice of one of a record's captions in each dimension."""
    return {
        "source": record.source,
        "language": record.language[number],
        "caption_words": _bucket(len(record.text[number].split()), _WORDS, "words"),
    }


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
    name: str, measure: intervals.Measure, slices: Mapping[str, list[str]]
) -> dict[str, intervals.Measure]:
    """Returns a mean for each slice, as `NAME/DIMENSION=VALUE`.

    A dimension in which all units are alike says nothing and is left out.

    Args:
        name: The metric's name.
        measure: A mean over units; others cannot be sliced and give nothing.
        slices: By dimension, the slice of each unit.
    """
    if measure.values is None:
        return {}
    found = {}
    for dimension, values in slices.items():
        distinct = sorted(set(values))
        if len(distinct) < 2:
            continue
        array = np.array(values)
        for value in distinct:
            inside = np.flatnonzero(array == value)
            found[f"{name}/{dimension}={value}"] = intervals.mean(
                [measure.units[i] for i in inside],
                measure.values[inside],
                clusters=_renumbered(measure.clusters, inside),
                chances=None if measure.chances is None else measure.chances[inside],
            )
    return found
