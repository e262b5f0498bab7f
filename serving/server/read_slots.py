"""Limits how many messages are read at a time, so that silent clients do not block others."""

import asyncio
import collections
from collections.abc import Coroutine
from typing import Any

import grpc

from sigline.serving.server.failures import RequestFailed

# How long a request may keep its slot while another waits for one. A message that was sent arrives
# much sooner: one that takes longer is slow, or was never sent.
_PATIENCE_SECONDS = 0.1


class ReadSlots:
    """Slots for messages that are being read; for one event loop.

    When all slots are taken and a request waits, a slot is revoked: of the client with the most
    slots, the request that has been reading longest. The free slot goes to the request that arrived
    last. Clients that begin requests and never send them therefore only displace each other.
    """

    def __init__(self, num_slots: int, *, patience_seconds: float = _PATIENCE_SECONDS):
        """Begins with all slots free.

        Args:
            num_slots: Most messages that are read at a time.
            patience_seconds: How long a request keeps its slot while others wait.
        """
        self._num_slots = num_slots
        self._patience_seconds = patience_seconds
        self._taken: list[_Slot] = []
        self._waiting: list[asyncio.Future[None]] = []
        self._timer: asyncio.TimerHandle | None = None

    async def read(self, client: str, message: Coroutine[Any, Any, Any], seconds: float) -> Any:
        """Reads a message in a slot and returns it.

        Args:
            client: Name or address of the client.
            message: Reads the message; cancelled if it does not arrive.
            seconds: How long it may take, with the wait for a slot.

        Raises:
            RequestFailed: DEADLINE_EXCEEDED if it does not arrive in time, RESOURCE_EXHAUSTED if
                its slot was revoked.
        """
        slot = None
        try:
            async with asyncio.timeout(seconds) as limit:
                # The wait for a slot counts, so that a deadline holds for the whole request.
                await self._free_slot()
                slot = _Slot(client, asyncio.get_running_loop().time(), limit)
                self._taken.append(slot)
                try:
                    return await message
                finally:
                    self._taken.remove(slot)
                    self._admit_next()
        except TimeoutError:
            if slot is None or not slot.is_revoked:
                raise RequestFailed(
                    grpc.StatusCode.DEADLINE_EXCEEDED, "The message did not arrive in time"
                ) from None
            raise RequestFailed(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                "The message did not arrive while others waited; send it again later",
            ) from None
        finally:
            # Python warns of a coroutine that was never awaited, as when no slot became free.
            message.close()

    async def _free_slot(self) -> None:
        """Waits until a slot is free."""
        if len(self._taken) < self._num_slots:
            return
        waiting: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(waiting)
        self._revoke_later()
        try:
            await waiting
        except asyncio.CancelledError:
            if waiting in self._waiting:
                self._waiting.remove(waiting)
            else:
                # It was cancelled with a slot already assigned: another request can have it.
                self._admit_next()
            raise

    def _admit_next(self) -> None:
        """Assigns a free slot to the request that arrived last."""
        while self._waiting:
            # Last in, first out: under attack the latest request is the likeliest to be alive.
            waiting = self._waiting.pop()
            if not waiting.done():
                waiting.set_result(None)
                return

    def _revoke_later(self) -> None:
        if self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(self._patience_seconds, self._revoke_slots)

    def _revoke_slots(self) -> None:
        """Revokes slots of the slowest requests, one for each request that waits."""
        self._timer = None
        now = asyncio.get_running_loop().time()
        counts = collections.Counter(slot.client for slot in self._taken)
        slow = [x for x in self._taken if now - x.since >= self._patience_seconds]
        slow = [x for x in slow if not x.is_revoked]
        for _ in range(min(len(self._waiting), len(slow))):
            slot = min(slow, key=lambda x: (-counts[x.client], x.since))
            counts[slot.client] -= 1
            slow.remove(slot)
            slot.revoke(now)
        if self._waiting:
            self._revoke_later()


class _Slot:
    """A request that is being read: its client, and when it began."""

    def __init__(self, client: str, since: float, limit: asyncio.Timeout):
        self.client = client
        self.since = since
        self.is_revoked = False
        self._limit = limit

    def revoke(self, now: float) -> None:
        """Stops reading, unless its time is over anyway."""
        if not self._limit.expired():
            self.is_revoked = True
            self._limit.reschedule(now)
