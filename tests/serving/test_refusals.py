"""Tests of the pace at which callers without a key are refused."""

import asyncio

import pytest

from sigline.serving.server import refusals


@pytest.fixture
def slept(monkeypatch):
    """Returns the seconds that were slept, without the time that takes."""
    seconds = []

    async def _sleep(delay):
        seconds.append(delay)

    monkeypatch.setattr(refusals.asyncio, "sleep", _sleep)
    return seconds


def test_first_refusal_is_at_once(slept):
    async def _calls():
        pace = refusals.RefusalThrottle()
        for number in range(50):
            await pace.wait_for_turn(f"ipv4:10.0.0.{number}")

    asyncio.run(_calls())
    assert slept == []


def test_refusals_of_one_address_are_spaced_and_bounded(slept, monkeypatch):
    async def _calls():
        monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: 100.0)
        pace = refusals.RefusalThrottle()
        for _ in range(300):
            await pace.wait_for_turn("ipv4:10.0.0.1")
        await pace.wait_for_turn("ipv4:10.0.0.2")

    asyncio.run(_calls())
    spaced = [number / 20 for number in range(1, 200)]
    assert slept == pytest.approx(spaced + [10.0] * 100)


def test_pause_is_forgiven(slept, monkeypatch):
    async def _calls():
        loop, pace = asyncio.get_running_loop(), refusals.RefusalThrottle()
        for now in (100.0, 100.0, 200.0):
            monkeypatch.setattr(loop, "time", lambda now=now: now)
            await pace.wait_for_turn("ipv4:10.0.0.1")

    asyncio.run(_calls())
    assert slept == pytest.approx([0.05])


def test_no_more_than_so_many_are_held(monkeypatch):
    monkeypatch.setattr(refusals, "_MAX_DELAYED", 4)

    async def _calls():
        pace = refusals.RefusalThrottle()
        calls = [asyncio.create_task(pace.wait_for_turn("ipv4:10.0.0.1")) for _ in range(5)]
        await asyncio.sleep(0)
        delayed = pace._num_delayed
        # The first was at once; the places of four are taken.
        await asyncio.wait_for(pace.wait_for_turn("ipv4:10.0.0.1"), 60)
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        return delayed, pace._num_delayed

    assert asyncio.run(_calls()) == (4, 0)
