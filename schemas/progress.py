"""Progress of a command on standard error: a line for each part, which ends with its duration.

Nothing is printed outside of `shown`. A terminal shows a live line; a log file or another program
gets a line whenever none was printed for some seconds.

Example:
    with progress.part("read", total=len(files), unit="files"):
        for path in files:
            read(path)
            progress.advance()
"""

import contextlib
import os
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

# Seconds between two lines of a log, and between two updates. Below five seconds together, even if
# a busy machine delays an update.
_LOG_SECONDS, _BEAT_SECONDS = 4.0, 0.5
# A part that takes less time gets one line, at its end, or none.
_BRIEF_SECONDS = 1.0
# Least time for an estimate of the remaining time: over less time, the rate is too uncertain.
_ESTIMATE_SECONDS = 5.0
_CLEAR = "\r\033[K"
# Environment variable that, if set, keeps a process and its children from showing progress.
QUIET_VARIABLE = "SIGLINE_QUIET"


@dataclass(eq=False)
class _Part:
    name: str
    total: int | None
    unit: str
    is_silent_if_brief: bool
    started: float
    count: int
    # Time and count of the first `advance`. The rate is measured from there, since programs are
    # compiled before it.
    counted: tuple[float, int] | None = None
    note: str = ""
    is_announced: bool = False

    def how_far(self) -> list[str]:
        """Returns the count and the note, if any."""
        words = []
        if self.total is not None:
            words.append(f"{self.count:,} of {self.total:,} {self.unit}".rstrip())
        elif self.count:
            words.append(f"{self.count:,} {self.unit}".rstrip())
        return [*words, *([self.note] if self.note else [])]

    def seconds_left(self) -> float | None:
        """Returns an estimate from the rate so far; None if there is none yet."""
        if self.total is None or self.counted is None:
            return None
        spent, done = time.monotonic() - self.counted[0], self.count - self.counted[1]
        if done < 1 or spent < _ESTIMATE_SECONDS:
            return None
        return (self.total - self.count) * spent / done


class _Screen:
    """Standard error, as a terminal or as a file of lines, and the thread that writes to it."""

    def __init__(self, descriptor: int):
        # A duplicate, since standard error is redirected while libraries are imported.
        self._descriptor = os.dup(descriptor)
        self._is_terminal = os.isatty(self._descriptor)
        self._written = time.monotonic()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._stopped.set()
        self._thread.join()
        os.close(self._descriptor)

    def write(self, line: str, *, is_last: bool) -> None:
        """Writes a line; on a terminal, the next line replaces it, unless it is the last."""
        self._written = time.monotonic()
        # A closed stream must not end a training.
        with contextlib.suppress(OSError):
            if self._is_terminal:
                columns = os.get_terminal_size(self._descriptor).columns or 80
                line = _CLEAR + (f"{line}\n" if is_last else line[: columns - 1])
            else:
                line = f"{line}\n"
            os.write(self._descriptor, line.encode(errors="replace"))

    def _beat(self) -> None:
        every = _BEAT_SECONDS if self._is_terminal else _LOG_SECONDS
        while not self._stopped.wait(_BEAT_SECONDS):
            with _LOCK:
                if not _PARTS:
                    continue
                now, outermost = time.monotonic(), _PARTS[0]
                is_new = not outermost.is_announced and now - outermost.started >= _BRIEF_SECONDS
                if is_new or (outermost.is_announced and now - self._written >= every):
                    outermost.is_announced = True
                    self.write(_line(), is_last=False)


_LOCK = threading.RLock()
# The parts that are running, the outermost first.
_PARTS: list[_Part] = []
_screen: _Screen | None = None


@contextlib.contextmanager
def shown(*, quiet: bool = False) -> Iterator[None]:
    """Shows progress in this context; does nothing inside of another such context.

    Args:
        quiet: Whether to show nothing, in this process and in its child processes.
    """
    global _screen
    if quiet:
        with _quiet_environment():
            yield
        return
    descriptor = None
    if _screen is None and not os.environ.get(QUIET_VARIABLE):
        # Standard error may have been replaced by an object that is not a file, or be closed.
        with contextlib.suppress(OSError, ValueError, AttributeError):
            descriptor = sys.stderr.fileno()
    if descriptor is None:
        yield
        return
    _screen = _Screen(descriptor)
    try:
        yield
    finally:
        _screen.close()
        _screen = None


@contextlib.contextmanager
def _quiet_environment() -> Iterator[None]:
    before = os.environ.get(QUIET_VARIABLE)
    os.environ[QUIET_VARIABLE] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[QUIET_VARIABLE]
        else:
            os.environ[QUIET_VARIABLE] = before


@contextlib.contextmanager
def part(
    name: str,
    *,
    total: int | None = None,
    unit: str = "",
    first: int = 0,
    is_silent_if_brief: bool = True,
) -> Iterator[None]:
    """Shows the beginning, progress and duration of a part of the work.

    A part inside of another one shares its line. Parts belong to the process, not to a thread.

    Args:
        name: Name of the part.
        total: Final count of `advance`; None if it is unknown.
        unit: What is counted, in the plural.
        first: Count at the beginning, of a part that is resumed.
        is_silent_if_brief: Whether a part of less than a second leaves no line.
    """
    now = time.monotonic()
    new_part = _Part(name, total, unit, is_silent_if_brief, now, first)
    with _LOCK:
        _PARTS.append(new_part)
    ending = "failed after"
    try:
        yield
        ending = "done in"
    finally:
        with _LOCK:
            _PARTS.remove(new_part)
            spent = time.monotonic() - now
            is_worth_a_line = spent >= _BRIEF_SECONDS or not is_silent_if_brief
            if _screen is not None and not _PARTS and is_worth_a_line:
                if new_part.total is None:
                    # Without a total, the last note says nothing about the part as a whole.
                    new_part.note = ""
                words = [*new_part.how_far(), f"{ending} {duration(spent)}"]
                _screen.write(f"{name}: {', '.join(words)}", is_last=True)


def advance(count: int = 1, unit: str = "") -> None:
    """Adds to the count of the innermost part; does nothing without a part.

    Args:
        count: Number to add.
        unit: What is counted, for a part that was begun without a unit.
    """
    with _LOCK:
        if _PARTS:
            innermost = _PARTS[-1]
            innermost.count += count
            innermost.unit = innermost.unit or unit
            innermost.counted = innermost.counted or (time.monotonic(), innermost.count)


def note(text: str) -> None:
    """Sets the note of the innermost part, which says what it is doing."""
    with _LOCK:
        if _PARTS:
            _PARTS[-1].note = text


def duration(seconds: float) -> str:
    """Formats a duration: `0.3 s`, `42 s`, `3 min 20 s`, `2 h 5 min`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 1:
        return f"{rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def _line() -> str:
    """Returns the line of all parts that are running."""
    names = ", ".join(item.name for item in _PARTS)
    # The innermost part that has something to say.
    words = next((words for item in reversed(_PARTS) if (words := item.how_far())), [])
    words.append(duration(time.monotonic() - _PARTS[0].started))
    left = _PARTS[-1].seconds_left()
    if left is not None:
        words.append(f"about {duration(left)} left")
    return f"{names}: {', '.join(words)}"
