"""How many there were of late."""

import time


class Peak:
    """The largest of the numbers that were observed in the recent past."""

    def __init__(self, seconds: float):
        """Remembers nothing yet.

        Args:
            seconds: A number counts for at least as long, and at most twice as long.
        """
        self._seconds = seconds
        # Largest of the span of time that ends then, and of the one before.
        self._end = 0.0
        self._now = self._before = 0

    def add(self, number: int) -> None:
        """Takes a number, at least 0, that is observed now."""
        self._turn()
        self._now = max(self._now, number)

    def value(self) -> int:
        """Returns the largest, 0 if there is none."""
        self._turn()
        return max(self._now, self._before)

    def _turn(self) -> None:
        now = time.monotonic()
        if now >= self._end:
            self._before = self._now if now < self._end + self._seconds else 0
            self._now, self._end = 0, now + self._seconds
