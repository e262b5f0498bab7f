"""Readers of image-text sources, behind one small interface."""

import posixpath
import re
import tarfile
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO, Protocol

from sigline.components.ingest import rules

_IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp", "gif", "bmp")
_TEXT_SUFFIX = "txt"
_METADATA_SUFFIX = "json"
# Captions and metadata larger than this are no captions.
_MAX_SIDE_BYTES = 2**20


class Reader(Protocol):
    """Reads one kind of file. Files are opened by the caller, so any file system will do."""

    @property
    def suffixes(self) -> tuple[str, ...]:
        """Endings of the file names that the reader reads."""
        ...

    def scan(self, handle: BinaryIO, shard: str, max_image_bytes: int) -> Iterator[rules.RawPair]:
        """Yields every sample of a file in order; damage yields a pair with a `problem`."""
        ...

    def fetch(self, handle: BinaryIO, locators: Iterable[Any]) -> Iterator[bytes]:
        """Yields the images at locators that `scan` gave for the same file, in the order asked."""
        ...


class WebDatasetReader:
    """Tar files of samples: members that share a name up to its first dot, as img2dataset writes.

    A member's name is only ever a key; nothing is written under it.
    """

    suffixes: tuple[str, ...] = (".tar",)

    def scan(self, handle: BinaryIO, shard: str, max_image_bytes: int) -> Iterator[rules.RawPair]:
        """Yields the samples of a tar file in order.

        A file that ends without tar's end mark is damaged, which a cut-off upload looks like; the
        samples before the damage are good all the same.
        """
        source = source_name(shard)
        key, parts, started, reading = "", {}, False, False
        try:
            with tarfile.open(fileobj=handle, mode="r:") as archive:
                for member in _members(archive):
                    name, suffix = _split_name(member.name)
                    if not member.isreg() or not suffix:
                        continue
                    part = _part_name(suffix)
                    # A second image, say, under one name belongs to another sample.
                    if started and (name != key or part in parts):
                        yield rules.RawPair(key=key, source=source, shard=shard, **parts)
                        parts = {}
                    key, started, reading = name, True, True
                    parts |= _part(archive, member, part, max_image_bytes)
                    reading = False
                _check_end_mark(handle, archive.offset)
            problem = None
        except (tarfile.TarError, EOFError, OSError) as error:
            problem = (rules.DAMAGED_ARCHIVE, f"the rest of the file is unreadable: {error}")
        if started and not reading:
            yield rules.RawPair(key=key, source=source, shard=shard, **parts)
        if problem is not None:
            key = key if reading else ""
            yield rules.RawPair(key=key, source=source, shard=shard, problem=problem)

    def fetch(self, handle: BinaryIO, locators: Iterable[Any]) -> Iterator[bytes]:
        """Yields images by `(offset, size)`."""
        for offset, size in locators:
            handle.seek(offset)
            yield handle.read(size)


READERS: tuple[Reader, ...] = (WebDatasetReader(),)


def reader_for(path: str) -> Reader | None:
    """Returns the reader for a file by its suffix, or None."""
    return next((reader for reader in READERS if path.endswith(reader.suffixes)), None)


def source_name(shard: str) -> str:
    """Returns the family of a shard: its file name without suffix and running number."""
    stem = posixpath.basename(shard).split(".")[0]
    return re.sub(r"[-_]?\d+$", "", stem) or stem


def _check_end_mark(handle: BinaryIO, offset: int) -> None:
    # tarfile takes a broken header for the end of the archive, and no end mark for one.
    handle.seek(offset)
    block = handle.read(tarfile.BLOCKSIZE)
    if len(block) < tarfile.BLOCKSIZE or block.strip(b"\0"):
        raise tarfile.ReadError(f"no end mark and no member at byte {offset}")


def _split_name(name: str) -> tuple[str, str]:
    folder, base = posixpath.split(name)
    stem, _, suffix = base.partition(".")
    if not stem:
        return "", ""
    return posixpath.join(folder, stem), suffix.lower()


def _members(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Yields the members in order; a header that leads nowhere is damage, not an endless loop."""
    last = -1
    while (member := archive.next()) is not None:
        # The archive would otherwise keep every header it has seen.
        archive.members = []  # type: ignore[attr-defined]  # typeshed hides the list
        if member.size < 0 or member.offset <= last:
            raise tarfile.ReadError(f"the header at byte {member.offset} has size {member.size}")
        last = member.offset
        yield member


def _part_name(suffix: str) -> str | None:
    """Returns the field of a pair that a member with this suffix fills."""
    if suffix in _IMAGE_SUFFIXES:
        return "image"
    return {_TEXT_SUFFIX: "text", _METADATA_SUFFIX: "metadata"}.get(suffix)


def _part(
    archive: tarfile.TarFile, member: tarfile.TarInfo, part: str | None, max_image_bytes: int
) -> dict[str, Any]:
    """Returns the fields of a pair that a member fills; unknown suffixes fill none."""
    if part is None:
        return {}
    if part == "image":
        if member.size > max_image_bytes:
            problem = f"{member.size} bytes, the limit is {max_image_bytes}"
            return {"problem": (rules.images.TOO_MANY_BYTES, problem)}
        return {"image": _read(archive, member), "locator": (member.offset_data, member.size)}
    if member.size > _MAX_SIDE_BYTES:
        problem = f"{member.name} has {member.size} bytes, the limit is {_MAX_SIDE_BYTES}"
        return {"problem": (rules.INVALID_METADATA, problem)}
    return {part: _read(archive, member)}


def _read(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    handle = archive.extractfile(member)
    content = handle.read() if handle is not None else b""
    if len(content) != member.size:
        raise tarfile.ReadError(f"{member.name} ends after {len(content)} of {member.size} bytes")
    return content
