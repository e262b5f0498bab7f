"""Recognises the many errors that a full disk causes in libraries, and explains them."""

import errno
import re
from collections.abc import Iterator

from sigline.schemas import atomic

ADVICE = "Make room and run the same command again."

_NUMBERS = (errno.ENOSPC, errno.EDQUOT)
# Messages of Python, TensorFlow, shutil and SQLite for a full disk.
_WORDS = re.compile(r"No space left on device|Disk quota exceeded|database or disk is full")
# TensorFlow's message has the path before the reason.
_PATH = re.compile(r"(/[^\s;]+); (?:No space left|Disk quota)")


def sentence(error: BaseException) -> str | None:
    """Returns a sentence for an error that a full disk caused; None for any other error.

    Args:
        error: An exception; its causes are checked, too.
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
