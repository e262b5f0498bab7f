"""Maximum of a number over a sliding window of time."""

import time


class SlidingMaximum:
    """Maximum of the numbers of a recent window, kept as the maxima of two spans of time.

    Two spans instead of a list of observations make `add` and `value` constant in time and memory.
    The price is that a number leaves the window late, after one to two spans.
    """

    def __init__(self, seconds: float):
        """Begins with an empty window.

        Args:
            seconds: Length of a span: a number counts for at least as long, and at most twice as
                long.
        """
        self._seconds = seconds
        self._span_end = 0.0
        self._current = self._previous = 0

    def add(self, number: int) -> None:
        """Takes a number, at least 0, that is observed now."""
        self._advance()
        self._current = max(self._current, number)

    def value(self) -> int:
        """Returns the maximum of the window, 0 if it is empty."""
        self._advance()
        return max(self._current, self._previous)

    def _advance(self) -> None:
        """Begins a new span if the current one has ended."""
        overdue = time.monotonic() - self._span_end
        if overdue < 0:
            return
        # After a pause of more than a span, the last span is no longer recent.
        is_adjacent = overdue < self._seconds
        self._previous, self._current = (self._current if is_adjacent else 0), 0
        self._span_end += self._seconds if is_adjacent else overdue + self._seconds
