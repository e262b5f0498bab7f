"""Members of tar files, also of several that were joined, compressed or not."""

import posixpath
import tarfile
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from sigline.components.ingest.compression import DAMAGED
from sigline.components.ingest.sources import MAX_SIDE_BYTES

# Errors that tarfile raises on hostile headers, including its own.
UNREADABLE = (*DAMAGED, tarfile.TarError, ValueError, OverflowError, RecursionError)
# `tar` pads its last record with zeros, by default to 10 KiB. A longer tail is space that was
# allocated for content that never came.
_MAX_PADDING_BYTES = 2**20
_PIECE_BYTES = 2**16


class Header(NamedTuple):
    """A member: its archive, which of the joined ones that is, and its header."""

    archive: tarfile.TarFile
    number: int
    member: tarfile.TarInfo


class Trailing(NamedTuple):
    """Bytes behind the last end mark that begin no archive."""

    size: int


class Forward:
    """A stream that only goes forward, with a position; tarfile looks back one block at most."""

    def __init__(self, stream: BinaryIO):
        self._stream = stream
        self._position = 0
        self._last = b""
        self._back = b""

    def tell(self) -> int:
        """Returns the position."""
        return self._position

    def read(self, size: int) -> bytes:
        """Returns the next bytes, fewer at the end."""
        pieces, missing = [self._back[:size]], size - len(self._back)
        self._back = self._back[size:]
        while missing > 0 and (piece := self._stream.read(missing)):
            pieces.append(piece)
            missing -= len(piece)
        content = b"".join(pieces)
        self._position += len(content)
        self._last = (self._last + content[-tarfile.BLOCKSIZE :])[-tarfile.BLOCKSIZE :]
        return content

    def seek(self, position: int) -> int:
        """Moves on, or back by what was read last.

        Raises:
            tarfile.ReadError: If the position lies farther back.
        """
        back = self._position - position
        if back > len(self._last):
            raise tarfile.ReadError(f"a header at byte {position} leads back")
        if back > 0:
            self._back = self._last[-back:] + self._back
            self._last, self._position = self._last[:-back], position
        while self._position < position and self.read(min(position - self._position, _PIECE_BYTES)):
            pass
        return self._position


def headers(handle: BinaryIO | Forward) -> Iterator[Header | Trailing]:
    """Yields the members in order, and last what lies behind the last end mark, if anything does.

    Archives that were joined by `cat` are read one after the other, as by `tar --ignore-zeros`.

    Raises:
        One of `UNREADABLE`: If a header is broken, or the file ends without an end mark, which is
            what a cut-off upload looks like.
    """
    number = 0
    while True:
        with tarfile.open(fileobj=handle, mode="r:", tarinfo=_Member) as archive:  # type: ignore[call-overload]
            for member in _members(archive):
                yield Header(archive, number, member)
            end = archive.offset
        following, size = _after_end_mark(handle, end)
        if following is None:
            if size > _MAX_PADDING_BYTES:
                yield Trailing(size)
            return
        handle.seek(following)
        try:
            tarfile.TarInfo.frombuf(handle.read(tarfile.BLOCKSIZE), "utf-8", "surrogateescape")
        except tarfile.TarError:
            handle.seek(following)
            size = 0
            while piece := handle.read(_PIECE_BYTES):
                size += len(piece)
            yield Trailing(size)
            return
        handle.seek(following)
        number += 1


def _after_end_mark(handle: BinaryIO | Forward, end: int) -> tuple[int | None, int]:
    """Returns where the zeros behind an archive end, None at the end of the file, and their number.

    tarfile takes a broken header for the end of an archive, and no end mark for one.
    """
    handle.seek(end)
    block = handle.read(tarfile.BLOCKSIZE)
    if len(block) < tarfile.BLOCKSIZE or block.strip(b"\0"):
        raise tarfile.ReadError(f"no end mark and no member at byte {end}")
    zeros = 0
    while block := handle.read(tarfile.BLOCKSIZE):
        if block.strip(b"\0"):
            return end + tarfile.BLOCKSIZE + zeros, zeros
        zeros += len(block)
    return None, zeros


def _members(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Yields the members in order; a header that leads nowhere is damage, not an endless loop."""
    last = -1
    while (member := archive.next()) is not None:
        # tarfile would otherwise keep every header in memory.
        archive.members = []  # type: ignore[attr-defined]  # typeshed hides the list
        if member.size < 0 or member.offset <= last:
            raise tarfile.ReadError(f"the header at byte {member.offset} has size {member.size}")
        last = member.offset
        yield member


class _Member(tarfile.TarInfo):
    """A member whose extended headers, which are held in memory whole, are bounded."""

    def _proc_member(self, archive: tarfile.TarFile):
        if self.type not in (*tarfile.REGULAR_TYPES, tarfile.GNUTYPE_SPARSE):
            bounded = self.type in (*tarfile.GNU_TYPES, tarfile.XHDTYPE, tarfile.XGLTYPE)
            if self.size > MAX_SIDE_BYTES and (bounded or self.type == tarfile.SOLARIS_XHDTYPE):
                raise tarfile.ReadError(f"a header of {self.size} bytes at byte {self.offset}")
        return super()._proc_member(archive)  # pyright: ignore[reportAttributeAccessIssue]


def read_member(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    """Returns the content of a member.

    Raises:
        tarfile.ReadError: If the file ends before it does.
    """
    handle = archive.extractfile(member)
    content = handle.read() if handle is not None else b""
    if len(content) != member.size:
        raise tarfile.ReadError(f"{member.name} ends after {len(content)} of {member.size} bytes")
    return content


def split_name(name: str) -> tuple[str, str, str]:
    """Returns a member's key, up to its first dot, what stands between dots, and its suffix.

    The suffix is empty for a name that has none or begins with a dot.
    """
    folder, base = posixpath.split(name)
    stem, _, rest = base.partition(".")
    if not stem or not rest:
        return posixpath.join(folder, stem), "", ""
    middle, _, suffix = rest.rpartition(".")
    return posixpath.join(folder, stem), middle, suffix.lower()
