"""Tables in text files: CSV, TSV and JSON Lines, and lists of image files."""

import codecs
import contextlib
import io
import itertools
import posixpath
from collections.abc import Iterator
from typing import Any, BinaryIO, cast

from sigline.components.ingest import cells, reasons
from sigline.components.ingest.compression import (
    DAMAGED,
    SUFFIXES,
    decompressed,
    without_suffix,
)
from sigline.components.ingest.readers.delimited import (
    Dialect,
    Rows,
    first_row_columns,
    named_rows,
)
from sigline.components.ingest.readers.folders import side_file
from sigline.components.ingest.readers.values import pair_of
from sigline.components.ingest.sources import (
    Columns,
    Files,
    Part,
    Problem,
    RawPair,
    SourceConfig,
    family,
    image_below,
    is_no_file,
)

_JSON_SUFFIXES = (".jsonl", ".ndjson")
_SUFFIXES = (".csv", ".tsv", *_JSON_SUFFIXES)
# Maximum length of a line; csv itself allows fields of an eighth of that.
_MAX_LINE_BYTES = 2**20
# The columns of JSON Lines are the names that occur in so many first rows.
_NAMING_ROWS = 1000
# Size of the parts that JSON Lines and lists are divided into.
_PART_BYTES = 64 * 2**20
_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


class TableReader:
    """Rows with the path of an image, its captions and more; the first line names the columns."""

    def accepts(self, path: str) -> bool:
        """Whether a file is a table, by its name."""
        return without_suffix(path).endswith(_SUFFIXES)

    def parts(self, path: str, files: Files, config: SourceConfig) -> Iterator[Part]:
        """Yields ranges of JSON Lines; of a table whose rows may span lines, the whole."""
        json_lines = path.lower().endswith(_JSON_SUFFIXES)
        yield from _ranges(path, files) if json_lines else [Part(path)]

    def scan(
        self, part: Part, files: Files, config: SourceConfig, max_image_bytes: int
    ) -> Iterator[RawPair]:
        """Yields a pair for each row; a row that cannot be read costs no other."""
        is_json = without_suffix(part.path).endswith(_JSON_SUFFIXES)
        if is_json:
            rows = _objects(_lines(part, files))
        else:
            rows = named_rows(_lines(part, files), Dialect.of(part.path, config), config)
        for position, values in rows:
            if isinstance(values, Problem):
                yield _broken(part.path, position, values)
            else:
                columns = Columns.choose(values, config)
                about = {"shard": part.path, "position": position}
                yield pair_of(values, columns, config, **about, names_vary=is_json)

    def columns(self, path: str, files: Files, config: SourceConfig) -> list[str] | None:
        """Returns the names of a table's columns; None for one that cannot be read.

        Those of JSON Lines are the names in its first rows.

        Raises:
            ValueError: If the first row names no columns, or the configuration names other columns.
        """
        lines = _lines(Part(path), files)
        if without_suffix(path).endswith(_JSON_SUFFIXES):
            if config.columns:
                raise ValueError(f"JSON Lines name their columns. Received: columns for {path}")
            objects = (values for _, values in itertools.islice(_objects(lines), _NAMING_ROWS))
            return list(dict.fromkeys(x for row in objects if isinstance(row, dict) for x in row))
        _, row = next(iter(Rows(lines, Dialect.of(path, config))), (0, None))
        return first_row_columns(row, path, config) if isinstance(row, list) else None


class ListReader:
    """Paths of images, one a line; the caption of `a.jpg` stands beside it in `a.txt`."""

    def accepts(self, path: str) -> bool:
        """Whether a file is a list, by its name."""
        return without_suffix(path).endswith(".txt")

    def parts(self, path: str, files: Files, config: SourceConfig) -> Iterator[Part]:
        """Yields ranges of lines."""
        yield from _ranges(path, files)

    def scan(
        self, part: Part, files: Files, config: SourceConfig, max_image_bytes: int
    ) -> Iterator[RawPair]:
        """Yields a pair for each line."""
        root = config.root or posixpath.dirname(part.path)
        for position, line in _lines(part, files):
            if isinstance(line, Problem):
                yield _broken(part.path, position, line)
                continue
            name = line.decode("utf-8", "surrogateescape").strip()
            if not name:
                continue
            fields = image_below(root, name)
            if "image_path" in fields:
                for side in caption_files(fields["image_path"]):
                    if beside := side_file(files, side, "text"):
                        fields |= beside
                        break
            yield RawPair(
                key=name, source=family(part.path), shard=part.path, position=position, **fields
            )


def caption_files(image_path: str) -> tuple[str, ...]:
    """Returns where the caption of a listed image may stand, the first that is there."""
    stem = posixpath.splitext(image_path)[0]
    return f"{stem}.txt", f"{stem}.TXT"


def _ranges(path: str, files: Files) -> Iterator[Part]:
    size = 0
    if not path.lower().endswith(SUFFIXES):
        try:
            with files.open(path) as handle:
                size = handle.seek(0, io.SEEK_END)
        except OSError as error:
            # An unreadable file is reported when its lines are read.
            if not is_no_file(error):
                raise
    if not size:
        yield Part(path)
    for start in range(0, size, _PART_BYTES):
        yield Part(path, start, min(start + _PART_BYTES, size))


def _broken(shard: str, position: Any, problem: Problem) -> RawPair:
    return RawPair(key="", source=family(shard), shard=shard, position=position, problem=problem)


def _lines(part: Part, files: Files) -> Iterator[tuple[int, bytes | Problem]]:
    """Yields the lines that begin in a part, each with its offset; what cannot be read, at last."""
    offset = part.start
    with contextlib.ExitStack() as stack:
        handle = stack.enter_context(_opened(part.path, files))
        try:
            # Compressed files cannot seek backwards, so the file is opened once more.
            with _opened(part.path, files) as other:
                returns = _ends_lines_by_returns(other)
            if returns:
                handle = cast(BinaryIO, io.BufferedReader(_Returns(handle)))
            if offset:
                # A line that begins before this part belongs to the part before.
                handle.seek(offset - 1)
                offset -= 1
                while (part.stop is None or offset < part.stop) and (
                    piece := handle.readline(_MAX_LINE_BYTES)
                ):
                    offset += len(piece)
                    if piece.endswith(b"\n"):
                        break
            while part.stop is None or offset < part.stop:
                line, size = _line(handle)
                if not offset and line.startswith(_UTF_16):
                    yield 0, Problem(reasons.INVALID_UTF8, "the file is UTF-16; save it as UTF-8")
                    return
                if not size:
                    break
                if not offset:
                    line = line.removeprefix(codecs.BOM_UTF8)
                if len(line) > _MAX_LINE_BYTES:
                    detail = f"a line of {size} bytes, the limit is {_MAX_LINE_BYTES}"
                    yield offset, Problem(reasons.INVALID_ROW, detail)
                else:
                    yield offset, line
                offset += size
            if not offset:
                yield 0, Problem(reasons.DAMAGED_ARCHIVE, "the file is empty")
        except DAMAGED as error:
            detail = f"the rest of the file is unreadable: {error}"
            yield offset, Problem(reasons.DAMAGED_ARCHIVE, detail)


@contextlib.contextmanager
def _opened(path: str, files: Files) -> Iterator[BinaryIO]:
    """Gives a file, decompressed if it is named so."""
    with contextlib.ExitStack() as stack:
        handle = stack.enter_context(files.open(path))
        if path.lower().endswith(SUFFIXES):
            handle = stack.enter_context(decompressed(handle))
        yield handle


def _ends_lines_by_returns(handle: BinaryIO) -> bool:
    """Whether carriage returns alone end the lines of a file, as on old Macs."""
    first = handle.readline(_MAX_LINE_BYTES)
    return b"\r" in first and not first.endswith(b"\n")


class _Returns(io.RawIOBase):
    """Reads a file with a line feed for each carriage return: what it holds keeps its place."""

    def __init__(self, handle: BinaryIO):
        self._handle = handle

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._handle.seek(offset, whence)

    def readinto(self, buffer: Any) -> int:
        content = self._handle.read(len(buffer)).replace(b"\r", b"\n")
        buffer[: len(content)] = content
        return len(content)


def _line(handle: BinaryIO) -> tuple[bytes, int]:
    """Returns the next line, or the first of its bytes if it is too long, and its size."""
    line = piece = handle.readline(_MAX_LINE_BYTES + 1)
    size = len(line)
    while piece and not piece.endswith(b"\n"):
        piece = handle.readline(_MAX_LINE_BYTES)
        size += len(piece)
    return line, size


def _objects(
    lines: Iterator[tuple[int, bytes | Problem]],
) -> Iterator[tuple[int, dict[str, Any] | Problem]]:
    """Yields the object of each line."""
    for offset, line in lines:
        if not isinstance(line, Problem):
            if not line.strip():
                continue
            try:
                value = cells.json_value(line)
            except (ValueError, RecursionError) as error:
                value = Problem(reasons.INVALID_ROW, f"the line is no JSON: {error}")
            if not isinstance(value, dict | Problem):
                value = Problem(reasons.INVALID_ROW, "the line is no JSON object")
            yield offset, value
        else:
            yield offset, line
