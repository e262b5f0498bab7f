"""Files and folders that are the old ones or the new ones, whatever is cut: process, power, disk.

All that is written for others to read goes one way: aside, flushed to the disk, moved to its name,
and the folder flushed that holds the name. A pointer to other files is written last.
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
    """Writes a file in the place of the one of its name, if there is one.

    Args:
        path: The file; its folder exists.
        content: Its bytes, or a text, which is encoded as UTF-8.

    Raises:
        OSError: If it cannot be written; nothing is left, and the old file is as it was.
    """
    with new_file(path) as scratch:
        scratch.write_bytes(content.encode() if isinstance(content, str) else content)


@contextlib.contextmanager
def new_file(path: str | Path, suffix: str = "") -> Iterator[Path]:
    """Gives a path to write a file to, and moves it to its name when the block is done.

    Args:
        path: The file's name, where another may be; its folder exists.
        suffix: Of the path, for writers that go by it.

    Raises:
        OSError: If it cannot be written; as after any other error, nothing is left, and the old
            file is as it was.
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
    """Notes on errors of a block what was written; those of a full disk do not tell."""
    try:
        yield
    except Exception as error:
        error.add_note(f"{WRITING}{path}")
        raise


def move_file(scratch: str | Path, target: str | Path) -> None:
    """Moves a file that is written to its name, in the place of one that is there."""
    flush_file(scratch)
    os.replace(scratch, target)
    flush_folder(Path(target).parent)


@contextlib.contextmanager
def new_folder(folder: str | Path) -> Iterator[Path]:
    """Gives a folder to write to, and moves it to its name when the block is done.

    Args:
        folder: Its name, at which there is none or an empty one.

    Raises:
        OSError: If it cannot be written, or there is a folder that is not empty; as after any other
            error, nothing is left.
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
        # A disk that is full has room again.
        shutil.rmtree(scratch, ignore_errors=True)
        raise


def move_folder(scratch: str | Path, target: str | Path) -> None:
    """Moves a folder that is written to its name, at which there is none or an empty one."""
    flush_tree(scratch)
    os.rename(scratch, target)
    flush_folder(Path(target).parent)


def make_folder(path: str | Path) -> None:
    """Makes a folder and those above it, as far as they are not there, so that they stay."""
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
    """Flushes what a file holds to the disk."""
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
    """Holds a lock, which ends with the process, and gives its file.

    Args:
        lock: The lock's file, which stays as it is; its folder exists.
        wait: Whether to wait until no other process holds it.

    Raises:
        BlockingIOError: If another process holds it, and this one is not to wait.
    """
    with open(lock, "a+") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield handle
