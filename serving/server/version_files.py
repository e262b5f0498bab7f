"""The files of a version: whether they changed, and which of them."""

import contextlib
import os
from pathlib import Path

from sigline.schemas import versions


def snapshot(directory: Path) -> tuple:
    """Returns a value that changes when a file does: names, inodes, sizes and times.

    The inode's change time (ctime) reveals a file that was overwritten by one of the same size and
    modification time. It also changes when no content does, for instance when a hard link is added,
    so a different snapshot alone does not prove that a file was overwritten.
    """
    entries = []
    for path in sorted(directory.rglob("*")):
        with contextlib.suppress(FileNotFoundError):
            stat = path.stat()
            if path.is_dir():
                entries.append((str(path),))
            else:
                times = stat.st_mtime_ns, stat.st_ctime_ns
                entries.append((str(path), stat.st_ino, stat.st_size, *times))
    return tuple(entries)


def changed_files(loaded: dict[str, str], directory: Path) -> list[str]:
    """Returns the names of files that were changed, added or removed since they were loaded.

    Args:
        loaded: SHA-256 by name when they were loaded, as `versions.content` returned them.
        directory: Folder of the version.
    """
    current = versions.content(directory)
    return sorted(name for name in {*loaded, *current} if loaded.get(name) != current.get(name))


def is_same_folder(first: str, second: str) -> bool:
    """Returns whether two paths lead to the same folder, whatever slashes or links they have."""
    return os.path.realpath(first) == os.path.realpath(second)


def why_empty(base: Path) -> str:
    """Returns why a folder has no versions, as the end of a sentence."""
    if base.is_dir():
        return "it holds no version directory such as 1/saved_model.pb"
    return "it is not a folder" if base.exists() else "it does not exist"
