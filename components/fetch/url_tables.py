"""Tables of URLs: which columns they have, checked before anything is fetched.

Needs neither Beam nor TensorFlow, so that a command can refuse a wrong table at once.
"""

import difflib
import posixpath
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple, Protocol

from sigline.components.ingest import inventory, readers, reasons
from sigline.components.ingest.readers.arrow import HuggingFaceReader, ParquetReader
from sigline.components.ingest.readers.tables import TableReader
from sigline.components.ingest.sources import (
    IMAGE_COLUMNS,
    URL_COLUMNS,
    Columns,
    Files,
    Part,
    SourceConfig,
    column_named,
)

# Formats whose files may hold URLs of images instead of images.
FORMATS = ("table", "parquet", "list", "huggingface")


class _ColumnReader(Protocol):
    def columns(self, path: str, files: Files, config: SourceConfig) -> list[str] | None: ...


_READERS: Mapping[str, _ColumnReader] = {
    "table": TableReader(),
    "parquet": ParquetReader(),
    "huggingface": HuggingFaceReader(),
}


class TablePart(NamedTuple):
    """A part of a table that is read on its own.

    Attributes:
        format: The format that reads it.
        part: Where it lies.
        source: How it is read; names the column of the URLs.
    """

    format: str
    part: Part
    source: SourceConfig


class Tables(NamedTuple):
    """The tables of an input.

    Attributes:
        parts: What they are read in.
        without_captions: Names of those that have no column of captions.
        passed_over: Names of files that may hold rows and are not read, each with the reason.
    """

    parts: tuple[TablePart, ...]
    without_captions: tuple[str, ...]
    passed_over: tuple[tuple[str, str], ...] = ()


def find(base: str, output: str, files: Files, source: SourceConfig) -> Tables:
    """Returns the tables of a folder, each with its column of URLs.

    Args:
        base: Folder of the tables.
        output: Folder that is written to.
        files: The file system.
        source: How the tables are read; names the columns that have no usual name.

    Raises:
        ValueError: If there are no tables, one of them has no header or lacks a column, a data set
            lists a file that is not there, or the output lies among them.
    """
    source = source.below(base)
    inputs = inventory.take(base, files, source)
    paths = [(name, path) for name in FORMATS for path in inputs.read.get(name, ())]
    if not paths:
        names = ", ".join(inputs.read)
        raise ValueError(f"input must hold tables of URLs: {', '.join(FORMATS)}. Received: {names}")
    if posixpath.join(output, "").startswith(posixpath.join(base, "")):
        raise ValueError(f"output must not lie in the input. Received: output={output}")
    there = {path for _, path in paths}
    for name, part in inputs.parts:
        if name in FORMATS and part.path not in there:
            raise ValueError(f"Files that a data set lists must be there. Received: {part.path}")
    parts, without_captions = [], []
    for name, path in paths:
        chosen = source
        if name in _READERS:
            columns = _READERS[name].columns(path, files, source)
            # An unreadable table is no error here: its rows are reported among the outcomes.
            if columns is not None:
                chosen = _chosen(posixpath.relpath(path, base), columns, source)
                if not Columns.choose(columns, source).captions:
                    without_captions.append(posixpath.relpath(path, base))
        parts += [
            TablePart(name, x, chosen) for x in readers.READERS[name].parts(path, files, chosen)
        ]
    passed_over = [
        (x.path, x.reason) for x in inputs.passed_over if x.reason not in reasons.EXPECTED
    ]
    passed_over += [
        (x, name) for name, xs in inputs.read.items() if name not in FORMATS for x in xs
    ]
    listed = tuple((posixpath.relpath(path, base), reason) for path, reason in sorted(passed_over))
    return Tables(tuple(parts), tuple(without_captions), listed)


def _chosen(table: str, columns: Sequence[str], source: SourceConfig) -> SourceConfig:
    """Returns how a table is read, with its column of URLs; refuses one that lacks a column."""
    for option, name in (
        ("--url-column", source.image),
        *(("--caption-column", x) for x in source.caption),
    ):
        if name and column_named(name, columns) is None:
            near = difflib.get_close_matches(name.casefold(), [x.casefold() for x in columns], 1)
            hint = f" Did you mean {column_named(near[0], columns)!r}?" if near else ""
            raise ValueError(
                f"{option} must name a column of {table}, which has {_listed(columns)}. "
                f"Received: {option} {name}.{hint}"
            )
    named = (column_named(x, columns) for x in (source.image, *URL_COLUMNS, *IMAGE_COLUMNS) if x)
    url = next((name for name in named if name is not None), None)
    if url is None:
        one = columns[0] if len(columns) == 1 else ""
        hint = " Does --delimiter name what parts its columns?" if set(one) & set(",;|\t") else ""
        raise ValueError(
            f"{table} has no column with a usual name for URLs: --url-column names one, or, if the "
            f"table has no header, --columns names all. Received: {_listed(columns)}.{hint}"
        )
    return replace(source, image=url)


def _listed(columns: Sequence[str]) -> str:
    shown = ", ".join(name[:60] for name in columns[:40])
    return f"the columns {shown}" + (" and others" if len(columns) > 40 else "")
