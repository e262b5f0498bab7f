"""Rate limit of log lines, so that lines that anyone can cause do not fill the disk."""

import logging
import threading

_MAX_LINES = 20
# Most kinds that are counted at a time, since a kind may depend on what clients send.
_MAX_KINDS = 1000


class BoundedLog(logging.Filter):
    """Passes a number of lines of each kind per second; the next line counts those left out.

    A kind is a logger and a message template, before values are filled in.
    """

    def __init__(self, max_lines: int = _MAX_LINES):
        """Passes at most `max_lines` of each kind per second."""
        super().__init__()
        self._max_lines = max_lines
        self._lock = threading.Lock()
        self._counts: dict[tuple[str, str], tuple[int, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Returns whether to write a record; adds the count `left_out` to its fields if not 0."""
        kind, second = (record.name, str(record.msg)[:200]), int(record.created)
        with self._lock:
            if kind not in self._counts and len(self._counts) >= _MAX_KINDS:
                # Forgetting all counts lets a few lines more through, and needs no bookkeeping.
                self._counts.clear()
            counted_second, count = self._counts.get(kind, (second, 0))
            left_out = count - self._max_lines if counted_second != second else 0
            count = 1 if counted_second != second else count + 1
            self._counts[kind] = second, count
        if count > self._max_lines:
            return False
        if left_out > 0:
            record.fields = getattr(record, "fields", {}) | {"left_out": left_out}
        return True
