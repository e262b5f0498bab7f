"""Parquet files, and data sets that Hugging Face `datasets` saved to disk."""

from collections.abc import Iterator
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from sigline.components.ingest import reasons
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

# Rows held in memory at a time; they may hold images.
_BATCH_ROWS = 16
_FILE_MAGIC = b"ARROW1"
_UNREADABLE = (pa.ArrowException, OSError, EOFError)
# Texts that are none, dates and times out of range, unknown zones, fields of one name.
_NO_VALUE = (ValueError, OverflowError, LookupError)


class _ArrowReader:
    """What is read as batches of rows."""

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
            groups = range(part.start, part.stop if part.stop is not None else file.num_row_groups)
            for batch in file.iter_batches(batch_size=_BATCH_ROWS, row_groups=list(groups)):
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
            if _is_file(handle):
                opened = pa.ipc.open_file(handle)
                batches = (opened.get_batch(i) for i in range(opened.num_record_batches))
            else:
                batches = iter(pa.ipc.open_stream(handle))
            for batch in batches:
                _checked(batch)
                for start in range(0, batch.num_rows, _BATCH_ROWS):
                    yield batch.slice(start, _BATCH_ROWS)


def _is_file(handle: BinaryIO) -> bool:
    """Whether a file is one with an index, and no stream."""
    is_file = handle.read(len(_FILE_MAGIC)) == _FILE_MAGIC
    handle.seek(0)
    return is_file


def _checked(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Refuses a batch whose offsets lead out of its memory, which reading would crash on."""
    for column in batch.columns:
        try:
            column.validate(full=True)
        except pa.ArrowInvalid:
            # Texts that are no UTF-8 cost their own rows only.
            kinds = {pa.string(): pa.binary(), pa.large_string(): pa.large_binary()}
            if column.type not in kinds:
                raise
            column.cast(kinds[column.type]).validate(full=True)
    return batch


def _raise_if_it_may_pass(error: Exception) -> None:
    # Damage has no number; what the file system reports has. That a file is away, or may not be
    # read, is said when its rows are.
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


def _rows(batch: pa.RecordBatch) -> list[dict[str, Any] | Problem]:
    try:
        return batch.to_pylist()
    except _NO_VALUE:
        return [_row(batch, index) for index in range(batch.num_rows)]


def _row(batch: pa.RecordBatch, index: int) -> dict[str, Any] | Problem:
    try:
        return {name: batch.column(name)[index].as_py() for name in batch.schema.names}
    except UnicodeDecodeError as error:
        return Problem(reasons.INVALID_UTF8, f"{error.reason} at byte {error.start} of a column")
    except _NO_VALUE as error:
        return Problem(reasons.INVALID_ROW, f"a value that Python does not have: {error}")
