import threading
import time
from concurrent.futures import CancelledError, ThreadPoolExecutor

import grpc
import numpy as np
import pytest

from sigline.serving.server import batching
from sigline.serving.server.batching import Batcher, BatchingConfig
from sigline.serving.server.failures import RequestFailed


class Model:
    """Squares numbers, remembers its batches, and can be held back.

    Attributes:
        seconds: What a batch takes by the batcher's clock; no time passes for it.
        gates: Batches of these signatures end when theirs is released, one each time.
    """

    def __init__(self):
        self.batches = []
        self.free = threading.Event()
        self.free.set()
        self.entered = threading.Event()
        self.gates = {}
        self.seconds = self.passed = 0.0
        self.running = self.most = 0
        self._changed = threading.Condition()

    def clock(self):
        return time.monotonic() + self.passed

    def run(self, signature, inputs):
        with self._changed:
            self.running += 1
            self.most = max(self.most, self.running)
            self._changed.notify_all()
        self.entered.set()
        assert signature == "free" or self.free.wait(60)
        assert signature not in self.gates or self.gates[signature].acquire(timeout=60)
        with self._changed:
            self.running -= 1
            self.passed += self.seconds
        self.batches.append((signature, inputs["x"].tolist()))
        if "bad" in inputs["x"].tolist():
            raise RequestFailed(grpc.StatusCode.INVALID_ARGUMENT, "bad")
        return {"y": np.array([f"{x}{x}" for x in inputs["x"]], object)}

    def wait_until(self, holds):
        """Returns when a condition holds; fails after ten seconds."""
        with self._changed:
            # What waits in queues is told by nobody.
            for _ in range(2000):
                if holds():
                    return
                self._changed.wait(0.005)
        raise AssertionError(f"{self.running} are running, of {self.batches} before")


@pytest.fixture
def model():
    return Model()


def _batcher(model, merged=("merged",), **settings):
    config = BatchingConfig(**({"num_batch_threads": 1} | settings))
    return Batcher(model.run, config, merged=frozenset(merged), clock=model.clock)


def _of(*values):
    return {"x": np.array(values, object)}


def _held(model, batcher):
    """Keeps the model busy, so that what follows waits."""
    model.free.clear()
    model.entered.clear()
    thread = threading.Thread(target=batcher.submit, args=("held", _of("first")))
    thread.start()
    assert model.entered.wait(60)
    return thread


def _two_together(model, batcher, seconds):
    """Has two requests computed together, which takes a time."""
    thread = _held(model, batcher)
    both = [batcher.submit("merged", _of(x)) for x in "ab"]
    model.seconds = seconds
    model.free.set()
    for future in both:
        future.result(10)
    thread.join(10)
    model.seconds = 0.0


def test_lone_request_is_computed_alone_and_at_once(model):
    batcher = _batcher(model)
    assert batcher.submit("merged", _of("a", "b")).result(10)["y"].tolist() == ["aa", "bb"]
    assert model.batches == [("merged", ["a", "b"])]
    batcher.close()


def test_what_waits_is_computed_together_and_each_gets_its_own(model):
    batcher = _batcher(model)
    _held(model, batcher)
    futures = [batcher.submit("merged", _of(*map(str, range(i)))) for i in range(4)]
    model.free.set()
    for i, future in enumerate(futures):
        assert future.result(10)["y"].tolist() == [f"{x}{x}" for x in range(i)]
    assert model.batches[1:] == [("merged", ["0", "0", "1", "0", "1", "2"])]
    batcher.close()


def test_batch_is_no_larger_than_it_may_be(model):
    batcher = _batcher(model, max_batch_size=3)
    _held(model, batcher)
    futures = [batcher.submit("merged", _of("a", "b")) for _ in range(3)]
    larger = batcher.submit("merged", _of(*"abcde"))
    model.free.set()
    assert [len(f.result(10)["y"]) for f in (*futures, larger)] == [2, 2, 2, 5]
    assert [len(rows) for _, rows in model.batches[1:]] == [2, 2, 2, 5]
    batcher.close()


def test_signatures_that_are_not_merged_are_computed_one_by_one(model):
    batcher = _batcher(model)
    _held(model, batcher)
    futures = [batcher.submit("single", _of("a")) for _ in range(3)]
    model.free.set()
    assert [future.result(10)["y"].tolist() for future in futures] == [["aa"]] * 3
    assert len(model.batches) == 4
    batcher.close()


def test_signatures_take_turns(model):
    batcher = _batcher(model, merged=())
    _held(model, batcher)
    futures = [batcher.submit(name, _of(name)) for name in ("a", "a", "a", "b")]
    model.free.set()
    for future in futures:
        future.result(10)
    assert [name for name, _ in model.batches[1:]] == ["a", "b", "a", "a"]
    batcher.close()


def test_one_that_fails_costs_no_other_its_answer(model):
    batcher = _batcher(model)
    _held(model, batcher)
    good = batcher.submit("merged", _of("a"))
    bad = batcher.submit("merged", _of("bad"))
    last = batcher.submit("merged", _of("c"))
    model.free.set()
    assert good.result(10)["y"].tolist() == ["aa"]
    assert last.result(10)["y"].tolist() == ["cc"]
    with pytest.raises(RequestFailed, match="bad"):
        bad.result(10)
    batcher.close()


def test_signature_that_does_not_answer_by_row_is_not_answered_by_anothers(model):
    def distinct(signature, inputs):
        model.run(signature, inputs)
        return {"y": np.array(sorted(set(inputs["x"])), object)}

    batcher = Batcher(
        distinct, BatchingConfig(num_batch_threads=1), merged=frozenset(["merged", "held"])
    )
    _held(model, batcher)
    first, second = (batcher.submit("merged", _of(*x)) for x in ("bb", "ac"))
    model.free.set()
    assert first.result(10)["y"].tolist() == ["b"]
    assert second.result(10)["y"].tolist() == ["a", "c"]
    batcher.close()


def test_full_queue_refuses_and_goes_on(model):
    batcher = _batcher(model, max_enqueued_rows=3)
    _held(model, batcher)
    waiting = batcher.submit("merged", _of("a", "b"))
    with pytest.raises(RequestFailed, match="2 rows are waiting, of at most 3") as caught:
        batcher.submit("merged", _of("c", "d"))
    assert caught.value.code == grpc.StatusCode.RESOURCE_EXHAUSTED
    other = batcher.submit("other", _of("e"))
    assert batcher.waiting() == {"merged": 2, "other": 1}
    model.free.set()
    assert waiting.result(10)["y"].tolist() == ["aa", "bb"]
    assert other.result(10)["y"].tolist() == ["ee"]
    assert batcher.submit("merged", _of("c")).result(10)["y"].tolist() == ["cc"]
    batcher.close()


def test_request_past_its_deadline_is_not_computed(model):
    batcher = _batcher(model)
    _held(model, batcher)
    late = batcher.submit("merged", _of("late"), deadline=time.monotonic())
    fine = batcher.submit("merged", _of("fine"), deadline=time.monotonic() + 60)
    model.free.set()
    assert fine.result(10)["y"].tolist() == ["finefine"]
    with pytest.raises(RequestFailed, match="deadline") as caught:
        late.result(10)
    assert caught.value.code == grpc.StatusCode.DEADLINE_EXCEEDED
    assert model.batches[1:] == [("merged", ["fine"])]
    batcher.close()


def test_request_whose_client_has_gone_is_not_computed(model):
    batcher = _batcher(model)
    _held(model, batcher)
    gone = batcher.submit("single", _of("gone"))
    assert gone.cancel()
    fine = batcher.submit("single", _of("fine"))
    model.free.set()
    assert fine.result(10)["y"].tolist() == ["finefine"]
    with pytest.raises(CancelledError):
        gone.result(10)
    assert ("single", ["gone"]) not in model.batches
    batcher.close()


def test_batch_waits_for_more_if_it_is_told_to(model):
    batcher = _batcher(model, batch_timeout_seconds=30.0, max_batch_size=2)
    first = batcher.submit("merged", _of("a"))
    second = batcher.submit("merged", _of("b"))
    assert first.result(10)["y"].tolist() == ["aa"]
    assert second.result(10)["y"].tolist() == ["bb"]
    assert model.batches == [("merged", ["a", "b"])]
    batcher.close()


def test_batch_waits_for_as_many_requests_as_the_last_one_had(model, monkeypatch):
    monkeypatch.setattr(batching, "_MAX_PATIENCE_SECONDS", 30.0)
    monkeypatch.setattr(batching, "_RECENT_SECONDS", 60.0)
    batcher = _batcher(model)
    _two_together(model, batcher, 20.0)
    again = [batcher.submit("merged", _of("c"))]
    # It has been taken, and is not computed alone.
    model.wait_until(lambda: not batcher.waiting()["merged"])
    again.append(batcher.submit("merged", _of("d")))
    for future in again:
        future.result(10)
    # One of them does not come back: it is waited for once, no longer than the last one took.
    batcher.submit("merged", _of("e")).result(10)
    batcher.submit("merged", _of("f")).result(10)
    assert [rows for _, rows in model.batches[1:]] == [["a", "b"], ["c", "d"], ["e"], ["f"]]
    batcher.close()


def test_threads_do_not_take_each_others_requests(model):
    batcher = _batcher(model, num_batch_threads=4, batch_timeout_seconds=0.5, max_batch_size=4)
    futures = [batcher.submit("merged", _of(str(i))) for i in range(8)]
    for future in futures:
        future.result(10)
    assert sorted(len(rows) for _, rows in model.batches) == [4, 4]
    batcher.close()


def test_wait_for_more_ends_with_the_deadline(model):
    batcher = _batcher(model, batch_timeout_seconds=30.0)
    future = batcher.submit("merged", _of("a"), deadline=time.monotonic() + 0.2)
    assert future.result(10)["y"].tolist() == ["aa"]
    batcher.close()


def test_long_ago_says_nothing_of_how_many_come_together(model, monkeypatch):
    monkeypatch.setattr(batching, "_MAX_PATIENCE_SECONDS", 30.0)
    monkeypatch.setattr(batching, "_RECENT_SECONDS", 0.0)
    batcher = _batcher(model)
    _two_together(model, batcher, 60.0)
    # Would wait for 30 seconds.
    assert batcher.submit("merged", _of("c")).result(10)["y"].tolist() == ["cc"]
    batcher.close()


def test_other_signatures_do_not_wait_for_a_batch_to_fill(model, monkeypatch):
    monkeypatch.setattr(batching, "_MAX_PATIENCE_SECONDS", 30.0)
    monkeypatch.setattr(batching, "_RECENT_SECONDS", 60.0)
    batcher = _batcher(model)
    _two_together(model, batcher, 60.0)
    waiting = batcher.submit("merged", _of("c"))
    assert batcher.submit("single", _of("d")).result(10)["y"].tolist() == ["dd"]
    # Would wait for 30 seconds.
    assert waiting.result(0)["y"].tolist() == ["cc"]
    batcher.close()


def _computed_at_a_time(model, batcher, asked, at_least):
    """Asks by a thread each while the model is held; returns how many were computed at a time."""
    model.free.clear()
    threads = [threading.Thread(target=batcher.submit, args=(x, _of(x))) for x in asked]
    for thread in threads:
        thread.start()
    model.wait_until(lambda: model.running >= at_least)
    # All of them have come, and those that are not computed wait.
    model.wait_until(lambda: model.running + sum(batcher.waiting().values()) == len(asked))
    model.free.set()
    for thread in threads:
        thread.join(10)
    batcher.close()
    return model.most


def _both_held(model, batcher):
    """Keeps both threads busy."""
    model.free.clear()
    for value in "ab":
        batcher.submit("held", _of(value))
    model.wait_until(lambda: model.running == 2)


def _released(model, batches):
    """Lets what is held end, and then that many batches of `merged` once all are computed."""
    gate = model.gates["merged"] = threading.Semaphore(0)
    model.free.set()
    model.wait_until(
        lambda: [name for name, _ in model.batches] == ["held"] * 2 and model.running == batches
    )
    gate.release(batches)


def test_batches_that_take_long_share_what_waits(model, monkeypatch):
    monkeypatch.setattr(batching, "_LONG_BATCH_SECONDS", 0.0)
    batcher = _batcher(model, num_batch_threads=2, max_batch_size=6)
    _both_held(model, batcher)
    futures = [batcher.submit("merged", _of(str(i))) for i in range(7)]
    _released(model, 2)
    for i, future in enumerate(futures):
        assert future.result(10)["y"].tolist() == [f"{i}{i}"]
    assert sorted(len(rows) for name, rows in model.batches if name == "merged") == [3, 4]
    batcher.close()


@pytest.mark.parametrize(("limit", "at_a_time"), [(0.0, 4), (60.0, 2)])
def test_long_batches_use_all_threads_and_quick_ones_half(model, monkeypatch, limit, at_a_time):
    monkeypatch.setattr(batching, "_LONG_BATCH_SECONDS", limit)
    batcher = _batcher(model, num_batch_threads=4)
    assert _computed_at_a_time(model, batcher, "aaaaaa", at_a_time) == at_a_time
    assert len(model.batches) == 6


@pytest.mark.parametrize(
    ("settings", "requests", "sizes"),
    [
        ({"num_batch_threads": 2}, 9, [5, 4]),
        ({"num_batch_threads": 2}, 7, [7]),  # So few that a half costs as much.
        ({"num_batch_threads": 1}, 9, [9]),  # One core does one thing at a time.
        ({"num_batch_threads": 2, "batch_timeout_seconds": 0.2}, 9, [9]),
    ],
)
def test_quick_batches_are_halves_of_many(model, monkeypatch, settings, requests, sizes):
    monkeypatch.setattr(batching, "_LONG_BATCH_SECONDS", 60.0)
    batcher = _batcher(model, **settings)
    thread = _held(model, batcher)
    futures = [batcher.submit("merged", _of(str(i))) for i in range(requests)]
    model.free.set()
    for i, future in enumerate(futures):
        assert future.result(10)["y"].tolist() == [f"{i}{i}"]
    thread.join(10)
    assert [len(rows) for name, rows in model.batches if name == "merged"] == sizes
    batcher.close()


def test_quick_batch_waits_for_half_of_those_that_came_together(model, monkeypatch):
    monkeypatch.setattr(batching, "_LONG_BATCH_SECONDS", 60.0)
    monkeypatch.setattr(batching, "_MAX_PATIENCE_SECONDS", 30.0)
    monkeypatch.setattr(batching, "_RECENT_SECONDS", 60.0)
    batcher = _batcher(model, num_batch_threads=2)
    thread = _held(model, batcher)
    model.seconds = 20.0
    gate = model.gates["merged"] = threading.Semaphore(0)
    futures = [batcher.submit("merged", _of(str(i))) for i in range(8)]
    model.free.set()
    gate.release()
    for future in futures[:4]:
        future.result(10)
    model.wait_until(lambda: not batcher.waiting()["merged"])
    # Those that were answered come back while the others are computed, some of them later.
    again = [batcher.submit("merged", _of(x)) for x in "ab"]
    gate.release()
    for future in futures:
        future.result(10)
    # The first of them has been taken, and is not computed before more come.
    model.wait_until(lambda: batcher.waiting()["merged"] == 1)
    again += [batcher.submit("merged", _of(x)) for x in "cd"]
    gate.release()
    for future in again:
        future.result(10)
    thread.join(10)
    merged = [rows for name, rows in model.batches if name == "merged"]
    assert merged == [["0", "1", "2", "3"], ["4", "5", "6", "7"], ["a", "b", "c", "d"]]
    batcher.close()


def test_large_requests_are_not_left_over_by_shares(model, monkeypatch):
    monkeypatch.setattr(batching, "_LONG_BATCH_SECONDS", 0.0)
    batcher = _batcher(model, num_batch_threads=2, max_batch_size=64)
    _both_held(model, batcher)
    futures = [batcher.submit("merged", _of(*[str(i)] * 32)) for i in range(3)]
    _released(model, 2)
    for future in futures:
        assert len(future.result(10)["y"]) == 32
    assert sorted(len(rows) for name, rows in model.batches if name == "merged") == [32, 64]
    batcher.close()


def test_shares_do_not_wait_for_more_one_after_the_other(model, monkeypatch):
    monkeypatch.setattr(batching, "_LONG_BATCH_SECONDS", 0.0)
    batcher = _batcher(model, num_batch_threads=4, batch_timeout_seconds=0.5)
    gate = model.gates["merged"] = threading.Semaphore(0)
    futures = [batcher.submit("merged", _of(str(i))) for i in range(8)]
    # All four are computed at a time: the wait of one is the wait of all.
    model.wait_until(lambda: model.running == 4)
    gate.release(4)
    for future in futures:
        future.result(10)
    assert sorted(len(rows) for _, rows in model.batches) == [2, 2, 2, 2]
    batcher.close()


def test_end_lets_what_waits_for_its_turn_finish(model):
    batcher = _batcher(model, num_batch_threads=4)
    model.free.clear()
    with ThreadPoolExecutor(6) as pool:
        asked = [pool.submit(batcher.submit, "quick", _of(x)) for x in "abcdef"]
        model.wait_until(lambda: batcher.waiting().get("quick", 0) == 4)
        closing = threading.Thread(target=batcher.close)
        closing.start()
        model.free.set()
        closing.join(10)
        assert not closing.is_alive()
        assert {future.result(10).result(0)["y"][0] for future in asked} == {
            2 * x for x in "abcdef"
        }


def test_quick_request_does_not_wait_for_another_that_takes_long(model, monkeypatch):
    monkeypatch.setattr(batching, "_LONG_BATCH_SECONDS", 0.4)
    batcher = _batcher(model, num_batch_threads=2)
    model.seconds = 0.5
    batcher.submit("long", _of("a")).result(10)
    model.seconds = 0.0
    model.free.clear()
    model.entered.clear()
    waiting = batcher.submit("long", _of("b"))
    assert model.entered.wait(60)
    assert batcher.submit("free", _of("c")).result(10)["y"].tolist() == ["cc"]
    assert not waiting.done()
    model.free.set()
    assert waiting.result(10)["y"].tolist() == ["bb"]
    batcher.close()


def test_after_a_failure_requests_are_not_merged_for_a_while(model, monkeypatch):
    monkeypatch.setattr(batching, "_UNMERGED_SECONDS", 60.0)
    batcher = _batcher(model)
    for good, bad in (("a", "bad"), ("c", "bad")):
        thread = _held(model, batcher)
        futures = [batcher.submit("merged", _of(x)) for x in (good, bad, "z")]
        model.free.set()
        thread.join(10)
        assert futures[0].result(10)["y"].tolist() == [2 * good]
        assert futures[2].result(10)["y"].tolist() == ["zz"]
    rows = [rows for name, rows in model.batches if name == "merged"]
    assert rows == [["a", "bad", "z"], ["a"], ["bad"], ["z"], ["c"], ["bad"], ["z"]]
    batcher.close()


def test_end_lets_what_waits_finish(model):
    batcher = _batcher(model)
    first = _held(model, batcher)
    waiting = batcher.submit("merged", _of("a"))
    closing = threading.Thread(target=batcher.close)
    closing.start()
    model.free.set()
    closing.join(10)
    first.join(0)
    assert not first.is_alive()
    assert ("held", ["first"]) in model.batches
    assert waiting.result(0)["y"].tolist() == ["aa"]
    with pytest.raises(RequestFailed, match="unloaded") as caught:
        batcher.submit("merged", _of("late"))
    assert caught.value.code == grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize("limit", [0.0, 60.0])
def test_many_threads_get_their_own_answers(model, monkeypatch, limit):
    monkeypatch.setattr(batching, "_LONG_BATCH_SECONDS", limit)
    batcher = _batcher(model, num_batch_threads=5, max_batch_size=7)

    def ask(number):
        values = [f"{number}-{i}" for i in range(number % 5)]
        signature = ("merged", "single", "other")[number % 3]
        return batcher.submit(signature, _of(*values)).result(30)["y"].tolist(), values

    with ThreadPoolExecutor(16) as pool:
        for found, values in pool.map(ask, range(1500)):
            assert found == [f"{x}{x}" for x in values]
    batcher.close()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_batch_size": 0}, "max_batch_size must be at least 1"),
        ({"max_enqueued_rows": 0}, "max_enqueued_rows must be at least 1"),
        ({"batch_timeout_seconds": -1.0}, "must not be negative"),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        BatchingConfig(**settings)
