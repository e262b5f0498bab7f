"""Versions that come, go, fail and are told apart; the polls are made by hand."""

import shutil
import threading

import grpc
import numpy as np
import pytest
import small_servers as made

from sigline.components.publish import publishing
from sigline.serving.server.batching import BatchingConfig
from sigline.serving.server.failures import RequestFailed
from sigline.serving.server.model_config import ModelConfig, VersionPolicy
from sigline.serving.server.served_models import ServedModels
from sigline.serving.server.served_version import State

NAME = "m"


@pytest.fixture
def events():
    return []


@pytest.fixture
def start(events):
    """Starts managers whose own polls never come."""
    started = []

    def begin(base, policy=None, labels=None):
        manager = ServedModels(
            [ModelConfig(NAME, str(base), policy or VersionPolicy(), labels or {})],
            BatchingConfig(num_batch_threads=1),
            event=lambda name, **fields: events.append((name, fields)),
            poll_seconds=3600,
        )
        started.append(manager)
        manager.start()
        return manager

    yield begin
    for manager in started:
        manager.stop()


def _answer(manager, **asked):
    with manager.lease(NAME, **asked) as served:
        inputs = {"text": np.array([b"5"], object)}
        return served.submit("embed_text", inputs).result(30)["embedding"].tolist()[0]


def _states(manager):
    return {item.version: item.state for item in manager.statuses(NAME)}


def test_new_version_takes_over_and_the_old_one_ends(versions_base, start, events):
    manager = start(versions_base)
    assert _answer(manager) == [1.0, 5.0]
    made.write_version(versions_base, 2)
    manager.update()
    assert _answer(manager) == [2.0, 5.0]
    assert _states(manager) == {1: State.END, 2: State.AVAILABLE}
    assert [name for name, _ in events] == ["loaded", "loaded", "unloaded"]
    with pytest.raises(RequestFailed, match=r"Servable not found for request: Specific\(m, 1\)"):
        _answer(manager, version=1)


def test_request_in_flight_keeps_its_version(versions_base, start):
    manager = start(versions_base)
    made.write_version(versions_base, 2)
    with manager.lease(NAME) as served:
        looking = threading.Thread(target=manager.update)
        looking.start()
        while _states(manager)[1] == State.AVAILABLE:
            looking.join(0.01)
        assert _answer(manager) == [2.0, 5.0]
        inputs = {"text": np.array([b"5"], object)}
        found = served.submit("embed_text", inputs).result(30)
        assert found["embedding"].tolist() == [[1.0, 5.0]]
        assert looking.is_alive()
    looking.join(30)
    assert _states(manager) == {1: State.END, 2: State.AVAILABLE}


def test_rollback_is_taken_up(versions_base, start):
    made.write_version(versions_base, 2)
    manager = start(versions_base)
    assert _answer(manager) == [2.0, 5.0]
    assert publishing.rollback(versions_base, reason="worse") == [2]
    manager.update()
    assert _answer(manager) == [1.0, 5.0]
    publishing.restore(versions_base, 2)
    manager.update()
    assert _answer(manager) == [2.0, 5.0]


def test_damaged_version_does_not_take_over_and_is_told(versions_base, start, events):
    manager = start(versions_base)
    broken = made.write_version(versions_base, 2)
    content = (broken / "saved_model.pb").read_bytes()
    (broken / "saved_model.pb").write_bytes(content[:-1])
    manager.update()
    assert _answer(manager) == [1.0, 5.0]
    newest, serving = manager.statuses(NAME)
    assert (newest.version, newest.state) == (2, State.END)
    assert "does not match its manifest" in newest.error
    assert serving.state == State.AVAILABLE
    assert events[-1][0] == "load_failed"
    # Not tried again at once, but as soon as its files change.
    count = len(events)
    manager.update()
    assert len(events) == count
    (broken / "saved_model.pb").write_bytes(content)
    manager.update()
    assert _answer(manager) == [2.0, 5.0]


def test_version_that_is_being_copied_is_left_until_it_rests(versions_base, start, events):
    manager = start(versions_base)
    whole = made.write_version(versions_base.parent / "elsewhere", 2)
    target = versions_base / "2"
    target.mkdir()
    shutil.copytree(whole / "variables", target / "variables")
    manager.update()
    shutil.copy(whole / "saved_model.pb", target)
    manager.update()
    assert [name for name, _ in events] == ["loaded"]
    manager.update()
    assert _answer(manager) == [2.0, 5.0]


def test_model_without_its_variables_does_not_take_over(versions_base, start):
    manager = start(versions_base)
    whole = made.write_version(versions_base.parent / "elsewhere", 2)
    (versions_base / "2").mkdir()
    shutil.copy(whole / "saved_model.pb", versions_base / "2")
    manager.update()
    manager.update()
    assert _answer(manager) == [1.0, 5.0]
    assert "variables.index" in manager.statuses(NAME)[0].error


@pytest.mark.parametrize("how", ["empty", "away"])
def test_last_version_serves_on_where_the_folder_is(versions_base, start, events, how):
    manager = start(versions_base)
    if how == "empty":
        shutil.rmtree(versions_base / "1")
    else:
        versions_base.rename(versions_base.with_name("moved"))
    manager.update()
    manager.update()
    assert _answer(manager) == [1.0, 5.0]
    assert [name for name, _ in events] == ["loaded", "no_versions"]


def test_only_version_that_is_damaged_is_why_nothing_starts(versions_base, start):
    (versions_base / "1" / "saved_model.pb").write_bytes(b"x")
    with pytest.raises(ValueError, match="No version of m can be served: version 1: Version 1 doe"):
        start(versions_base)


def test_folder_without_versions_is_refused(tmp_path, start):
    with pytest.raises(ValueError, match="must hold a version directory such as"):
        start(tmp_path)


def test_labels_name_versions_and_move_when_the_target_serves(versions_base, start):
    made.write_version(versions_base, 2)
    policy, labels = VersionPolicy(None, (1, 2)), {"stable": 1, "canary": 2}
    manager = start(versions_base, policy, labels)
    assert _answer(manager, label="stable") == [1.0, 5.0]
    assert _answer(manager, label="canary") == [2.0, 5.0]
    with pytest.raises(RequestFailed, match="Unrecognized servable version label: x") as caught:
        _answer(manager, label="x")
    assert caught.value.code == grpc.StatusCode.INVALID_ARGUMENT
    # The target is not there yet: the label stays where it was, and its version too.
    later = ModelConfig(NAME, str(versions_base), VersionPolicy(None, (2, 3)), {"stable": 3})
    with pytest.raises(RequestFailed, match="label stable of m names version 3, which is not serv"):
        manager.reload([later])
    assert _answer(manager, label="stable") == [1.0, 5.0]
    made.write_version(versions_base, 3)
    manager.update()
    assert _answer(manager, label="stable") == [3.0, 5.0]
    assert _states(manager)[1] == State.END
    with pytest.raises(RequestFailed, match="label: canary"):
        _answer(manager, label="canary")


def test_models_are_replaced_by_a_new_config(versions_base, start, tmp_path):
    manager = start(versions_base)
    other = tmp_path / "other"
    made.write_version(other, 7)
    manager.reload([ModelConfig("n", str(other))])
    with manager.lease("n") as served:
        assert served.version == 7
    with pytest.raises(RequestFailed, match=r"Latest\(m\)"):
        _answer(manager)
    with pytest.raises(RequestFailed, match="must hold a version directory"):
        manager.reload([ModelConfig("p", str(tmp_path / "nothing"))])


def test_status_of_what_is_not_there_is_not_found(versions_base, start):
    manager = start(versions_base)
    for asked in (("x", None), (NAME, 9)):
        with pytest.raises(
            RequestFailed, match=r"Could not find (any versions|version 9) of model"
        ) as caught:
            manager.statuses(*asked)
        assert caught.value.code == grpc.StatusCode.NOT_FOUND


def _warm_up(version, *texts):
    import tensorflow as tf
    from tensorflow_serving.apis import prediction_log_pb2

    from sigline.schemas import signatures
    from sigline.serving.protocol import tensors

    folder = version / "assets.extra"
    folder.mkdir()
    with tf.io.TFRecordWriter(str(folder / signatures.WARMUP_FILE)) as writer:
        for text in texts:
            log = prediction_log_pb2.PredictionLog()
            log.predict_log.request.model_spec.signature_name = "embed_text"
            tensors.fill(log.predict_log.request.inputs["text"], np.array([text], object))
            writer.write(log.SerializeToString())


def test_warm_up_requests_are_run_before_a_version_serves(versions_base, start):
    manager = start(versions_base)
    base = versions_base.parent / "elsewhere"
    version = made.write_version(base, 2)
    (version / "sigline_manifest.json").unlink()
    _warm_up(version, b"1", b"not a number")
    shutil.copytree(version, versions_base / "2")
    manager.update()
    manager.update()
    assert _answer(manager) == [1.0, 5.0]
    assert "Warm-up request 1 of" in manager.statuses(NAME)[0].error
    version = made.write_version(base, 3)
    (version / "sigline_manifest.json").unlink()
    _warm_up(version, b"1", b"2")
    shutil.copytree(version, versions_base / "3")
    manager.update()
    manager.update()
    assert _answer(manager) == [3.0, 5.0]


def test_other_folder_of_the_same_name_is_another_model(versions_base, start, tmp_path):
    manager = start(versions_base)
    other = tmp_path / "other"
    made.write_version(other, 1, fails_on="5")
    manager.reload([ModelConfig(NAME, str(other))])
    with pytest.raises(RequestFailed, match="this text fails"):
        _answer(manager)


@pytest.mark.parametrize("content", ["no json", "[]"])
def test_metadata_that_cannot_be_read_is_why_a_version_does_not_serve(
    versions_base, start, content
):
    manager = start(versions_base)
    threads = threading.active_count()
    version = made.write_version(versions_base, 2)
    (version / "sigline_manifest.json").unlink()
    (version / "assets.extra").mkdir()
    (version / "assets.extra" / "sigline.json").write_text(content)
    for _ in range(3):
        manager.update()
    assert _answer(manager) == [1.0, 5.0]
    assert manager.statuses(NAME)[0].error
    assert threading.active_count() == threads


def test_folder_that_cannot_be_read_keeps_no_other_waiting(
    versions_base, tmp_path, events, monkeypatch
):
    from sigline.schemas import versions

    other = tmp_path / "other"
    made.write_version(other, 1)
    models = [ModelConfig("a", str(versions_base)), ModelConfig("b", str(other))]
    manager = ServedModels(
        models, BatchingConfig(), event=lambda name, **_: events.append(name), poll_seconds=3600
    )
    manager.start()
    find = versions.directories

    def refuse(base):
        if base == versions_base:
            raise PermissionError(f"not allowed: {base}")
        return find(base)

    monkeypatch.setattr(versions, "directories", refuse)
    made.write_version(other, 2)
    manager.update()
    with manager.lease("b") as served:
        assert served.version == 2
    with manager.lease("a") as served:
        assert served.version == 1
    assert "folder_not_read" in events
    manager.stop()
