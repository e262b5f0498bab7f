"""Reads and writes TFRecord's framing without TensorFlow, and skips only damaged records."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import google_crc32c

# Layout of a TFRecord: length (8 bytes), checksum of the length (4), record, its checksum (4).
_LENGTH, _CHECKSUM = 8, 4
_HEADER = _LENGTH + _CHECKSUM
_MAX_RECORD_BYTES = 1 << 30
_SKIP_BYTES = 1 << 20


class Place(NamedTuple):
    """Where a file of records is damaged.

    Attributes:
        record: Number of the record in the file, from zero.
        offset: Where it starts, in the decompressed file.
        reason: What is wrong, and whether the rest of the shard is lost.
    """

    record: int
    offset: int
    reason: str


def records(
    read: Callable[[int], bytes], *, largest: int = _MAX_RECORD_BYTES
) -> Iterator[bytes | Place]:
    """Yields the records of a file, and a place for each that is damaged or too large.

    A wrong checksum of a record affects only that record. After a wrong length no further record
    can be located, so that its place is the last item.

    Args:
        read: Returns as many of the file's next bytes as asked, or as there are.
        largest: Most bytes of a record; larger ones are passed over.
    """
    number = offset = 0
    while header := read(_HEADER):
        length = int.from_bytes(header[:_LENGTH], "little")
        if not _is_intact(header):
            yield Place(number, offset, "its length is damaged; the rest of the shard is lost")
            return
        end = offset + _HEADER + length + _CHECKSUM
        if length > largest:
            is_whole = _skip(read, length + _CHECKSUM)
            if is_whole:
                yield Place(number, offset, f"it has {length} bytes, the limit is {largest}")
        else:
            record = read(length + _CHECKSUM)
            is_whole = len(record) == length + _CHECKSUM
            if is_whole and _is_intact(record):
                yield record[:length]
            elif is_whole:
                yield Place(number, offset, "its checksum is wrong")
        if not is_whole:
            yield Place(number, offset, "it is cut short; the rest of the shard is lost")
            return
        number, offset = number + 1, end


def framed(record: bytes) -> bytes:
    """Returns a record with its framing, as in a file."""
    length = len(record).to_bytes(_LENGTH, "little")
    return length + _checksum(length) + record + _checksum(record)


def _skip(read: Callable[[int], bytes], count: int) -> bool:
    while count:
        skipped = read(min(count, _SKIP_BYTES))
        if not skipped:
            return False
        count -= len(skipped)
    return True


def _is_intact(content: bytes) -> bool:
    """Returns whether the last four bytes are TFRecord's masked checksum of those before."""
    return _checksum(content[:-_CHECKSUM]) == content[-_CHECKSUM:]


def _checksum(content: bytes) -> bytes:
    value = google_crc32c.value(content)
    masked = ((value >> 15 | value << 17) + 0xA282EAD8) & 0xFFFFFFFF
    return masked.to_bytes(_CHECKSUM, "little")
