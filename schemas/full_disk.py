"""Errors of a disk that is full, which libraries word in many ways, as one sentence."""

import errno
import re
from collections.abc import Iterator

from sigline.schemas import atomic

ADVICE = "Make room and run the same command again."

_NUMBERS = (errno.ENOSPC, errno.EDQUOT)
# How Python, TensorFlow, shutil and SQLite word a full disk.
_WORDS = re.compile(r"No space left on device|Disk quota exceeded|database or disk is full")
# TensorFlow names the file before it says why.
_PATH = re.compile(r"(/[^\s;]+); (?:No space left|Disk quota)")


def sentence(error: BaseException) -> str | None:
    """Returns what to say of an error that a full disk is the cause of; None of any other.

    Args:
        error: An exception; those that it came from count, too.
    """
    if ADVICE in str(error):
        return str(error)
    full = [item for item in _causes(error) if _is_full(item)]
    if not full:
        return None
    path = next((path for path in map(_path, full) if path), None)
    return f"The disk{f' of {path}' if path else ''} is full. {ADVICE}"


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    visited: set[int] = set()
    while error is not None and id(error) not in visited:
        visited.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _is_full(error: BaseException) -> bool:
    number = error.errno if isinstance(error, OSError) else None
    return number in _NUMBERS or _WORDS.search(str(error)) is not None


def _path(error: BaseException) -> str | None:
    for note in getattr(error, "__notes__", ()):
        if note.startswith(atomic.WRITING):
            return note.removeprefix(atomic.WRITING)
    match = _PATH.search(str(error))
    named = error.filename if isinstance(error, OSError) else None
    return named or (match[1] if match else None)
