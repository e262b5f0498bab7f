"""Places for requests whose message is on its way, so that who sends nothing keeps nobody out."""

import asyncio
import collections
from collections.abc import Coroutine
from typing import Any

import grpc

from sigline.serving.server.failures import RequestFailed

# How long a request may hold its place while another waits for one. Messages that were sent come
# much sooner: what is longer on its way is slow, or never comes.
_PATIENCE_SECONDS = 0.1


class Reading:
    """A bound on the messages that are read at a time; for one event loop.

    When all places are taken and a request waits for one, the request that has read longest gives
    way, of the client that reads most; and the request that came last is the next to read. So those
    who begin requests and never send them stand in each other's way only.
    """

    def __init__(self, places: int, *, patience_seconds: float = _PATIENCE_SECONDS):
        """Begins with all places free.

        Args:
            places: How many messages are read at a time.
            patience_seconds: How long a request keeps its place while others wait.
        """
        self._places = places
        self._patience_seconds = patience_seconds
        self._held: list[_Place] = []
        self._waiting: list[asyncio.Future[None]] = []
        self._timer: asyncio.TimerHandle | None = None

    async def read(self, client: str, message: Coroutine[Any, Any, Any], seconds: float) -> Any:
        """Returns a message, once it is there.

        Args:
            client: Who sends it.
            message: Reads it; is cancelled if it does not come.
            seconds: How long it may take, with the wait for a place.

        Raises:
            RequestFailed: DEADLINE_EXCEEDED if it does not come in time, RESOURCE_EXHAUSTED if it
                gave way to others.
        """
        place = None
        try:
            async with asyncio.timeout(seconds) as limit:
                await self._free_place()
                place = _Place(client, asyncio.get_running_loop().time(), limit)
                self._held.append(place)
                try:
                    return await message
                finally:
                    self._held.remove(place)
                    self._next()
        except TimeoutError:
            if place is None or not place.gave_way:
                raise RequestFailed(
                    grpc.StatusCode.DEADLINE_EXCEEDED, "The message did not arrive in time"
                ) from None
            raise RequestFailed(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                "The message did not arrive while others waited; send it again later",
            ) from None
        finally:
            # Python warns of a message that nobody has awaited.
            message.close()

    async def _free_place(self) -> None:
        if len(self._held) < self._places:
            return
        waiting: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(waiting)
        self._look_later()
        try:
            await waiting
        except asyncio.CancelledError:
            if waiting in self._waiting:
                self._waiting.remove(waiting)
            else:
                # The place that it was given is another's.
                self._next()
            raise

    def _next(self) -> None:
        """Gives a free place to the request that came last."""
        while self._waiting:
            waiting = self._waiting.pop()
            if not waiting.done():
                waiting.set_result(None)
                return

    def _look_later(self) -> None:
        if self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(self._patience_seconds, self._give_way)

    def _give_way(self) -> None:
        """Takes the places of those that read longest, one for each that waits."""
        self._timer = None
        now = asyncio.get_running_loop().time()
        counts = collections.Counter(place.client for place in self._held)
        slow = [x for x in self._held if now - x.since >= self._patience_seconds]
        slow = [x for x in slow if not x.gave_way]
        for _ in range(min(len(self._waiting), len(slow))):
            place = min(slow, key=lambda x: (-counts[x.client], x.since))
            counts[place.client] -= 1
            slow.remove(place)
            place.give_way(now)
        if self._waiting:
            self._look_later()


class _Place:
    """A request that reads, and since when."""

    def __init__(self, client: str, since: float, limit: asyncio.Timeout):
        self.client = client
        self.since = since
        self.gave_way = False
        self._limit = limit

    def give_way(self, now: float) -> None:
        """Ends the reading now, unless its time is over anyway."""
        if not self._limit.expired():
            self.gave_way = True
            self._limit.reschedule(now)
