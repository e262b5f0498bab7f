"""Atomic writes: a file or folder is the old or the new one, even after a crash or power loss.

Everything that others read is written in the same way: under a temporary name, flushed to the disk,
renamed, then the folder that holds the name is flushed. A file that refers to others is written
after them.
"""

import contextlib
import fcntl
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

# Prefix of the names of files and folders that are not whole yet.
SCRATCH = ".tmp-"
# Prefix of the note on an error that names what was being written.
WRITING = "While writing "


def write_file(path: str | Path, content: str | bytes) -> None:
    """Writes a file, replacing an existing one atomically.

    Args:
        path: The file; its folder exists.
        content: Its bytes, or a text, which is encoded as UTF-8.

    Raises:
        OSError: If it cannot be written; no partial file is left, and the old file is unchanged.
    """
    with new_file(path) as scratch:
        scratch.write_bytes(content.encode() if isinstance(content, str) else content)


@contextlib.contextmanager
def new_file(path: str | Path, suffix: str = "") -> Iterator[Path]:
    """Yields a temporary path to write a file to, and renames it when the block is done.

    Args:
        path: Final path of the file, which may exist; its folder exists.
        suffix: Suffix of the temporary path, for writers that depend on it.

    Raises:
        OSError: If it cannot be written; as after any other error, no partial file is left, and the
            old file is unchanged.
    """
    path = Path(path)
    scratch = path.with_name(f"{SCRATCH}{uuid.uuid4().hex}{suffix}")
    try:
        with named(path):
            yield scratch
            move_file(scratch, path)
    except BaseException:
        scratch.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def named(path: str | Path) -> Iterator[None]:
    """Adds the path that was being written to errors of a block: a full disk's do not name it."""
    try:
        yield
    except Exception as error:
        error.add_note(f"{WRITING}{path}")
        raise


def move_file(scratch: str | Path, target: str | Path) -> None:
    """Flushes a file and renames it to its final path, replacing an existing file."""
    flush_file(scratch)
    os.replace(scratch, target)
    flush_folder(Path(target).parent)


@contextlib.contextmanager
def new_folder(folder: str | Path) -> Iterator[Path]:
    """Yields a temporary folder to write to, and renames it when the block is done.

    Args:
        folder: Final path of the folder, which must not exist or be empty.

    Raises:
        OSError: If it cannot be written, or the folder exists and is not empty; as after any other
            error, no partial folder is left.
    """
    folder = Path(folder)
    scratch = folder.with_name(f"{SCRATCH}{uuid.uuid4().hex}")
    try:
        with named(folder):
            make_folder(folder.parent)
            scratch.mkdir()
            yield scratch
            move_folder(scratch, folder)
    except BaseException:
        # Frees the space that the partial folder took on a full disk.
        shutil.rmtree(scratch, ignore_errors=True)
        raise


def move_folder(scratch: str | Path, target: str | Path) -> None:
    """Flushes a folder and renames it to its final path, which must not exist or be empty."""
    flush_tree(scratch)
    os.rename(scratch, target)
    flush_folder(Path(target).parent)


def make_folder(path: str | Path) -> None:
    """Creates a folder and its missing parents, and flushes each new entry to the disk."""
    path = Path(path)
    if path.is_dir():
        return
    make_folder(path.parent)
    path.mkdir(exist_ok=True)
    flush_folder(path.parent)


def flush_tree(root: str | Path) -> None:
    """Flushes all files and folders below a folder, and the folder, to the disk."""
    for folder, _, names in os.walk(root):
        for name in names:
            flush_file(os.path.join(folder, name))
        flush_folder(folder)


def flush_file(path: str | Path) -> None:
    """Flushes the content of a file to the disk."""
    with open(path, "rb") as handle:
        os.fsync(handle.fileno())


def flush_folder(folder: str | Path) -> None:
    """Flushes the names in a folder to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def locked(lock: str | Path, *, wait: bool = True) -> Iterator[TextIO]:
    """Holds a file lock, which the system releases if the process dies; yields the open file.

    Args:
        lock: Path of the lock file, whose content is not changed; its folder exists.
        wait: Whether to wait until no other process holds it.

    Raises:
        BlockingIOError: If another process holds it and `wait` is false.
    """
    with open(lock, "a+") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield handle
