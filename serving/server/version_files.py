"""The files of a version: whether they changed, and what in them."""

import contextlib
import os
from pathlib import Path

from sigline.schemas import versions


def snapshot(directory: Path) -> tuple:
    """Returns what changes when a file of a version does: names, inodes, sizes and times.

    The time of the last change tells of a file that was overwritten by one of the same size and
    modification time; it also changes where nothing is overwritten, as by another link to a file.
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


def differing(loaded: dict[str, str], directory: Path) -> list[str]:
    """Returns the names of files whose content is not what was loaded, or that came or went.

    Args:
        loaded: SHA-256 by name, as `versions.content` returned them.
        directory: Where they are now.
    """
    now = versions.content(directory)
    return sorted(name for name in {*loaded, *now} if loaded.get(name) != now.get(name))


def is_same_folder(first: str, second: str) -> bool:
    """Returns whether two paths lead to one folder: a slash at the end makes no other."""
    return os.path.realpath(first) == os.path.realpath(second)


def why_empty(base: Path) -> str:
    """Returns why a folder has no versions."""
    if base.is_dir():
        return "it holds no version directory such as 1/saved_model.pb"
    return "it is no folder" if base.exists() else "it does not exist"
