"""Tar files of samples, as img2dataset and webdataset write them."""

import json
import posixpath
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from sigline.components.ingest import reasons
from sigline.components.ingest.compression import decompressed, without_suffix
from sigline.components.ingest.documents import is_document, is_hidden
from sigline.components.ingest.readers import tar, tar_links
from sigline.components.ingest.sources import (
    IMAGE_SUFFIXES,
    MAX_SIDE_BYTES,
    Files,
    Members,
    Part,
    PassedOver,
    Place,
    Problem,
    RawPair,
    SourceConfig,
    family,
)

_PARTS = {"txt": "text", "json": "metadata", "cls": "label"}
_SHORT_SUFFIXES = (".tgz", ".tbz2", ".tbz", ".tb2", ".tzst", ".txz")
# Number of names with one key up to which they may still form one sample; with more, each name is
# a sample of its own.
_MAX_WAITING = 32


class WebDatasetReader:
    """Members that share a name up to its first dot are one sample, as webdataset has it.

    Names that hold more dots than that of their suffix, such as `shot.0001.jpg`, are two things in
    the world: a further member of the sample `shot`, such as a mask, or a sample of its own. What
    else lies below the key decides:

    - Where the key has an image of its own (`shot.jpg`), the others are further members, except a
      name with both an image and a caption, in `.txt` or in `.json`, which is a sample.
    - Where it has none, each name up to its last dot is a sample.

    A member's name is only ever a key; nothing is written under it.
    """

    def __init__(self, more: Mapping[str, str] | None = None):
        """Reads the usual members: images, `.txt`, `.json` and `.cls`.

        Args:
            more: Fields of a pair by the suffixes of other members that hold them.
        """
        self._parts = _PARTS | dict(more or {})

    def accepts(self, path: str) -> bool:
        """Whether a file is a tar file, compressed or not, by its name."""
        return path.lower().endswith(_SHORT_SUFFIXES) or without_suffix(path).endswith(".tar")

    def parts(self, path: str, files: Files, config: SourceConfig) -> Iterator[Part]:
        """Yields the whole file as one part: members can only be read one after the other."""
        yield Part(path)

    def scan(
        self, part: Part, files: Files, config: SourceConfig, max_image_bytes: int
    ) -> Iterator[RawPair | PassedOver | Members]:
        """Yields the samples of a tar file in order, those with links last.

        A file that ends without tar's end mark is damaged, which a cut-off upload looks like; the
        samples before the damage are good all the same.
        """
        samples = _Samples(part.path, self._parts, max_image_bytes)
        problem = None
        with _opened(part.path, files) as (handle, seekable):
            samples.seekable = seekable
            try:
                for header in tar.headers(handle):
                    if isinstance(header, tar.Trailing):
                        samples.total += 1
                        name = f"{header.size} bytes behind the end"
                        yield PassedOver(posixpath.join(part.path, name), reasons.TRAILING_BYTES)
                    else:
                        yield from samples.add(header)
            except tar.UNREADABLE as error:
                problem = Problem(
                    reasons.DAMAGED_ARCHIVE, f"the rest of the file is unreadable: {error}"
                )
        yield from samples.end(problem)
        if samples.linked:
            yield from self._linked(part.path, files, samples)
        yield Members(samples.total, samples.read)

    def _linked(
        self, path: str, files: Files, samples: "_Samples"
    ) -> Iterator[RawPair | PassedOver]:
        """Yields the samples that have links."""
        links = [link for run in samples.linked for link in run.links.values()]
        with _opened(path, files) as (handle, _):
            places = tar_links.locate(links, samples.links, handle)
        with (
            _opened(path, files) as (handle, seekable),
            tar_links.unpacked(handle, seekable=seekable) as archive,
        ):
            for run in samples.linked:
                yield from samples.resolved(run, places, archive)


@contextmanager
def _opened(path: str, files: Files) -> Iterator[tuple[BinaryIO | tar.Forward, bool]]:
    """Gives the archive, and whether its members have places in the file."""
    with files.open(path) as raw, decompressed(raw) as handle:
        yield (raw, True) if handle is raw else (tar.Forward(handle), False)


@dataclass
class _Run:
    """Members of one name that follow each other.

    Attributes:
        name: The key of the sample that they may be.
        fields: What they fill of a pair.
        kinds: Names of these fields; empty for a member that fills none.
        members: Names of the members.
        extras: Names of those that fill no field.
        links: Members that are links, by field.
        places: Where the other members stand, by field.
        size: Bytes that are held.
    """

    name: str
    fields: dict[str, Any] = field(default_factory=dict)
    kinds: set[str] = field(default_factory=set)
    members: list[str] = field(default_factory=list)
    extras: list[str] = field(default_factory=list)
    links: dict[str, tar_links.Link] = field(default_factory=dict)
    places: dict[str, tar_links.Location] = field(default_factory=dict)
    size: int = 0


class _Samples:
    """Gathers the members of an archive into samples."""

    def __init__(self, path: str, parts: Mapping[str, str], max_image_bytes: int):
        self._path = path
        self._parts = parts
        self._max_image_bytes = max_image_bytes
        self._about: dict[str, Any] = {"source": family(path), "shard": path}
        self._key: str | None = None
        self._plain: _Run | None = None
        self._run: _Run | None = None
        self._waiting: list[_Run] = []
        # Whether names with the current key are known to be separate samples.
        self._apart = False
        # The run whose member is being read; damage in it loses the whole sample.
        self._reading: _Run | None = None
        self.seekable = True
        self.linked: list[_Run] = []
        self.links: dict[str, tar_links.Link] = {}
        self.total = self.read = 0

    def add(self, header: tar.Header) -> Iterator[RawPair | PassedOver]:
        """Takes the next member; yields what is complete."""
        member = header.member
        self.total += 1
        link = tar_links.link_of(header) if member.islnk() or member.issym() else None
        key, middle, suffix = tar.split_name(member.name)
        kind = "image" if f".{suffix}" in IMAGE_SUFFIXES else self._parts.get(suffix, "")
        reason = _unread(member, suffix, kind)
        if link is not None and link.target:
            self.links[posixpath.normpath(member.name)] = link
        elif link is not None:
            reason = reasons.UNSAFE_LINK
        if reason:
            yield self._passed(member.name, reason)
            return
        if key != self._key:
            yield from self._finish()
            self._key = key
        if middle:
            # A second member of the same kind, such as an image, belongs to another sample.
            name = f"{key}.{middle}"
            run = self._run
            if run is not None and (run.name != name or (kind and kind in run.kinds)):
                yield from self._close()
                run = None
            self._run = run = run or _Run(name)
        else:
            if self._plain is not None and kind and kind in self._plain.kinds:
                yield from self._finish()
                self._key = key
            self._plain = run = self._plain or _Run(key)
        run.members.append(member.name)
        run.kinds.add(kind)
        if not kind:
            run.extras.append(member.name)
        elif link is not None:
            run.links[kind] = link
        else:
            self._reading = run
            self._fill(run, kind, header)
            self._reading = None

    def end(self, problem: Problem | None) -> Iterator[RawPair | PassedOver]:
        """Yields what is left, and the problem of the archive, if it has one."""
        broken = self._reading
        if broken is not None:
            self.read += len(broken.members)
            self._plain = None if self._plain is broken else self._plain
            self._run = None if self._run is broken else self._run
        yield from self._finish()
        if problem is not None:
            key = "" if broken is None else broken.name
            yield RawPair(key=key, **self._about, problem=problem)

    def resolved(
        self, run: _Run, places: Mapping[tar_links.Link, tar_links.Location], archive: BinaryIO
    ) -> Iterator[RawPair | PassedOver]:
        """Yields a sample with what its links lead to, and the links that lead nowhere."""
        located = dict(run.places)
        for kind, link in run.links.items():
            if link in places:
                located[kind] = places[link]
            else:
                run.members.remove(link.name)
                run.kinds.discard(kind)
                yield self._passed(link.name, reasons.BROKEN_LINK)
        for kind, place in located.items():
            content = None
            if place.size <= self._limit(kind):
                content = tar_links.read_at(archive, place)
                if content is None:
                    detail = f"{run.name}: what {kind} leads to cannot be read"
                    run.fields["problem"] = Problem(reasons.DAMAGED_ARCHIVE, detail)
                    continue
            self._set(run, kind, place, content)
        run.links = {}
        if run.members:
            yield from self._emit(run)

    def _passed(self, name: str, reason: str) -> PassedOver:
        return PassedOver(posixpath.join(self._path, name.removeprefix("./").lstrip("/")), reason)

    def _limit(self, kind: str) -> int:
        return self._max_image_bytes if kind == "image" else MAX_SIDE_BYTES

    def _fill(self, run: _Run, kind: str, header: tar.Header) -> None:
        member = header.member
        place = tar_links.Location(header.number, member.offset, member.offset_data, member.size)
        small = member.size <= self._limit(kind)
        content = tar.read_member(header.archive, member) if small else None
        self._set(run, kind, place, content, sparse=member.issparse())

    def _set(
        self,
        run: _Run,
        kind: str,
        place: tar_links.Location,
        content: bytes | None,
        *,
        sparse: bool = False,
    ) -> None:
        """Sets a field, or the problem if its content is too large."""
        if kind == "image":
            run.fields["position"] = (place.data, place.size)
        if not sparse:
            run.places[kind] = place
            if kind == "image" and self.seekable:
                run.fields["place"] = Place(self._path, place.data, place.size)
        if content is not None:
            run.fields[kind] = content
            run.size += place.size
        elif kind == "image":
            detail = f"{place.size} bytes, the limit is {self._max_image_bytes}"
            run.fields["problem"] = Problem(reasons.TOO_MANY_BYTES, detail)
        else:
            detail = f"{run.name}: {kind} has {place.size} bytes, the limit is {MAX_SIDE_BYTES}"
            run.fields["problem"] = Problem(reasons.INVALID_METADATA, detail)

    def _close(self) -> Iterator[RawPair | PassedOver]:
        """Ends the run of a name that has further dots than its suffix's."""
        run, self._run = self._run, None
        if run is None:
            return
        if self._apart or ("image" in run.kinds and _has_caption(run)):
            yield from self._emit(run)
            return
        self._waiting.append(run)
        held = sum(item.size for item in self._waiting)
        if len(self._waiting) > _MAX_WAITING or held > 2 * self._max_image_bytes:
            if self._plain is None or "image" not in self._plain.kinds:
                self._apart = True
            yield from self._settle()

    def _settle(self) -> Iterator[RawPair | PassedOver]:
        """Yields the waiting names, as samples or as further members of the key's sample."""
        waiting, self._waiting = self._waiting, []
        plain = self._plain
        with_image = any("image" in run.kinds for run in waiting)
        extras = plain is not None and ("image" in plain.kinds or not with_image)
        for run in waiting:
            if extras and not self._apart:
                for name in run.members:
                    yield self._passed(name, reasons.EXTRA_MEMBER)
            else:
                yield from self._emit(run)

    def _finish(self) -> Iterator[RawPair | PassedOver]:
        """Ends the current key and yields its samples."""
        yield from self._close()
        yield from self._settle()
        if self._plain is not None:
            yield from self._emit(self._plain)
        self._key, self._plain, self._apart = None, None, False

    def _emit(self, run: _Run) -> Iterator[RawPair | PassedOver]:
        """Yields a sample; one with links waits until they are resolved."""
        if run.links:
            # Contents are dropped and read again later, so that many links do not fill the memory.
            for kind in run.kinds & run.fields.keys():
                del run.fields[kind]
                if kind not in run.places:
                    detail = f"{run.name}: a sparse member beside a link"
                    run.fields["problem"] = Problem(reasons.DAMAGED_ARCHIVE, detail)
            self.linked.append(run)
            return
        if "image" in run.kinds:
            for name in run.extras:
                yield self._passed(name, reasons.EXTRA_MEMBER)
        else:
            # The sample is rejected for its missing image, which covers these members too.
            run.extras = []
        self.read += len(run.members) - len(run.extras)
        yield RawPair(key=run.name, **self._about, **run.fields)


def _has_caption(run: _Run) -> bool:
    """Whether members of one name hold a caption, in a file of its own or in the metadata."""
    if "text" in run.kinds:
        return True
    try:
        metadata = json.loads(run.fields.get("metadata", b"null"))
    except (ValueError, RecursionError):
        return False
    return isinstance(metadata, dict) and not {"caption", "captions"}.isdisjoint(metadata)


def _unread(member: tarfile.TarInfo, suffix: str, kind: str) -> str:
    """Returns the reason to pass over a member that can belong to no sample; empty for others."""
    if member.isdir():
        return reasons.FOLDER
    if is_hidden(member.name):
        return reasons.HIDDEN
    if not (member.isreg() or member.islnk() or member.issym()):
        return reasons.SPECIAL_FILE
    if not kind and is_document(member.name):
        return reasons.DOCUMENT
    return "" if suffix else reasons.UNKNOWN_FORMAT
