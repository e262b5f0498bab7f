import pytest

from sigline.serving.server import sliding_maximum
from sigline.serving.server.sliding_maximum import SlidingMaximum


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = 100.0

        def monotonic(self):
            return self.now

    clock = Clock()
    monkeypatch.setattr(sliding_maximum, "time", clock)
    return clock


def test_value_is_the_largest_recent_number(clock):
    maximum = SlidingMaximum(1.0)
    assert maximum.value() == 0
    for number in (3, 8, 5):
        maximum.add(number)
    assert maximum.value() == 8


def test_number_counts_for_once_to_twice_the_time(clock):
    maximum = SlidingMaximum(1.0)
    maximum.add(2)
    clock.now += 0.9
    maximum.add(8)
    clock.now += 1.0
    maximum.add(3)
    assert maximum.value() == 8
    clock.now += 1.0
    assert maximum.value() == 3
    clock.now += 1.0
    assert maximum.value() == 0


def test_number_does_not_count_longer_if_the_value_is_seldom_read(clock):
    maximum = SlidingMaximum(1.0)
    maximum.add(8)
    clock.now += 1.9
    assert maximum.value() == 8
    clock.now += 0.2
    assert maximum.value() == 0


def test_nothing_is_kept_over_a_long_silence(clock):
    maximum = SlidingMaximum(1.0)
    maximum.add(8)
    clock.now += 60.0
    assert maximum.value() == 0
    maximum.add(1)
    assert maximum.value() == 1
