"""What readers of tables share: one row of values becomes one pair."""

import posixpath
from collections.abc import Mapping
from typing import Any

from sigline.components.ingest import reasons
from sigline.components.ingest.sources import (
    Columns,
    Problem,
    RawPair,
    SourceConfig,
    family,
    image_below,
)


def pair_of(
    values: Mapping[str, Any], columns: Columns, config: SourceConfig, *, shard: str, position: Any
) -> RawPair:
    """Returns the pair of a row; what is wrong with one value becomes its problem.

    Args:
        values: The row's values by column: texts, bytes, numbers, lists, or None.
        columns: Which of them mean what.
        config: How the input is read.
        shard: The file that the row stands in.
        position: Where it stands there.
    """
    fields: dict[str, Any] = {}
    for name, reason in (
        (columns.image, reasons.MISSING_IMAGE),
        (columns.captions, reasons.MISSING_TEXT),
    ):
        if not name and "problem" not in fields:
            detail = f"no such column among {', '.join(values)[:500]}"
            fields["problem"] = Problem(reason, detail)
    image = values.get(columns.image) if columns.image else None
    if isinstance(image, Mapping):
        image = image.get("bytes") or image.get("path")
    if isinstance(image, str) and image:
        fields |= image_below(config.root or posixpath.dirname(shard), image)
    elif isinstance(image, bytes) and image:
        fields["image"] = image
    captions = [(text, None) for name in columns.captions for text in _texts(values[name])]
    languages = [_text(x) for x in _texts(values.get(columns.language))] if columns.language else []
    if captions and len(languages) in (1, len(captions)):
        languages *= len(captions) // len(languages)
        captions = [(text, x) for (text, _), x in zip(captions, languages, strict=True)]
    taken = {columns.image, columns.key, columns.language, columns.label, *columns.captions}
    return RawPair(
        key=_text(values.get(columns.key)) if columns.key else "",
        source=family(shard),
        shard=shard,
        position=position,
        captions=tuple(captions),
        label=values.get(columns.label) if columns.label else None,
        extra={name: value for name, value in values.items() if name not in taken},
        **fields,
    )


def _texts(value: Any) -> list[Any]:
    """Returns captions: a column may hold one or a list."""
    if value is None or value != value:  # Not a number stands for nothing in data frames.
        return []
    return list(value) if isinstance(value, list | tuple) else [value]


def _text(value: Any) -> str:
    if isinstance(value, list | tuple):
        value = value[0] if value else None
    if isinstance(value, bytes):
        return value.decode("utf-8", "surrogateescape")
    return "" if value is None else str(value)
