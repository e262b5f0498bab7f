"""Throttles refusals of calls without a valid key, by address."""

import asyncio
import collections

# Refusals per second and address.
_PER_SECOND = 20
# Longest delay of a refusal, well below the time after which clients give up on a server.
_MAX_DELAY_SECONDS = 10.0
# Most refusals that are delayed at a time, and most addresses that are tracked. Each delayed one
# holds a call open, so those beyond the limit are refused without delay.
_MAX_DELAYED = 1024


class RefusalThrottle:
    """Delays refusals, so that a client that retries in a loop takes no time from others.

    The refusals of an address are spaced evenly, `_PER_SECOND` a second. The first one after a
    pause has no delay; each further one waits for its turn. For one event loop.
    """

    def __init__(self) -> None:
        """Begins without any address."""
        # The time of each address's next turn, in the order of their last calls.
        self._turns: collections.OrderedDict[str, float] = collections.OrderedDict()
        self._num_delayed = 0

    async def wait_for_turn(self, address: str) -> None:
        """Waits until an address may be refused once more.

        Args:
            address: Address of the client.
        """
        seconds = self._reserve_turn(address, asyncio.get_running_loop().time())
        if seconds <= 0 or self._num_delayed >= _MAX_DELAYED:
            return
        self._num_delayed += 1
        try:
            await asyncio.sleep(seconds)
        finally:
            self._num_delayed -= 1

    def _reserve_turn(self, address: str, now: float) -> float:
        """Reserves the next turn of an address; returns the seconds until then."""
        turn = max(now, self._turns.pop(address, now))
        # Bounded by now, not by the turn, so that delays do not add up without end.
        self._turns[address] = min(turn + 1 / _PER_SECOND, now + _MAX_DELAY_SECONDS)
        # Forgets the addresses that called least recently, or the table would grow without end.
        while len(self._turns) > _MAX_DELAYED:
            self._turns.popitem(last=False)
        return turn - now
