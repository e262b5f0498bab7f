"""Files and folders that are the old ones or the new ones, whatever is cut: process, power, disk.

All that is written for others to read goes one way: aside, flushed to the disk, moved to its name,
and the folder flushed that holds the name. A pointer to other files is written last.
"""

import contextlib
import fcntl
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO


def write_file(path: str | Path, content: str | bytes) -> None:
    """Writes a file in the place of the one of its name, if there is one.

    Args:
        path: The file; its folder exists.
        content: Its bytes, or a text, which is encoded as UTF-8.

    Raises:
        OSError: If it cannot be written; nothing is left, and the old file is as it was.
    """
    path = Path(path)
    scratch = path.with_name(f".tmp-{uuid.uuid4().hex}")
    try:
        with open(scratch, "wb") as handle:
            handle.write(content.encode() if isinstance(content, str) else content)
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(scratch, path)
    except BaseException:
        scratch.unlink(missing_ok=True)
        raise
    flush_folder(path.parent)


def flush_tree(root: str | Path) -> None:
    """Flushes all files and folders below a folder, and the folder, to the disk."""
    for folder, _, names in os.walk(root):
        for name in names:
            with open(os.path.join(folder, name), "rb") as handle:
                os.fsync(handle.fileno())
        flush_folder(folder)


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
