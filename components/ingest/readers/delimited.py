"""Rows of delimited text, such as CSV and TSV: no line is lost, whatever is wrong with it."""

import collections
import csv
from collections.abc import Iterator
from typing import Any, NamedTuple

from sigline.components.ingest import reasons
from sigline.components.ingest.compression import without_suffix
from sigline.components.ingest.sources import (
    CAPTION_COLUMNS,
    IMAGE_COLUMNS,
    IMAGE_SUFFIXES,
    MINIMAL_QUOTES,
    NO_QUOTES,
    Problem,
    SourceConfig,
    url_of,
)

# Maximum number of lines that a row spans; more mean an unclosed quote.
_MAX_ROW_LINES = 100
_USUAL = frozenset((*IMAGE_COLUMNS, *CAPTION_COLUMNS))
_TAB = "\t"
# Compressed or not.


class Dialect(NamedTuple):
    """How rows are written: what parts their fields, and whether fields may be quoted."""

    delimiter: str
    quoted: bool

    @classmethod
    def of(cls, path: str, config: SourceConfig) -> "Dialect":
        """Returns the dialect of a file, by its name and what the configuration says."""
        is_tsv = without_suffix(path).endswith(".tsv")
        quoting = config.quoting or (NO_QUOTES if is_tsv else MINIMAL_QUOTES)
        return cls(config.delimiter or (_TAB if is_tsv else ","), quoting == MINIMAL_QUOTES)


class _Line(NamedTuple):
    """A line of a file: which one, where it begins, and its bytes or why they cannot be read."""

    number: int
    offset: int
    content: bytes | Problem


class Rows:
    """The rows of a table. One that breaks its rules costs its first line, and no other row.

    A quote that closes in a later row would join all rows between into one. Such a row is told by a
    field with line ends and delimiters, or by its number of fields, and its other lines are read
    again.

    Attributes:
        columns: Number of fields of a row; None while it is unknown.
    """

    def __init__(self, lines: Iterator[tuple[int, bytes | Problem]], dialect: Dialect):
        """Takes lines with their offsets."""
        self.columns: int | None = None
        self._lines = (_Line(i, *line) for i, line in enumerate(lines, start=1))
        self._dialect = dialect
        self._used: list[_Line] = []
        self._again: collections.deque[_Line] = collections.deque()

    def __iter__(self) -> Iterator[tuple[int, list[str] | Problem]]:
        """Yields rows, or what is wrong with them, with the offsets of their first lines."""
        while True:
            try:
                for row in self._parsed():
                    if row and (fault := self._fault(row)):
                        yield self._refused(fault)
                    elif row:
                        yield self._used[0].offset, row
                    self._used.clear()
            except csv.Error as error:
                yield self._refused(f"the row is no CSV: {_reason(error)}")
                continue
            line = self._next()
            if line is None:
                return
            assert isinstance(line.content, Problem)
            yield line.offset, line.content

    def _parsed(self) -> Iterator[list[str]]:
        delimiter, quoted = self._dialect
        if quoted:
            yield from csv.reader(self._texts(), delimiter=delimiter, strict=True)
            return
        for text in self._texts():
            text = text.removesuffix("\n").removesuffix("\r")
            yield text.split(delimiter) if text else []

    def _fault(self, row: list[str]) -> str:
        """Returns what is wrong with a row; an empty text if nothing is."""
        delimiter = self._dialect.delimiter
        for field in row if len(self._used) > 1 else ():
            spans = "\n" in field or "\r" in field
            if spans and (delimiter in field or self.columns == 1):
                return (
                    f"a quoted field spans {len(self._used)} lines and holds {delimiter!r}, as one "
                    "does whose quote is not closed in its own row. Close it; or, if quotes are "
                    "characters like others here, set source.quoting to none; or write texts of "
                    "several lines as JSON Lines or Parquet"
                )
        if self.columns is not None and len(row) != self.columns:
            return f"{len(row)} values for {self.columns} columns"
        return ""

    def _refused(self, detail: str) -> tuple[int, Problem]:
        first, *others = self._used
        # The lines that an unclosed quote swallowed are read again as rows of their own.
        self._again.extendleft(reversed(others))
        self._used.clear()
        return first.offset, Problem(reasons.INVALID_ROW, f"row in line {first.number}: {detail}")

    def _next(self) -> _Line | None:
        return self._again.popleft() if self._again else next(self._lines, None)

    def _texts(self) -> Iterator[str]:
        while (line := self._next()) is not None:
            if isinstance(line.content, Problem):
                self._again.appendleft(line)
                return
            self._used.append(line)
            if len(self._used) > _MAX_ROW_LINES:
                raise csv.Error(f"no end within {_MAX_ROW_LINES} lines; a quote is not closed")
            yield line.content.decode("utf-8", "surrogateescape")


def _reason(error: csv.Error) -> str:
    # The csv module's own message is meant for programmers.
    if "new-line character" in str(error):
        return "a carriage return stands in the line alone, and outside of quotes"
    return str(error)


def named_rows(
    lines: Iterator[tuple[int, bytes | Problem]], dialect: Dialect, config: SourceConfig
) -> Iterator[tuple[int, dict[str, Any] | Problem]]:
    """Yields the rows of a table by the names of its columns, which its first row or config has.

    Args:
        lines: The lines with their offsets.
        dialect: How rows are written.
        config: How the table is read.
    """
    header, problem = list(config.columns), None
    rows = Rows(lines, dialect)
    rows.columns = len(header) or None
    for offset, row in rows:
        if isinstance(row, Problem):
            yield offset, row
            if not header:
                # Without a header the columns have no names, so no row can be read.
                return
            continue
        if not header:
            header = [name.strip() for name in row]
            if any("\0" in name for name in header):
                detail = "the first line holds null bytes, as UTF-16 does; save the file as UTF-8"
                yield offset, Problem(reasons.INVALID_UTF8, detail)
                return
            rows.columns = len(header)
            cell = row_in_header(header, config)
            problem = _no_header(cell) if cell is not None else _twice(header)
            if cell is None:
                continue
        yield offset, problem or dict(zip(header, row, strict=True))


def _no_header(cell: str) -> Problem:
    detail = (
        f"the first row holds {cell[:200]!r}, and so is no header: source.columns names the "
        "columns of a table without one"
    )
    return Problem(reasons.INVALID_ROW, detail)


def _twice(names: list[str]) -> Problem | None:
    """Returns what is wrong with a header that names two columns alike."""
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is None:
        return None
    return Problem(reasons.INVALID_ROW, f"two columns have the name {twice[:200]!r}")


def row_in_header(names: list[str], config: SourceConfig) -> str | None:
    """Returns the URL or the image's name that a first row holds where it names no column."""
    known = {name.casefold() for name in (config.image, *config.caption) if name} | _USUAL
    if any(name.casefold() in known for name in names):
        return None
    rows = (x for x in names if url_of(x) or x.lower().endswith(IMAGE_SUFFIXES))
    return next(rows, None)


def first_row_columns(row: list[str], path: str, config: SourceConfig) -> list[str]:
    """Returns the names of the columns of a table whose first row is given.

    Raises:
        ValueError: If that row is no header and the configuration names no columns; or if it does,
            and the row is a header, or has another number of fields.
    """
    cells = [cell.strip() for cell in row]
    named = f"{path} has {len(cells)} fields in its first row: {', '.join(cells)[:200]!r}"
    if not config.columns:
        if row_in_header(cells, config) is not None:
            raise ValueError(
                "A table without a header needs the names of its columns, such as --columns "
                f"caption url, or source.columns of an environment. Received: {named}"
            )
        return cells
    if {cell.casefold() for cell in cells} == {name.casefold() for name in config.columns}:
        raise ValueError(
            f"columns are for tables without a header; leave them out. Received: {named}"
        )
    if len(cells) != len(config.columns):
        raise ValueError(
            f"columns must name each of a table's columns. Received: columns="
            f"{', '.join(config.columns)}; {named}"
        )
    return list(config.columns)
