"""Shared by readers of tables: one row of values becomes one pair."""

import posixpath
import re
from collections.abc import Mapping
from typing import Any

from sigline.components.ingest import cells, reasons, remarks
from sigline.components.ingest.sources import (
    Columns,
    Problem,
    RawPair,
    SourceConfig,
    family,
    image_below,
)

# BCP 47 language tags, with hyphens or underscores between subtags.
_LANGUAGE = re.compile(r"[A-Za-z]{2,3}([-_][A-Za-z0-9]{1,8})*")


def pair_of(
    values: Mapping[str, Any],
    columns: Columns,
    config: SourceConfig,
    *,
    shard: str,
    position: Any,
    names_vary: bool = False,
) -> RawPair:
    """Returns the pair of a row; what is wrong with one value becomes its problem.

    Args:
        values: The row's values by column: texts, bytes, numbers, lists, or None.
        columns: Which of them mean what.
        config: How the input is read.
        shard: The file that the row stands in.
        position: Where it stands there.
        names_vary: Whether each row names its own columns: one without the column of captions has
            none. Else a column that the configuration names must be there.
    """
    fields: dict[str, Any] = {}
    for name, reason in (
        (columns.image, reasons.MISSING_IMAGE),
        (columns.captions, reasons.MISSING_TEXT),
    ):
        if not name and "problem" not in fields:
            detail = f"no such column among {', '.join(values)[:400]}"
            if len(values) == 1 and any(mark in next(iter(values)) for mark in ",;|\t"):
                detail += "; source.delimiter names the character that parts the columns"
            fields["problem"] = Problem(reason, detail)
    image = values.get(columns.image) if columns.image else None
    if isinstance(image, Mapping):
        image = image.get("bytes") or image.get("path")
    if isinstance(image, str) and image:
        fields |= image_below(config.root or posixpath.dirname(shard), image)
    elif isinstance(image, bytes) and image:
        fields["image"] = image
    problem = fields.get("problem")
    lacks_captions = problem is not None and problem.reason == reasons.MISSING_TEXT
    captions = [item for name in columns.captions for item in _captions(values[name])]
    languages = texts_of(values.get(columns.language)) if columns.language else []
    noted: tuple[str, ...] = ()
    if captions and len(languages) in (1, len(captions)):
        languages *= len(captions) // len(languages)
        named = zip(captions, languages, strict=True)
        captions = [(text, tag or _tag(other)) for (text, tag), other in named]
    elif captions and languages:
        noted = (remarks.LANGUAGES_UNMATCHED,) * len(languages)
    taken = {columns.image, columns.key, columns.language, columns.label, *columns.captions}
    return RawPair(
        key=_text(values.get(columns.key)) if columns.key else "",
        source=family(shard),
        shard=shard,
        position=position,
        captions=tuple(captions),
        label=values.get(columns.label) if columns.label else None,
        extra={name: value for name, value in values.items() if name not in taken},
        remarks=noted,
        lacks_captions=lacks_captions and (names_vary or not config.caption),
        **fields,
    )


def _captions(value: Any) -> list[tuple[Any, Any]]:
    """Returns the captions of a cell with their languages: one, a list, or either by language."""
    if isinstance(value, list) and value and all(isinstance(item, tuple) for item in value):
        # Arrow returns maps as lists of pairs.
        value = dict(value)
    if isinstance(value, Mapping) and all(_LANGUAGE.fullmatch(str(tag)) for tag in value):
        return [(text, tag) for tag, texts in value.items() for text in texts_of(texts)]
    return [(text, None) for text in texts_of(value)]


def texts_of(value: Any) -> list[Any]:
    """Returns the texts of a value, which may be one, or a list, also one written as text."""
    if isinstance(value, str | bytes) and (items := _listed(value)) is not None:
        value = items
    # Data frames use NaN for missing values; words for them are left to the captions' own rules.
    if cells.is_missing(value) and not isinstance(value, str | bytes):
        return []
    return list(cells.flat(value))


def _listed(value: str | bytes) -> list[Any] | None:
    """Returns the list of texts that a text is; one of numbers alone is a text."""
    try:
        items = cells.listed(value if isinstance(value, str) else value.decode())
    except UnicodeDecodeError:
        return None
    if items is None:
        return None
    texts = [item for item in cells.flat(items) if not cells.is_missing(item)]
    return items if not texts or any(isinstance(item, str) for item in texts) else None


def _tag(value: Any) -> str | None:
    return None if cells.is_missing(value) else _text(value) or None


def _text(value: Any) -> str:
    if isinstance(value, list | tuple):
        value = value[0] if value else None
    if isinstance(value, bytes):
        return value.decode("utf-8", "surrogateescape")
    is_number = not isinstance(value, str)
    return "" if is_number and cells.is_missing(value) else str(value)
