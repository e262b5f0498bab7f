"""The messages of Arrow's files and streams, whose buffers say what they take when decompressed.

The metadata of a message is a FlatBuffer (`Message.fbs`), of which `pyarrow` shows nothing.
"""

import struct
from collections.abc import Sequence

import pyarrow as pa

from sigline.components.ingest.readers import bounds

# Fields of the tables, in the order of the schema: `Message.header_type` and `header`,
# `DictionaryBatch.data`, `RecordBatch.buffers` and `compression`.
_HEADER_TYPE, _HEADER, _DATA, _BUFFERS, _COMPRESSION = 1, 2, 1, 2, 3
_DICTIONARY_BATCH, _RECORD_BATCH = 2, 3
_BUFFER = struct.Struct("<qq")
_LENGTH = struct.Struct("<q")


def check(message: pa.Message) -> None:
    """Refuses a message whose compressed buffers take far more memory than they are long.

    Raises:
        TooLarge: If they do.
        pyarrow.ArrowInvalid: If the metadata is damaged.
    """
    metadata, body = message.metadata.to_pybytes(), message.body
    if body is None:
        return
    try:
        buffers = _compressed_buffers(metadata)
    except (struct.error, IndexError):
        raise pa.ArrowInvalid("the metadata of a message is damaged") from None
    total = 0
    for start, length in buffers:
        if length < _LENGTH.size or start < 0 or start + length > body.size:
            continue
        (written_out,) = _LENGTH.unpack(body.slice(start, _LENGTH.size).to_pybytes())
        # A length of -1 marks a buffer that is stored uncompressed.
        total += written_out if written_out >= 0 else length
    bounds.check("a batch", total, body.size)


def _compressed_buffers(content: bytes) -> Sequence[tuple[int, int]]:
    """Returns start and length of the buffers of a batch that is compressed."""
    message = _Table(content, struct.unpack_from("<I", content, 0)[0])
    kind, batch = message.byte(_HEADER_TYPE), message.table(_HEADER)
    if kind == _DICTIONARY_BATCH and batch is not None:
        batch = batch.table(_DATA)
    if kind not in (_DICTIONARY_BATCH, _RECORD_BATCH) or batch is None:
        return ()
    if batch.table(_COMPRESSION) is None:
        return ()
    return [_BUFFER.unpack_from(content, place) for place in batch.elements(_BUFFERS, _BUFFER.size)]


class _Table:
    """A table of a FlatBuffer."""

    def __init__(self, content: bytes, place: int):
        self._content, self._place = content, place
        self._fields = place - struct.unpack_from("<i", content, place)[0]
        if self._fields < 0:
            raise IndexError
        self._size = struct.unpack_from("<H", content, self._fields)[0]

    def _field(self, number: int) -> int | None:
        """Returns the place of a field, None if it is not there."""
        offset = 4 + 2 * number
        if offset + 2 > self._size:
            return None
        distance = struct.unpack_from("<H", self._content, self._fields + offset)[0]
        return self._place + distance if distance else None

    def byte(self, number: int) -> int:
        place = self._field(number)
        return 0 if place is None else self._content[place]

    def table(self, number: int) -> "_Table | None":
        place = self._field(number)
        if place is None:
            return None
        return _Table(self._content, place + struct.unpack_from("<I", self._content, place)[0])

    def elements(self, number: int, size: int) -> list[int]:
        """Returns the places of a vector's elements."""
        place = self._field(number)
        if place is None:
            return []
        start = place + struct.unpack_from("<I", self._content, place)[0]
        count = struct.unpack_from("<I", self._content, start)[0]
        if count * size > len(self._content):
            raise IndexError
        return [start + 4 + i * size for i in range(count)]
