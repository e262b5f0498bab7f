"""Tar files of samples, as img2dataset and webdataset write them."""

import gzip
import posixpath
import tarfile
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO, cast

from sigline.components.ingest import reasons
from sigline.components.ingest.sources import (
    DAMAGED,
    IMAGE_SUFFIXES,
    MAX_SIDE_BYTES,
    Files,
    Part,
    Place,
    Problem,
    RawPair,
    SourceConfig,
    family,
)

_PARTS = {"txt": "text", "json": "metadata", "cls": "label"}
# What tarfile raises on hostile headers, besides its own errors.
_DAMAGED = (*DAMAGED, tarfile.TarError, ValueError, OverflowError, RecursionError)


class WebDatasetReader:
    """Members that share a name up to its first dot are one sample.

    A member's name is only ever a key; nothing is written under it.
    """

    def __init__(self, more: Mapping[str, str] | None = None):
        """Reads the usual members: images, `.txt`, `.json` and `.cls`.

        Args:
            more: Fields of a pair by the suffixes of other members that hold them.
        """
        self._parts = _PARTS | dict(more or {})

    def accepts(self, path: str) -> bool:
        """Whether a file is a tar file, compressed or not."""
        return path.endswith((".tar", ".tar.gz", ".tgz"))

    def parts(self, path: str, files: Files, config: SourceConfig) -> Iterator[Part]:
        """Yields the file: members are found one after the other."""
        yield Part(path)

    def scan(
        self, part: Part, files: Files, config: SourceConfig, max_image_bytes: int
    ) -> Iterator[RawPair]:
        """Yields the samples of a tar file in order.

        A file that ends without tar's end mark is damaged, which a cut-off upload looks like; the
        samples before the damage are good all the same.
        """
        path = part.path
        about: dict[str, Any] = {"source": family(path), "shard": path}
        compressed = not path.endswith(".tar")
        key, fields, seen, reading = "", {}, set(), False
        with files.open(path) as raw:
            handle = cast(BinaryIO, gzip.GzipFile(fileobj=raw)) if compressed else raw
            try:
                with tarfile.open(fileobj=handle, mode="r:", tarinfo=_Member) as archive:
                    for member in _members(archive):
                        name, suffix = _split_name(member.name)
                        if not member.isreg() or not suffix:
                            continue
                        image = f".{suffix}" in IMAGE_SUFFIXES
                        field = "image" if image else self._parts.get(suffix, "")
                        # A second image, say, under one name belongs to another sample.
                        if seen and (name != key or (field and field in seen)):
                            yield RawPair(key=key, **about, **fields)
                            fields, seen = {}, set()
                        key, reading = name, True
                        seen.add(field)
                        fields |= _field(archive, member, field, max_image_bytes)
                        if image:
                            fields["position"] = (member.offset_data, member.size)
                        if image and not compressed and not member.issparse():
                            fields["place"] = Place(path, member.offset_data, member.size)
                        reading = False
                    _check_end_mark(handle, archive.offset)
                problem = None
            except _DAMAGED as error:
                problem = Problem(
                    reasons.DAMAGED_ARCHIVE, f"the rest of the file is unreadable: {error}"
                )
        if seen and not reading:
            yield RawPair(key=key, **about, **fields)
        if problem is not None:
            yield RawPair(key=key if reading else "", **about, problem=problem)


class _Member(tarfile.TarInfo):
    """A member whose extended headers, which are held in memory whole, are bounded."""

    def _proc_member(self, archive: tarfile.TarFile):
        if self.type not in (*tarfile.REGULAR_TYPES, tarfile.GNUTYPE_SPARSE):
            bounded = self.type in (*tarfile.GNU_TYPES, tarfile.XHDTYPE, tarfile.XGLTYPE)
            if self.size > MAX_SIDE_BYTES and (bounded or self.type == tarfile.SOLARIS_XHDTYPE):
                raise tarfile.ReadError(f"a header of {self.size} bytes at byte {self.offset}")
        return super()._proc_member(archive)  # pyright: ignore[reportAttributeAccessIssue]


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


def _field(
    archive: tarfile.TarFile, member: tarfile.TarInfo, field: str, max_image_bytes: int
) -> dict[str, Any]:
    """Returns the fields of a pair that a member fills; unknown suffixes fill none."""
    if not field:
        return {}
    if field == "image":
        if member.size > max_image_bytes:
            problem = f"{member.size} bytes, the limit is {max_image_bytes}"
            return {"problem": Problem(reasons.TOO_MANY_BYTES, problem)}
        return {"image": _read(archive, member)}
    if member.size > MAX_SIDE_BYTES:
        problem = f"{member.name} has {member.size} bytes, the limit is {MAX_SIDE_BYTES}"
        return {"problem": Problem(reasons.INVALID_METADATA, problem)}
    return {field: _read(archive, member)}


def _read(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    handle = archive.extractfile(member)
    content = handle.read() if handle is not None else b""
    if len(content) != member.size:
        raise tarfile.ReadError(f"{member.name} ends after {len(content)} of {member.size} bytes")
    return content
