"""Hard and symbolic links of tar files: members that stand for another member."""

import posixpath
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from tempfile import TemporaryFile
from typing import BinaryIO, NamedTuple, cast

from sigline.components.ingest.compression import DAMAGED
from sigline.components.ingest.readers import tar

# Maximum length of a chain of links.
_MAX_HOPS = 40
# Maximum number of bytes unpacked from a compressed archive to read the targets of its links.
_MAX_UNPACKED_BYTES = 2**33
_PIECE_BYTES = 2**20


class Location(NamedTuple):
    """Where a member stands: which of the joined archives, its header, its content and its size."""

    number: int
    offset: int
    data: int
    size: int


class Link(NamedTuple):
    """A member that stands for another.

    Attributes:
        name: Its own name.
        target: The name of the other from the archive's root; empty if it leads out of it.
        hard: Whether the other must stand before it.
        number: Which of the joined archives it is in.
        offset: Where its header stands.
    """

    name: str
    target: str
    hard: bool
    number: int
    offset: int


def link_of(header: tar.Header) -> Link:
    """Returns the link that a member is."""
    member = header.member
    folder = "" if member.islnk() else posixpath.dirname(member.name)
    target = posixpath.normpath(posixpath.join(folder, member.linkname))
    if target.startswith("/") or target.split("/")[0] in ("..", "."):
        target = ""
    return Link(member.name, target, member.islnk(), header.number, member.offset)


def locate(
    followed: Collection[Link], links: Mapping[str, Link], handle: BinaryIO | tar.Forward
) -> dict[Link, Location]:
    """Returns where the contents of links stand; those that lead to none are left out.

    Args:
        followed: The links to follow.
        links: All links of the archive by their own names.
        handle: The archive, at its beginning.
    """
    ends = {link: end for link in followed if (end := _last(link, links)) is not None}
    names = {end.target for end in ends.values()}
    places: dict[str, list[Location]] = {}
    try:
        for header in tar.headers(handle):
            if isinstance(header, tar.Trailing) or not header.member.isreg():
                continue
            member = header.member
            name = posixpath.normpath(member.name)
            # Sparse members are not stored contiguously, so they cannot be read by offset and size.
            if name in names and not member.issparse():
                place = Location(header.number, member.offset, member.offset_data, member.size)
                places.setdefault(name, []).append(place)
    except tar.UNREADABLE:
        # The first pass over the archive has reported the damage.
        pass
    chosen = {link: _chosen(end, places.get(end.target, [])) for link, end in ends.items()}
    return {link: place for link, place in chosen.items() if place is not None}


def _last(link: Link, links: Mapping[str, Link]) -> Link | None:
    """Returns the last of the links that lead to each other; None for a circle."""
    for _ in range(_MAX_HOPS):
        following = links.get(link.target)
        if following is None or following == link:
            return link if following is None else None
        link = following
    return None


def _chosen(link: Link, places: list[Location]) -> Location | None:
    """Returns the last member of that name, as unpacking would leave it; before a hard link."""
    fitting = [
        place
        for place in places
        if place.number == link.number and (place.offset < link.offset or not link.hard)
    ]
    return fitting[-1] if fitting else None


@contextmanager
def unpacked(handle: BinaryIO | tar.Forward, *, seekable: bool) -> Iterator[BinaryIO]:
    """Gives an archive that can be read anywhere; a compressed one from a temporary file."""
    if seekable:
        yield cast(BinaryIO, handle)
        return
    with TemporaryFile() as scratch:
        # Targets behind the damage are missing; their samples are reported for that.
        with suppress(*DAMAGED):
            while scratch.tell() < _MAX_UNPACKED_BYTES and (piece := handle.read(_PIECE_BYTES)):
                scratch.write(piece)
        yield cast(BinaryIO, scratch)


def read_at(handle: BinaryIO, place: Location) -> bytes | None:
    """Returns what stands in a place; None if the file ends before."""
    handle.seek(place.data)
    content = handle.read(place.size)
    return content if len(content) == place.size else None
