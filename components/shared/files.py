"""Files of components, on whatever file system Beam reaches."""

import errno
import os
import posixpath
import re
import stat
import uuid
from typing import BinaryIO

from apache_beam.io.filesystems import FileSystems

from sigline.schemas import atomic, digests
from sigline.schemas.entries import Entry, local_entries


class BeamFiles:
    """Files on any file system that Beam reaches."""

    def open(self, path: str) -> BinaryIO:
        """Opens a file for reading as it is; raises an `OSError` if it cannot."""
        if FileSystems.get_scheme(path) is None:
            # Beam opens local files the same way, but takes twice as long about it.
            return open(path, "rb", opener=_open_regular)
        return FileSystems.open(path, compression_type="uncompressed")

    def find(self, folder: str) -> list[str]:
        """Returns the paths of all files below a folder, sorted."""
        folder = folder.rstrip("/") + "/"
        # Beam cannot escape the special characters of a pattern: if the folder's name has any, a
        # folder above it is searched instead.
        plain = re.split(r"[*?\[]", folder)[0]
        pattern = posixpath.join(plain[: plain.rindex("/") + 1], "**")
        matches = FileSystems.match([pattern])[0].metadata_list
        return sorted(item.path for item in matches if item.path.startswith(folder))

    def entries(self, folder: str) -> list[Entry]:
        """Returns everything below a folder, sorted; an object store holds files only."""
        if FileSystems.get_scheme(folder) is None:
            return local_entries(folder)
        return [Entry(path) for path in self.find(folder)]


def _open_regular(path: str, flags: int) -> int:
    """Opens regular files and folders only: reading a pipe, socket or device may never end.

    Raises:
        FileNotFoundError: If the path leads to one.
    """
    # O_NONBLOCK: opening a named pipe would otherwise wait for a writer.
    descriptor = os.open(path, flags | os.O_NONBLOCK)
    kind = os.fstat(descriptor).st_mode
    # Folders pass here, since Python itself refuses to open them.
    if stat.S_ISREG(kind) or stat.S_ISDIR(kind):
        return descriptor
    os.close(descriptor)
    raise FileNotFoundError(errno.ENOENT, "No regular file", path)


def tree_digest(folder: str) -> str:
    """Returns the digest of all files below a folder, by their relative paths.

    Raises:
        ValueError: If there are none.
    """
    digests_by_path = {}
    for path in BeamFiles().find(folder):
        with BeamFiles().open(path) as handle:
            digests_by_path[path.removeprefix(folder.rstrip("/"))] = digests.stream_digest(handle)
    if not digests_by_path:
        raise ValueError(f"There are no files. Received: {folder}")
    return digests.json_digest(digests_by_path)


def write_file(path: str, content: bytes) -> None:
    """Writes a small file under a temporary name and renames it."""
    folder, name = posixpath.split(path)
    make_folder(folder)
    if FileSystems.get_scheme(path) is None:
        atomic.write_file(path, content)
        return
    # A unique name, since a runner may execute the same work twice at a time.
    scratch = posixpath.join(folder, f"{atomic.SCRATCH}{uuid.uuid4().hex}-{name}")
    with FileSystems.create(scratch, compression_type="uncompressed") as handle:
        handle.write(content)
    rename(scratch, path)


def read_text(path: str) -> str:
    """Returns the text of a small file.

    Raises:
        ValueError: If there is none.
    """
    if not FileSystems.exists(path):
        raise ValueError(f"There is no {posixpath.basename(path)}. Received: {path}")
    with FileSystems.open(path, compression_type="uncompressed") as handle:
        return handle.read().decode()


def rename(source: str, target: str) -> None:
    """Moves a file to its place; its folder is made, and an older file there goes."""
    make_folder(posixpath.dirname(target))
    if FileSystems.get_scheme(target) is None:
        atomic.move_file(source, target)
        return
    if FileSystems.exists(target):
        FileSystems.delete([target])
    FileSystems.rename([source], [target])


def make_folder(folder: str) -> None:
    """Makes a folder, unless it is there."""
    if FileSystems.get_scheme(folder) is None:
        atomic.make_folder(folder)
        return
    try:
        FileSystems.mkdirs(folder)
    except OSError:
        # Another worker may have created the folder a moment ago, which is no error.
        if not FileSystems.exists(folder):
            raise
