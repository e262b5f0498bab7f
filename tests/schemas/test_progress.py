"""What is shown of a command's parts; the clock and the stream are stand-ins."""

import itertools
import os
import threading

import pytest

from sigline.schemas import progress


@pytest.fixture
def clock(monkeypatch):
    """The seconds since the beginning, which a test sets."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"),
        (9.94, "9.9 s"),
        (42.4, "42 s"),
        (59.6, "1 min 0 s"),
        (200, "3 min 20 s"),
        (7500, "2 h 5 min"),
    ],
)
def test_durations_are_readable(seconds, text):
    assert progress.duration(seconds) == text


def test_a_line_says_how_far_all_parts_are(clock):
    with progress.part("Trainer (9 of 14)"), progress.part("train", total=1800, unit="steps"):
        clock[0] += 20
        progress.advance()
        progress.note("loss 1.903")
        clock[0] += 30
        progress.advance(449)
        # 449 steps in 30 seconds; the first one, which compiles, tells nothing of the rest.
        assert progress._line() == (
            "Trainer (9 of 14), train: 450 of 1,800 steps, loss 1.903, 50 s, about 1 min 30 s left"
        )


def test_what_was_done_before_does_not_count_for_the_rate(clock):
    with progress.part("train", total=100, unit="steps", first=90):
        progress.advance()
        clock[0] += 20
        progress.advance(4)
        assert progress._line() == "train: 95 of 100 steps, 20 s, about 25 s left"


def test_a_count_without_a_total_has_no_estimate(clock):
    with progress.part("IngestExamples", unit="pairs"):
        progress.advance(4000)
        clock[0] += 60
        assert progress._line() == "IngestExamples: 4,000 pairs, 1 min 0 s"


def test_a_part_ends_with_its_time_on_one_line(capfd, clock):
    with progress.shown():
        with progress.part("ingest", unit="pairs"):
            progress.advance(3)
            clock[0] += 12
        with progress.part("brief"):
            clock[0] += 0.5
        with progress.part("node", is_silent_if_brief=False):
            clock[0] += 0.5
    assert capfd.readouterr().err == "ingest: 3 pairs, done in 12 s\nnode: done in 0.5 s\n"


def test_a_part_that_fails_says_so(capfd, clock):
    def fail():
        with progress.part("ingest"):
            clock[0] += 12
            raise RuntimeError

    with progress.shown(), pytest.raises(RuntimeError):
        fail()
    assert capfd.readouterr().err == "ingest: failed after 12 s\n"


@pytest.mark.parametrize("quiet", [True, False])
def test_nothing_is_shown_unless_it_is_asked_for(capfd, clock, quiet):
    with progress.shown(quiet=True) if quiet else progress.part("outer"):
        progress.advance()
        with progress.part("inner", is_silent_if_brief=False):
            clock[0] += 12
    assert capfd.readouterr() == ("", "")


class _Beats:
    """Stands for the event that ends the thread, and calls a test in place of waiting."""

    def __init__(self, beat):
        self._beat, self._seconds = beat, 0.0

    def wait(self, seconds):
        self._seconds += seconds
        return self._beat(self._seconds)

    def set(self):
        pass


def _lines(monkeypatch, clock, *, until):
    """Returns when lines of a part that does nothing come, in a file."""
    monkeypatch.setattr(threading.Thread, "start", lambda self: None)
    monkeypatch.setattr(threading.Thread, "join", lambda self: None)
    times, reader, writer = [], *os.pipe()
    screen = progress._Screen(writer)

    def beat(seconds):
        clock[0] = 100 + seconds
        return seconds > until

    screen._stopped = _Beats(beat)
    write = screen.write

    def recorded(line, **options):
        times.append(clock[0] - 100)
        write(line, **options)

    screen.write = recorded
    with progress.part("Trainer"):
        screen._beat()
    screen.close()
    os.close(writer)
    with os.fdopen(reader) as lines:
        return times, lines.read().splitlines()


def test_no_silence_is_longer_than_five_seconds(monkeypatch, clock):
    times, lines = _lines(monkeypatch, clock, until=60)
    assert lines[0] == "Trainer: 1.0 s"
    assert max(late - early for early, late in itertools.pairwise(times)) < 5
    assert 60 - times[-1] < 5
    # As few as that takes.
    assert len(lines) <= 16


def test_a_terminal_gets_one_live_line(clock):
    reader, writer = os.openpty()
    screen = progress._Screen(writer)
    screen.write("ingest: 1 s", is_last=False)
    screen.write("ingest: done in 2 s", is_last=True)
    screen.close()
    text = os.read(reader, 1000).decode()
    os.close(reader)
    os.close(writer)
    assert text == "\r\x1b[Kingest: 1 s\r\x1b[Kingest: done in 2 s\r\n"


def test_quiet_holds_for_the_processes_that_are_started_meanwhile(capfd, clock, monkeypatch):
    monkeypatch.delenv(progress.QUIET_VARIABLE, raising=False)
    with progress.shown(quiet=True):
        inherited = os.environ[progress.QUIET_VARIABLE]
    assert progress.QUIET_VARIABLE not in os.environ
    monkeypatch.setenv(progress.QUIET_VARIABLE, inherited)
    with progress.shown(), progress.part("node", is_silent_if_brief=False):
        pass
    assert capfd.readouterr() == ("", "")
