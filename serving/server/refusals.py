"""Answers to those without a key, spread over time where one address asks again and again."""

import asyncio
import collections

# Refusals that an address gets a second, how long one is held back at most, and how many are held
# at a time; what comes beyond these is refused at once.
_A_SECOND, _MOST_SECONDS, _MOST_HELD = 20, 10.0, 1024


class Refusals:
    """Holds refusals back, so that who asks anew at each of them takes no time from others.

    The refusals of an address are spaced evenly, as many as `_A_SECOND` a second: the first of a
    pause is answered at once, each further one waits for its turn. For one event loop.
    """

    def __init__(self) -> None:
        """Begins with no address known."""
        # The time of each address's next turn, oldest call first.
        self._turns: collections.OrderedDict[str, float] = collections.OrderedDict()
        self._held = 0

    async def turn(self, address: str) -> None:
        """Waits until an address may be refused once more.

        Args:
            address: Who calls.
        """
        seconds = self._wait(address, asyncio.get_running_loop().time())
        if seconds <= 0 or self._held >= _MOST_HELD:
            return
        self._held += 1
        try:
            await asyncio.sleep(seconds)
        finally:
            self._held -= 1

    def _wait(self, address: str, now: float) -> float:
        """Returns the seconds until the turn of this call, and books it."""
        turn = max(now, self._turns.pop(address, now))
        self._turns[address] = min(turn + 1 / _A_SECOND, now + _MOST_SECONDS)
        while len(self._turns) > _MOST_HELD:
            self._turns.popitem(last=False)
        return turn - now
