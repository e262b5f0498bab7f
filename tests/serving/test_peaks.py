import pytest

from sigline.serving.server import peaks
from sigline.serving.server.peaks import Peak


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = 100.0

        def monotonic(self):
            return self.now

    clock = Clock()
    monkeypatch.setattr(peaks, "time", clock)
    return clock


def test_peak_is_the_largest_of_late(clock):
    peak = Peak(1.0)
    assert peak.value() == 0
    for number in (3, 8, 5):
        peak.add(number)
    assert peak.value() == 8


def test_number_counts_for_once_to_twice_the_time(clock):
    peak = Peak(1.0)
    peak.add(2)
    clock.now += 0.9
    peak.add(8)
    clock.now += 1.0
    peak.add(3)
    assert peak.value() == 8
    clock.now += 1.0
    assert peak.value() == 3
    clock.now += 1.0
    assert peak.value() == 0


def test_number_does_not_count_longer_if_it_is_seldom_asked_for(clock):
    peak = Peak(1.0)
    peak.add(8)
    clock.now += 1.9
    assert peak.value() == 8
    clock.now += 0.2
    assert peak.value() == 0


def test_nothing_is_kept_over_a_long_silence(clock):
    peak = Peak(1.0)
    peak.add(8)
    clock.now += 60.0
    assert peak.value() == 0
    peak.add(1)
    assert peak.value() == 1
