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
        self._last = self._before = 0

    def add(self, number: int) -> None:
        """Takes a number, at least 0, that is observed now."""
        self._turn()
        self._last = max(self._last, number)

    def value(self) -> int:
        """Returns the largest, 0 if there is none."""
        self._turn()
        return max(self._last, self._before)

    def _turn(self) -> None:
        late = time.monotonic() - self._end
        if late < 0:
            return
        follows = late < self._seconds
        self._before, self._last = (self._last if follows else 0), 0
        self._end += self._seconds if follows else late + self._seconds
