"""Log lines of one kind, bounded a second: what strangers cause must not fill a disk."""

import logging
import threading

_LINES = 20


class BoundedLog(logging.Filter):
    """Lets some lines of a kind through each second; the next one says how many it left out.

    A kind is a logger and a message before its values are put in.
    """

    def __init__(self, lines: int = _LINES):
        """Lets `lines` of a kind through each second."""
        super().__init__()
        self._lines = lines
        self._lock = threading.Lock()
        self._counts: dict[tuple[str, str], tuple[int, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Returns whether a record is written; adds `left_out` to its fields where lines were."""
        kind, second = (record.name, str(record.msg)[:200]), int(record.created)
        with self._lock:
            if kind not in self._counts and len(self._counts) >= 1000:
                self._counts.clear()
            known, count = self._counts.get(kind, (second, 0))
            left_out = count - self._lines if known != second else 0
            count = 1 if known != second else count + 1
            self._counts[kind] = second, count
        if count > self._lines:
            return False
        if left_out > 0:
            record.fields = getattr(record, "fields", {}) | {"left_out": left_out}
        return True
