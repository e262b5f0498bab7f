"""Compressed files read as a stream: gzip, bzip2, xz and Zstandard, also several joined."""

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, cast

# Endings of the names of compressed files. What a file is, its first bytes tell.
SUFFIXES = (".gz", ".bz2", ".zst", ".xz")
# The largest window that a stream may refer back to, in bytes: Zstandard's own default, and twice
# what xz -9 needs. The window has to be in memory, and the file chooses its size.
_MAX_WINDOW_BYTES = 2**27
_PIECE_BYTES = 2**16
_GZIP, _BZIP2, _XZ, _ZSTANDARD = b"\x1f\x8b\x08", b"BZh", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd"
# The magic number of a skippable Zstandard frame, which holds no data, behind a first byte of 0x50
# to 0x5f; files of `pzstd` begin with one.
_SKIPPABLE = b"\x2a\x4d\x18"
_HEAD_BYTES = 10
# Magic numbers of a bzip2 block and of the end of a stream: `BZh` alone may begin a text, too.
_BZIP2_BLOCKS = (b"1AY&SY", b"\x17rE8P\x90")


class DamagedStreamError(EOFError):
    """A compressed stream that is cut, damaged, or needs more memory than it may."""


# Errors that mean a damaged file; others may be temporary, so reading is tried again after them.
DAMAGED = (zlib.error, EOFError, gzip.BadGzipFile)


def without_suffix(path: str) -> str:
    """Returns a path in lower case without the ending of a compressed file."""
    path = path.lower()
    return next((path.removesuffix(x) for x in SUFFIXES if path.endswith(x)), path)


@contextmanager
def decompressed(handle: BinaryIO) -> Iterator[BinaryIO]:
    """Gives a file's content as a stream; that of a file which is not compressed as it is.

    No more is held in memory than a window of 128 MiB and what is read at a time.

    Args:
        handle: The open file, seekable.

    Raises:
        DamagedStreamError: While it is read, if the file is damaged; or another of `DAMAGED`.
    """
    head = handle.read(_HEAD_BYTES)
    handle.seek(0)
    if head.startswith(_GZIP):
        with gzip.GzipFile(fileobj=handle) as stream:
            yield cast(BinaryIO, stream)
        return
    raw: io.RawIOBase | None = None
    if head.startswith(_BZIP2) and head[4:] in _BZIP2_BLOCKS:
        raw = _Streams(handle, bz2.BZ2Decompressor)
    elif head.startswith(_XZ):
        raw = _Streams(handle, _xz_decompressor)
    elif head.startswith(_ZSTANDARD) or (head[1:4] == _SKIPPABLE and head[0] >> 4 == 5):
        raw = _Zstandard(handle)
    yield handle if raw is None else cast(BinaryIO, io.BufferedReader(raw, _PIECE_BYTES))


def _xz_decompressor() -> lzma.LZMADecompressor:
    return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_MAX_WINDOW_BYTES)


class _Streams(io.RawIOBase):
    """Streams of a library with `bz2`'s interface, one behind the other."""

    def __init__(self, handle: BinaryIO, new_decompressor: Callable[[], Any]):
        self._handle = handle
        self._new_decompressor = new_decompressor
        self._decompressor: Any = None
        self._rest = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while True:
            if self._decompressor is None:
                # Zeros may pad the streams. A read of nothing else must not end the file early.
                while not (rest := self._rest.lstrip(b"\0")):
                    self._rest = self._handle.read(_PIECE_BYTES)
                    if not self._rest:
                        return 0
                self._rest, self._decompressor = rest, self._new_decompressor()
            if not self._rest and self._decompressor.needs_input:
                self._rest = self._handle.read(_PIECE_BYTES)
                if not self._rest:
                    raise DamagedStreamError("the compressed file ends early")
            try:
                # The length is bounded, since a few compressed bytes may expand to gigabytes.
                data = self._decompressor.decompress(self._rest, len(buffer))
            except (lzma.LZMAError, ValueError) as error:
                raise DamagedStreamError(f"the compressed file is damaged: {error}") from None
            except OSError as error:  # bz2 raises it for invalid data.
                raise DamagedStreamError(f"the compressed file is damaged: {error}") from None
            self._rest = b""
            if self._decompressor.eof:
                # Parallel compressors write many streams: the rest of the input begins the next.
                self._rest, self._decompressor = self._decompressor.unused_data, None
            if data:
                buffer[: len(data)] = data
                return len(data)


class _Zstandard(io.RawIOBase):
    """Frames of Zstandard, one behind the other."""

    def __init__(self, handle: BinaryIO):
        self._handle = handle
        self._stream = self._opened()
        self._position = 0
        self._error: OSError | None = None

    def _opened(self) -> Any:
        import pyarrow

        self._handle.seek(0)
        source = pyarrow.PythonFile(self._handle, mode="r")
        return pyarrow.CompressedInputStream(source, "zstd")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = b""
        if self._error is None:
            try:
                data = self._stream.read(len(buffer))
            except OSError as error:
                # Errors of the file system have an errno, damage has none.
                if error.errno is not None:
                    raise
                self._error = error
                data = self._before_damage(len(buffer))
        if self._error is not None and not data:
            raise DamagedStreamError(f"the compressed file is damaged: {self._error}")
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

    def _before_damage(self, size: int) -> bytes:
        """Returns what stands before damage: a read that meets it gives nothing of that."""
        # Arrow gives no data of a read that fails, and its stream cannot continue: the file is read
        # again up to here, then byte by byte to the damage.
        stream, left = self._opened(), self._position
        while left:
            left -= len(stream.read(min(left, _PIECE_BYTES)))
        content = bytearray()
        try:
            while len(content) < size and (byte := stream.read(1)):
                content += byte
        except OSError as error:
            if error.errno is not None:
                raise
        return bytes(content)
