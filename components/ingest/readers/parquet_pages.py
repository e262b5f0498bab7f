"""The headers of Parquet's pages, which say what a page takes before it is decompressed.

They are messages of Thrift's compact protocol (parquet-format, `PageHeader`). Arrow has no
interface for them, and believes them.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from sigline.components.ingest.readers import bounds

# Page types, and the field numbers of a page header that are read.
_DATA, _DICTIONARY, _DATA_V2 = 0, 2, 3
_KIND, _UNCOMPRESSED, _COMPRESSED = 1, 2, 3
_OF_KIND = {_DATA: 5, _DICTIONARY: 7, _DATA_V2: 8}
_NUM_VALUES = 1
# Maximum size of a header, which may hold the minimum and maximum of its page.
_HEADER_BYTES = 2**20
_VALUE_BYTES = 8
# Maximum number of rows in a batch, and of bytes.
_MOST_ROWS, _BATCH_BYTES = 16, 2**28
_STOP, _TRUE, _FALSE, _BYTE, _I16, _I32, _I64, _DOUBLE, _BINARY, _LIST, _SET, _MAP, _STRUCT = range(
    13
)
_DEEPEST = 16


@dataclass(frozen=True)
class Page:
    """A page: its kind, the bytes of its content with and without compression, and its values."""

    kind: int
    uncompressed: int
    compressed: int
    num_values: int


def check_group(handle: BinaryIO, metadata: pq.FileMetaData, group: int) -> int:
    """Returns how many rows of a row group may be read at a time.

    Args:
        handle: The file; its place changes.
        metadata: The file's metadata.
        group: Number of the row group.

    Raises:
        TooLarge: If its pages take far more memory than the file, or too much.
        pyarrow.ArrowInvalid: If a header is damaged.
    """
    row_group, largest, in_file = metadata.row_group(group), 0, 0
    schema = metadata.schema
    for index in range(row_group.num_columns):
        column = row_group.column(index)
        pages = list(_pages(handle, column))
        name = f"column {column.path_in_schema}"
        for page in pages:
            bounds.check(f"a page of {name}", page.uncompressed, page.compressed)
        if schema.column(index).max_repetition_level:
            # In the worst case all values belong to one row.
            count = sum(page.num_values for page in pages if page.kind != _DICTIONARY)
            bounds.check(name, _VALUE_BYTES * count, sum(page.compressed for page in pages))
        largest += max((page.uncompressed for page in pages), default=0)
        in_file += sum(page.compressed for page in pages)
    bounds.check(f"a row of row group {group}", largest, in_file)
    return max(1, min(_MOST_ROWS, _BATCH_BYTES // max(1, largest)))


def _pages(handle: BinaryIO, column: pq.ColumnChunkMetaData) -> Iterator[Page]:
    starts = [column.data_page_offset]
    if column.has_dictionary_page and column.dictionary_page_offset:
        starts.append(column.dictionary_page_offset)
    place = min(starts)
    end = place + column.total_compressed_size
    while place < end:
        handle.seek(place)
        content = handle.read(min(_HEADER_BYTES, end - place))
        header, length = _header(content)
        yield header
        if header.compressed < 0 or header.uncompressed < 0:
            raise pa.ArrowInvalid("a page has a negative size")
        place += length + header.compressed


def _header(content: bytes) -> tuple[Page, int]:
    reader = _Compact(content)
    fields = reader.struct(0)
    try:
        kind = fields[_KIND]
        about = fields.get(_OF_KIND.get(kind, -1), {})
        page = Page(kind, fields[_UNCOMPRESSED], fields[_COMPRESSED], about.get(_NUM_VALUES, 0))
    except (KeyError, AttributeError, TypeError):
        raise pa.ArrowInvalid("the header of a page is damaged") from None
    return page, reader.place


class _Compact:
    """Reads a struct of Thrift's compact protocol; of its values only numbers are kept."""

    def __init__(self, content: bytes):
        self._content = content
        self.place = 0

    def struct(self, depth: int) -> dict[int, Any]:
        if depth > _DEEPEST:
            raise pa.ArrowInvalid("the header of a page is nested too deeply")
        fields: dict[int, Any] = {}
        number = 0
        while (head := self._byte()) & 15 != _STOP:
            number = number + (head >> 4) if head >> 4 else self._zigzag()
            fields[number] = self._value(head & 15, depth)
        return fields

    def _value(self, kind: int, depth: int) -> Any:
        if kind in (_TRUE, _FALSE):
            return kind == _TRUE
        if kind == _BYTE:
            return self._byte()
        if kind in (_I16, _I32, _I64):
            return self._zigzag()
        if kind == _DOUBLE:
            return struct.unpack("<d", self._take(8))[0]
        if kind == _BINARY:
            self._take(self._varint())
            return None
        if kind in (_LIST, _SET):
            head = self._byte()
            count = head >> 4 if head >> 4 != 15 else self._varint()
            for _ in range(count):
                self._element(head & 15, depth)
            return None
        if kind == _STRUCT:
            return self.struct(depth + 1)
        raise pa.ArrowInvalid("the header of a page is damaged")

    def _element(self, kind: int, depth: int) -> None:
        # In lists, booleans take a byte; elsewhere the field header holds their value.
        self._value(_BYTE if kind in (_TRUE, _FALSE) else kind, depth + 1)

    def _take(self, count: int) -> bytes:
        piece = self._content[self.place : self.place + count]
        if count < 0 or len(piece) < count:
            raise pa.ArrowInvalid("the header of a page ends early, or is too long")
        self.place += count
        return piece

    def _byte(self) -> int:
        return self._take(1)[0]

    def _varint(self) -> int:
        number, shift = 0, 0
        while True:
            byte = self._byte()
            number |= (byte & 127) << shift
            if not byte & 128:
                return number
            shift += 7
            if shift > 63:
                raise pa.ArrowInvalid("the header of a page is damaged")

    def _zigzag(self) -> int:
        number = self._varint()
        return (number >> 1) ^ -(number & 1)
