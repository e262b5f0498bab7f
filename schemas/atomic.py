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

SCRATCH_PREFIX = ".tmp-"


def write_file(path: str | Path, content: str | bytes) -> None:
    """Writes a file in the place of the one of its name, if there is one.

    Args:
        path: The file; its folder exists.
        content: Its bytes, or a text, which is encoded as UTF-8.

    Raises:
        OSError: If it cannot be written; nothing is left, and the old file is as it was.
    """
    path = Path(path)
    scratch = path.with_name(f"{SCRATCH_PREFIX}{uuid.uuid4().hex}")
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
def locked(lock: str | Path) -> Iterator[None]:
    """Waits until no other process holds a lock, and holds it; it ends with the process.

    Args:
        lock: The lock's file, which stays, empty; its folder exists.
    """
    with open(lock, "w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
