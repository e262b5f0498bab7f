"""Parquet files, and data sets that Hugging Face `datasets` saved to disk."""

from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sigline.components.ingest import reasons
from sigline.components.ingest.readers import arrow_messages, bounds, parquet_pages
from sigline.components.ingest.readers.values import pair_of
from sigline.components.ingest.sources import (
    Columns,
    Files,
    Part,
    Problem,
    RawPair,
    SourceConfig,
    family,
    is_no_file,
)

# Rows held in memory at a time; a row may hold an image.
_BATCH_ROWS = 16
_FILE_MAGIC, _MESSAGES_PLACE = b"ARROW1", 8
# Encodings of a Parquet column that uses a dictionary, including the fallback to plain values.
_OF_DICTIONARIES = {"PLAIN", "PLAIN_DICTIONARY", "RLE_DICTIONARY", "RLE", "BIT_PACKED"}
_UNREADABLE = (pa.ArrowException, OSError, EOFError)
# Raised for invalid UTF-8, dates and times out of range, unknown zones and duplicate fields.
_NO_VALUE = (ValueError, OverflowError, LookupError)


class _ArrowReader:
    """Base of readers that read batches of rows."""

    def scan(
        self, part: Part, files: Files, config: SourceConfig, max_image_bytes: int
    ) -> Iterator[RawPair]:
        """Yields a pair for each row of a part."""
        yield from _pairs(self._batches(part, files), part, config)

    def columns(self, path: str, files: Files, config: SourceConfig) -> list[str] | None:
        """Returns the names of a file's columns; None for one that cannot be read."""
        try:
            with files.open(path) as handle:
                return self._schema(handle).names
        except _UNREADABLE as error:
            _raise_if_it_may_pass(error)
            return None

    def holds_images(self, path: str, files: Files, config: SourceConfig) -> bool:
        """Whether the images themselves stand in a file's rows, not their paths."""
        try:
            with files.open(path) as handle:
                schema = self._schema(handle)
        except _UNREADABLE as error:
            _raise_if_it_may_pass(error)
            return False
        name = Columns.choose(schema.names, config).image
        kind = None if name is None else schema.field(name).type
        return kind is not None and (
            pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_struct(kind)
        )

    def _schema(self, handle: BinaryIO) -> pa.Schema:
        raise NotImplementedError

    def _batches(self, part: Part, files: Files) -> Iterator[pa.RecordBatch]:
        raise NotImplementedError


class ParquetReader(_ArrowReader):
    """Rows with encoded images, or the paths of images."""

    def accepts(self, path: str) -> bool:
        """Whether a file is Parquet, by its name."""
        return path.lower().endswith(".parquet")

    def parts(self, path: str, files: Files, config: SourceConfig) -> Iterator[Part]:
        """Yields the row groups; of a file that cannot be read, the whole."""
        try:
            with files.open(path) as handle:
                count = pq.ParquetFile(handle).num_row_groups
        except _UNREADABLE as error:
            _raise_if_it_may_pass(error)
            count = 0
        yield from (Part(path, i, i + 1) for i in range(count)) if count else [Part(path)]

    def _schema(self, handle: BinaryIO) -> pa.Schema:
        return pq.read_schema(handle)

    def _batches(self, part: Part, files: Files) -> Iterator[pa.RecordBatch]:
        with files.open(part.path) as handle:
            file = pq.ParquetFile(handle)
            metadata = file.metadata
            groups = range(part.start, part.stop if part.stop is not None else file.num_row_groups)
            # Otherwise a text in a dictionary would be copied for each occurrence in a list.
            file = pq.ParquetFile(handle, read_dictionary=_lists_by_dictionary(metadata, groups))
            for group in groups:
                rows = parquet_pages.check_group(handle, metadata, group)
                for batch in file.iter_batches(batch_size=rows, row_groups=[group]):
                    yield _checked(batch)


class HuggingFaceReader(_ArrowReader):
    """The Arrow files of folders that `save_to_disk` wrote, or of a cache of `load_dataset`."""

    def accepts(self, path: str) -> bool:
        """Whether a file is Arrow's, by its name."""
        return path.lower().endswith(".arrow")

    def parts(self, path: str, files: Files, config: SourceConfig) -> Iterator[Part]:
        """Yields the file: a stream has no index."""
        yield Part(path)

    def _schema(self, handle: BinaryIO) -> pa.Schema:
        if _is_file(handle):
            return pa.ipc.open_file(handle).schema
        return pa.ipc.open_stream(handle).schema

    def _batches(self, part: Part, files: Files) -> Iterator[pa.RecordBatch]:
        with files.open(part.path) as handle:
            _skip_magic(handle)
            for message in pa.ipc.MessageReader.open_stream(handle):
                arrow_messages.check(message)
        with files.open(part.path) as handle:
            # Read as a stream: the index in the footer could point to messages that were not
            # checked.
            _skip_magic(handle)
            for batch in pa.ipc.open_stream(handle):
                _checked(batch)
                for start in range(0, batch.num_rows, _BATCH_ROWS):
                    yield batch.slice(start, _BATCH_ROWS)


def _is_file(handle: BinaryIO) -> bool:
    """Whether a file is one with an index, and no stream."""
    is_file = handle.read(len(_FILE_MAGIC)) == _FILE_MAGIC
    handle.seek(0)
    return is_file


def _skip_magic(handle: BinaryIO) -> None:
    """Leaves out what a file with an index has before the messages."""
    if _is_file(handle):
        handle.seek(_MESSAGES_PLACE)


def _lists_by_dictionary(metadata: pq.FileMetaData, groups: Iterable[int]) -> list[str]:
    """Returns the columns of lists of texts or bytes that all have dictionaries."""
    columns = []
    for index in range(metadata.num_columns):
        column = metadata.schema.column(index)
        if not column.max_repetition_level or column.physical_type != "BYTE_ARRAY":
            continue
        chunks = [metadata.row_group(group).column(index) for group in groups]
        if all(set(chunk.encodings) <= _OF_DICTIONARIES for chunk in chunks):
            columns.append(column.path)
    return columns


def _checked(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Refuses a batch whose offsets lead out of its memory, which reading would crash on."""
    for column in batch.columns:
        try:
            column.validate(full=True)
        except pa.ArrowInvalid:
            # Texts are read as bytes, so that invalid UTF-8 costs its own row only.
            kinds = {pa.string(): pa.binary(), pa.large_string(): pa.large_binary()}
            if column.type not in kinds:
                raise
            column.cast(kinds[column.type]).validate(full=True)
    return batch


def _raise_if_it_may_pass(error: Exception) -> None:
    # Errors of the file system have an errno, damage has none. Missing and unreadable files are
    # reported when their rows are read.
    if isinstance(error, OSError) and error.errno is not None and not is_no_file(error):
        raise error


def _pairs(
    batches: Iterator[pa.RecordBatch], part: Part, config: SourceConfig
) -> Iterator[RawPair]:
    about: dict[str, Any] = {"key": "", "source": family(part.path), "shard": part.path}
    number = 0
    try:
        for batch in batches:
            columns = Columns.choose(batch.schema.names, config)
            for row in _rows(batch):
                position = (part.start, number)
                number += 1
                if isinstance(row, Problem):
                    yield RawPair(**about, position=position, problem=row)
                else:
                    yield pair_of(row, columns, config, shard=part.path, position=position)
    except _UNREADABLE as error:
        _raise_if_it_may_pass(error)
        detail = f"unreadable from row {number} of part {part.start} on: {error}"
        problem = Problem(reasons.DAMAGED_ARCHIVE, detail)
        yield RawPair(**about, position=(part.start, number), problem=problem)


def _rows(batch: pa.RecordBatch) -> Iterable[dict[str, Any] | Problem]:
    if sum(map(_written_out, batch.columns)) > bounds.ROW_BYTES:
        return (_bounded_row(batch, index) for index in range(batch.num_rows))
    try:
        return batch.to_pylist()
    except _NO_VALUE:
        return [_row(batch, index) for index in range(batch.num_rows)]


def _bounded_row(batch: pa.RecordBatch, index: int) -> dict[str, Any] | Problem:
    size = sum(_written_out(column.slice(index, 1)) for column in batch.columns)
    if size > bounds.ROW_BYTES:
        detail = f"a row of {size} bytes, of at most {bounds.ROW_BYTES}"
        return Problem(reasons.INVALID_ROW, detail)
    return _row(batch, index)


def _written_out(array: pa.Array) -> int:
    """Returns about how many bytes the values of an array take one by one."""
    kind = array.type
    if pa.types.is_dictionary(kind):
        each = _lengths(array.dictionary)
        return pc.sum(pc.take(each, array.indices)).as_py() or 0
    if _is_text(kind):
        return pc.sum(_lengths(array)).as_py() or 0
    if pa.types.is_struct(kind):
        return sum(map(_written_out, array.flatten()))
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return _written_out(array.flatten())
    if pa.types.is_list_view(kind) or pa.types.is_large_list_view(kind):
        # Rows of a list view may share values, so their lengths may add up to more than is stored.
        count, values = pc.sum(pc.list_value_length(array)).as_py() or 0, array.values
        return count * (_written_out(values) // max(1, len(values)) + 1)
    return array.nbytes


def _lengths(array: pa.Array) -> pa.Array:
    if _is_text(array.type):
        return pc.cast(pc.binary_length(array), pa.int64())
    return pa.repeat(pa.scalar(array.nbytes // max(1, len(array)) + 1, pa.int64()), len(array))


def _is_text(kind: pa.DataType) -> bool:
    checks = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    checks += (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view)
    return any(check(kind) for check in checks)


def _row(batch: pa.RecordBatch, index: int) -> dict[str, Any] | Problem:
    try:
        return {name: batch.column(name)[index].as_py() for name in batch.schema.names}
    except UnicodeDecodeError as error:
        return Problem(reasons.INVALID_UTF8, f"{error.reason} at byte {error.start} of a column")
    except _NO_VALUE as error:
        return Problem(reasons.INVALID_ROW, f"a value that Python does not have: {error}")
