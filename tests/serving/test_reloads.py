"""Model configs that change: what served goes on serving until what replaces it does."""

import os
import shutil
import threading

import numpy as np
import pytest
import small_servers as made

from sigline.serving.server.batching import BatchingConfig
from sigline.serving.server.failures import RequestFailed
from sigline.serving.server.model_config import ModelConfig, VersionPolicy
from sigline.serving.server.served_models import ServedModels
from sigline.serving.server.served_version import State


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """Folders with versions 1 and 2, each for itself; tests do not change them."""
    folder = tmp_path_factory.mktemp("bases")
    for name, number in (("one", 1), ("two", 2)):
        made.write_version(folder / name, number)
    return folder


class _Manager:
    """Models of folders, and the events that they told."""

    def __init__(self, *configs):
        self.events = []
        self.models = ServedModels(
            [ModelConfig(*config) for config in configs],
            BatchingConfig(num_batch_threads=1),
            event=lambda name, **fields: self.events.append((name, fields)),
            poll_seconds=3600,
        )
        self.models.start()

    def reload(self, *configs, **options):
        self.models.reload([ModelConfig(*config) for config in configs], **options)

    def refusal(self, *configs, **options):
        with pytest.raises(RequestFailed) as caught:
            self.reload(*configs, **options)
        return caught.value.code.name, str(caught.value)

    def answer(self, name, **asked):
        with self.models.lease(name, **asked) as served:
            inputs = {"text": np.array([b"5"], object)}
            return served.submit("embed_text", inputs).result(30)["embedding"].tolist()[0]

    def names(self):
        return [name for name, _ in self.events]


@pytest.fixture
def start():
    started = []

    def begin(*configs):
        started.append(_Manager(*configs))
        return started[-1]

    yield begin
    for manager in started:
        manager.models.stop()


def _damaged(bases, folder):
    shutil.copytree(bases / "two", folder)
    os.truncate(folder / "2" / "saved_model.pb", 100)
    return folder


def _file(bases, path):
    path.write_text("x")
    return path


def _empty(bases, path):
    path.mkdir()
    return path


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda bases, path: path, "base_path must hold a version directory"),
        (_empty, "base_path must hold a version directory"),
        (_file, "base_path must hold a version directory"),
        (_damaged, "version 2: Version 2 does not match its manifest"),
    ],
    ids=["away", "empty", "file", "damaged"],
)
def test_folder_that_cannot_be_served_changes_nothing(bases, tmp_path, start, make, reason):
    manager, path = start(("m", str(bases / "one"))), tmp_path / "new"
    make(bases, path)
    code, message = manager.refusal(("m", str(path)))
    assert code == "FAILED_PRECONDITION"
    assert reason in message
    assert str(path) in message
    assert f"{bases / 'one'} goes on serving" in message
    assert manager.answer("m") == [1.0, 5.0]
    assert manager.models.ready()
    assert {"no_versions", "load_failed"} & set(manager.names())
    # As long as nothing changes it is told once.
    count = len(manager.events)
    manager.models.update()
    assert len(manager.events) == count
    # It takes over as soon as it can be served.
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    shutil.copytree(bases / "two", path)
    manager.models.update()
    assert manager.answer("m") == [2.0, 5.0]
    assert manager.names()[-3:] == ["loaded", "folder_changed", "unloaded"]


@pytest.mark.parametrize("how", ["slash", "dot", "parent", "relative", "link", "twice"])
def test_other_name_of_the_same_folder_loads_nothing(bases, tmp_path, start, monkeypatch, how):
    manager, base = start(("m", str(bases / "one"))), str(bases / "one")
    monkeypatch.chdir(bases)
    (tmp_path / "link").symlink_to(base)
    path = {
        "slash": base + "/",
        "dot": base + "/.",
        "parent": base + "/../one",
        "relative": "one",
        "link": str(tmp_path / "link"),
        "twice": base.replace("/one", "//one"),
    }[how]
    with manager.models.lease("m") as served:
        # Would not return if the version were unloaded: this request holds it.
        manager.reload(("m", path))
    with manager.models.lease("m") as after:
        assert after is served
    assert manager.names() == ["loaded"]


def test_good_folder_takes_over_and_the_old_one_ends(bases, start):
    manager = start(("m", str(bases / "one")))
    manager.reload(("m", str(bases / "two")))
    assert manager.answer("m") == [2.0, 5.0]
    assert [x.version for x in manager.models.statuses("m")] == [2]
    manager.models.update()
    assert manager.names() == ["loaded", "loaded", "folder_changed", "unloaded"]


def test_labels_are_kept_until_the_new_folder_has_them(bases, tmp_path, start):
    one, base = VersionPolicy(None, (1,)), tmp_path / "new"
    shutil.copytree(bases / "two", base)
    manager = start(("m", str(bases / "one"), one, {"stable": 1}))
    both = VersionPolicy(None, (2, 3))
    _, message = manager.refusal(("m", str(base), both, {"stable": 3}))
    assert "label stable of m names version 3, which is not served" in message
    assert manager.answer("m", label="stable") == [1.0, 5.0]
    made.write_version(base, 3)
    manager.models.update()
    assert manager.answer("m", label="stable") == [3.0, 5.0]


def test_model_with_an_empty_folder_does_not_make_another_unready(bases, tmp_path, start):
    manager = start(("m", str(bases / "one")))
    code, message = manager.refusal(("m", str(bases / "one")), ("n", str(tmp_path)))
    assert code == "FAILED_PRECONDITION"
    assert message == (
        "base_path must hold a version directory such as 1/saved_model.pb. "
        f"Received: base_path={tmp_path} of model n"
    )
    assert manager.models.ready()
    assert manager.answer("m") == [1.0, 5.0]


def test_server_starts_with_the_models_that_can_be_served(bases, tmp_path, start):
    manager = start(("m", str(bases / "one")), ("n", str(tmp_path)))
    assert manager.models.ready()
    assert manager.answer("m") == [1.0, 5.0]
    assert manager.names() == ["loaded", "no_versions", "model_not_served"]
    assert list(manager.models.not_served()) == ["n"]
    with pytest.raises(ValueError, match=r"a/b of model m; .*c/d of model n"):
        start(("m", "a/b"), ("n", "c/d"))


def test_renamed_model_serves_by_its_old_name_until_the_new_one_does(bases, tmp_path, start):
    manager = start(("old", str(bases / "one")))
    _, message = manager.refusal(("new", str(tmp_path)))
    assert message.endswith("old goes on serving until the others do")
    assert manager.answer("old") == [1.0, 5.0]
    manager.reload(("new", str(bases / "one")))
    assert manager.answer("new") == [1.0, 5.0]
    with pytest.raises(RequestFailed, match=r"Latest\(old\)"):
        manager.answer("old")


def test_models_that_swap_their_folders_answer_by_the_new_ones(bases, start):
    one, two = str(bases / "one"), str(bases / "two")
    manager = start(("m", one), ("n", two))
    manager.reload(("m", two), ("n", one))
    assert manager.answer("m") == [2.0, 5.0]
    assert manager.answer("n") == [1.0, 5.0]


def test_config_without_models_ends_them_all_and_one_with_models_begins_again(bases, start):
    manager = start(("m", str(bases / "one")))
    manager.reload()
    assert manager.models.served() == {}
    assert manager.models.ready()
    manager.reload(("m", str(bases / "one")))
    assert manager.answer("m") == [1.0, 5.0]


def test_config_that_goes_back_before_the_other_folder_serves_loads_nothing(bases, tmp_path, start):
    manager, base = start(("m", str(bases / "one"))), str(bases / "one")
    manager.refusal(("m", str(tmp_path)))
    manager.reload(("m", base))
    shutil.copytree(bases / "two" / "2", tmp_path / "2")
    manager.models.update()
    assert manager.answer("m") == [1.0, 5.0]
    assert manager.names().count("loaded") == 1


def test_policy_that_names_a_version_that_is_away_is_told_and_changes_nothing(bases, start):
    manager, base = start(("m", str(bases / "one"))), str(bases / "one")
    _, message = manager.refusal(("m", base, VersionPolicy(None, (9,))))
    assert "the policy of m names version 9, which is not served" in message
    assert manager.answer("m") == [1.0, 5.0]


@pytest.mark.parametrize("how", ["away", "empty", "other"])
def test_folder_that_goes_while_it_serves_costs_nothing(bases, tmp_path, start, how):
    base = tmp_path / "base"
    shutil.copytree(bases / "one", base)
    manager = start(("m", str(base)))
    shutil.rmtree(base)
    if how != "away":
        base.mkdir()
    if how == "other":
        (base / "readme.txt").touch()
    manager.models.update()
    manager.models.update()
    assert manager.answer("m") == [1.0, 5.0]
    assert manager.names() == ["loaded", "no_versions"]
    # Back, as it was and newer.
    shutil.copytree(bases / "two", base, dirs_exist_ok=True)
    manager.models.update()
    assert manager.answer("m") == [2.0, 5.0]


def test_last_of_many_quick_reloads_holds(bases, start):
    manager = start(("m", str(bases / "one")))
    outcomes, threads = [], []

    def reload(name):
        try:
            manager.reload(("m", str(bases / name)))
            outcomes.append("OK")
        except RequestFailed as failure:
            outcomes.append(failure.code.name)

    for name in ("two", "one", "away", "two", "one", "away", "one", "two"):
        threads.append(threading.Thread(target=reload, args=(name,)))
        threads[-1].start()
    for thread in threads:
        thread.join()
    manager.reload(("m", str(bases / "two")))
    assert len(outcomes) == 8
    assert set(outcomes) <= {"OK", "ABORTED", "FAILED_PRECONDITION"}
    assert manager.answer("m") == [2.0, 5.0]


def test_answer_comes_before_the_deadline_with_the_reason(bases, tmp_path, start):
    manager = start(("m", str(bases / "one")))
    # A request keeps the old version, so that its end, and the next change, wait.
    with manager.models.lease("m"):
        manager.reload(("m", str(bases / "two")))
        assert manager.answer("m") == [2.0, 5.0]
        code, message = manager.refusal(("m", str(tmp_path / "away")), timeout_seconds=0.0)
        assert code == "DEADLINE_EXCEEDED"
        assert "base_path must hold a version directory" in message
        code, message = manager.refusal(("m", str(bases / "one")), timeout_seconds=0.0)
        assert (code, message.split(": ")[-1]) == (
            "DEADLINE_EXCEEDED",
            "versions are still being loaded",
        )
        assert manager.answer("m") == [2.0, 5.0]
    manager.reload(("m", str(bases / "one")))
    assert manager.answer("m") == [1.0, 5.0]


def test_reload_of_a_server_that_stops_is_refused(bases, start):
    manager = start(("m", str(bases / "one")))
    manager.models.stop()
    assert manager.refusal(("m", str(bases / "two")))[0] == "UNAVAILABLE"


def _overwritten(manager, number=1):
    return manager.models.overwritten()["m", number]


@pytest.fixture
def own(bases, tmp_path):
    """A folder of its own with version 1."""
    base = tmp_path / "own"
    shutil.copytree(bases / "one", base)
    return base


@pytest.mark.parametrize("how", ["variables", "graph", "whole", "in place", "file more"])
def test_version_that_is_overwritten_is_refused_and_told(bases, own, start, how):
    manager, version = start(("m", str(own))), own / "1"
    data = next((version / "variables").glob("variables.data-*"))
    if how == "variables":
        data.write_bytes(b"x" * data.stat().st_size)
    elif how == "graph":
        os.truncate(version / "saved_model.pb", 10)
    elif how == "whole":
        shutil.rmtree(version)
        shutil.copytree(bases / "two" / "2", version)
    elif how == "in place":
        stat = data.stat()
        with open(data, "r+b") as file:
            file.write(b"x")
        # The file keeps its size and time.
        os.utime(data, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    else:
        (version / "more.txt").touch()
    manager.models.update()
    manager.models.update()
    assert manager.answer("m") == [1.0, 5.0]
    assert manager.names() == ["loaded", "version_overwritten"]
    note = manager.events[-1][1]["error"]
    assert note.startswith("Version 1 was overwritten in its folder after it was loaded")
    assert "publish the new model under a number of its own" in note
    (status,) = manager.models.statuses("m")
    assert (status.state, status.error, status.note) == (State.AVAILABLE, "", note)
    assert _overwritten(manager)


def test_version_that_is_only_touched_or_linked_is_not_overwritten(own, tmp_path, start):
    manager, file = start(("m", str(own))), own / "1" / "saved_model.pb"
    os.utime(file)
    os.link(file, tmp_path / "link")
    scratch = tmp_path / "copy"
    shutil.copy(file, scratch)
    scratch.replace(file)
    manager.models.update()
    assert manager.names() == ["loaded"]
    assert not _overwritten(manager)


def test_version_that_is_put_back_is_no_longer_told(own, start):
    manager, file = start(("m", str(own))), own / "1" / "saved_model.pb"
    content = file.read_bytes()
    file.write_bytes(b"x")
    manager.models.update()
    assert _overwritten(manager)
    file.write_bytes(content)
    manager.models.update()
    assert not _overwritten(manager)
    assert manager.names() == ["loaded", "version_overwritten", "version_restored"]
    assert manager.models.statuses("m")[0].note == ""
