import errno
import os
import subprocess
import sys
import textwrap

import power_cut
import pytest

from sigline.components.publish import publishing
from sigline.schemas import atomic, versions


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "model"
    (folder / "variables").mkdir(parents=True)
    (folder / "saved_model.pb").write_bytes(b"graph")
    (folder / "variables" / "data").write_bytes(os.urandom(1000))
    return folder


def test_first_version_is_one_and_whole(model, tmp_path):
    published = publishing.publish(model, tmp_path / "serving")
    assert (published.version, published.copied) == (1, True)
    assert versions.verify(published.path) == published.digest
    assert (published.path / "variables" / "data").read_bytes() == (
        model / "variables" / "data"
    ).read_bytes()


def test_same_model_is_not_published_again(model, tmp_path):
    first = publishing.publish(model, tmp_path / "serving")
    again = publishing.publish(model, tmp_path / "serving")
    assert (again.version, again.copied, again.digest) == (1, False, first.digest)


def test_changed_model_is_the_next_version(model, tmp_path):
    publishing.publish(model, tmp_path / "serving")
    (model / "saved_model.pb").write_bytes(b"other")
    assert publishing.publish(model, tmp_path / "serving").version == 2


def test_damaged_version_is_replaced_by_a_new_one(model, tmp_path):
    first = publishing.publish(model, tmp_path / "serving")
    (first.path / "variables" / "data").write_bytes(b"damage")
    assert publishing.publish(model, tmp_path / "serving").version == 2


def test_number_of_a_foreign_version_is_respected(model, tmp_path):
    (tmp_path / "serving" / "1700000000").mkdir(parents=True)
    assert publishing.publish(model, tmp_path / "serving").version == 1700000001


def test_leftovers_of_a_killed_publisher_are_cleared(model, tmp_path):
    # As `uuid.uuid4().hex` names what is being written.
    stale = tmp_path / "serving" / f".tmp-{'0a' * 16}"
    stale.mkdir(parents=True)
    publishing.publish(model, tmp_path / "serving")
    assert not stale.exists()


def test_object_store_is_refused(model):
    with pytest.raises(ValueError, match=r"local or mounted folder.*gs://bucket/x"):
        publishing.publish(model, "gs://bucket/x")


def test_folder_that_is_no_model_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"must hold a saved_model\.pb"):
        publishing.publish(tmp_path, tmp_path / "serving")


def test_no_number_is_visible_before_the_version_is_whole(model, tmp_path, monkeypatch):
    seen = []
    flush = atomic.flush_tree

    def _looking(root):
        seen.append(versions.list_versions(tmp_path / "serving"))
        flush(root)

    monkeypatch.setattr(atomic, "flush_tree", _looking)
    publishing.publish(model, tmp_path / "serving")
    assert seen == [[]]


def _full(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_publish_to_a_full_disk_leaves_nothing_behind_and_succeeds_once_there_is_room(
    model, tmp_path, monkeypatch
):
    base = tmp_path / "serving"
    with monkeypatch.context() as patch:
        patch.setattr(atomic, "flush_tree", _full)
        with pytest.raises(OSError, match="No space left"):
            publishing.publish(model, base)
    assert [path.name for path in base.iterdir()] == [".publish.lock"]
    assert publishing.publish(model, base).version == 1


def test_cut_of_the_power_leaves_whole_versions_alone(model, tmp_path):
    base = tmp_path / "serving"
    publishing.publish(model, base)
    (model / "saved_model.pb").write_text("another")
    seen = set()
    for work in (lambda: publishing.publish(model, base), lambda: publishing.rollback(base)):
        for state in power_cut.states(base, work):
            folder = power_cut.lay_out(state, tmp_path / f"cut-{len(list(tmp_path.iterdir()))}")
            numbers = versions.list_versions(folder)
            assert all(versions.verify(folder / str(number)) for number in numbers)
            # A version that was withdrawn is nowhere lost, and keeps its number.
            publishing.withdrawn(folder)
            seen.add(tuple(numbers))
    assert seen == {(1,), (1, 2)}


def test_rollback_needs_no_space(model, tmp_path, monkeypatch):
    base = tmp_path / "serving"
    publishing.publish(model, base)
    (model / "saved_model.pb").write_text("another")
    publishing.publish(model, base)
    with monkeypatch.context() as patch:
        patch.setattr(atomic, "write_file", _full)
        with pytest.warns(RuntimeWarning, match=r"Version 2 is withdrawn; why \(slow\) could not"):
            assert publishing.rollback(base, reason="slow") == [2]
    assert versions.list_versions(base) == [1]
    assert [item.reason for item in publishing.withdrawn(base)] == ["no reason given"]


def test_concurrent_publishers_get_versions_of_their_own(tmp_path):
    code = textwrap.dedent("""
        import pathlib, sys
        from sigline.components.publish import publishing
        folder = pathlib.Path(sys.argv[1]) / ("model" + sys.argv[2])
        folder.mkdir()
        (folder / "saved_model.pb").write_text(sys.argv[2])
        print(publishing.publish(folder, pathlib.Path(sys.argv[1]) / "serving").version)
    """)
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path), str(i)], stdout=subprocess.PIPE, text=True
        )
        for i in range(4)
    ]
    assert sorted(int(p.communicate()[0]) for p in processes) == [1, 2, 3, 4]


def _publish(model, base, content, **options):
    (model / "saved_model.pb").write_bytes(content)
    return publishing.publish(model, base, **options)


def test_rollback_leaves_the_version_before_as_the_newest(model, tmp_path):
    base = tmp_path / "serving"
    for content in (b"1", b"2", b"3"):
        _publish(model, base, content)
    assert publishing.rollback(base, reason="worse on Mondays") == [3]
    assert versions.list_versions(base) == [1, 2]
    assert publishing.rollback(base, to=1) == [2]
    found = publishing.withdrawn(base)
    assert [(item.version, item.reason) for item in found] == [
        (2, "no reason given"),
        (3, "worse on Mondays"),
    ]
    assert all(versions.verify(item.path) for item in found)


def test_number_of_a_withdrawn_version_is_not_given_again(model, tmp_path):
    base = tmp_path / "serving"
    _publish(model, base, b"1")
    _publish(model, base, b"2")
    publishing.rollback(base)
    assert _publish(model, base, b"3").version == 3
    assert versions.list_versions(base) == [1, 3]


def test_withdrawn_model_is_not_published_again_by_the_next_run(model, tmp_path):
    base = tmp_path / "serving"
    _publish(model, base, b"1")
    _publish(model, base, b"2")
    publishing.rollback(base, reason="worse")
    with pytest.raises(RuntimeError, match=r"withdrawn as version 2 \(worse\).*--restore 2"):
        _publish(model, base, b"2")
    assert publishing.restore(base, 2) == base / "2"
    assert _publish(model, base, b"2").copied is False
    assert versions.list_versions(base) == [1, 2]
    assert publishing.withdrawn(base) == []


def test_what_cannot_be_taken_back_is_refused(model, tmp_path):
    base = tmp_path / "serving"
    first = _publish(model, base, b"1")
    with pytest.raises(ValueError, match="a version before the newest"):
        publishing.rollback(base)
    _publish(model, base, b"2")
    with pytest.raises(ValueError, match=r"Received: to=7, versions=\[1, 2\]"):
        publishing.rollback(base, to=7)
    with pytest.raises(ValueError, match=r"withdrawn=\[\]"):
        publishing.restore(base, 1)
    (first.path / "saved_model.pb").write_bytes(b"damage")
    with pytest.raises(ValueError, match="Version 1 does not match its manifest"):
        publishing.rollback(base)
    assert versions.list_versions(base) == [1, 2]


def test_only_the_newest_versions_are_kept(model, tmp_path):
    base = tmp_path / "serving"
    for content in (b"1", b"2", b"3"):
        _publish(model, base, content, keep=2)
    assert versions.list_versions(base) == [2, 3]
    publishing.rollback(base)
    # What was taken back is not kept in place of what serves.
    _publish(model, base, b"4", keep=2)
    assert versions.list_versions(base) == [2, 4]
    assert [item.version for item in publishing.withdrawn(base)] == [3]
    _publish(model, base, b"5", keep=1)
    assert versions.list_versions(base) == [5]
    assert sorted(path.name for path in base.iterdir()) == [".publish.lock", "5"]
    with pytest.raises(ValueError, match="keep must be at least 1"):
        publishing.publish(model, base, keep=0)


def test_what_is_added_belongs_to_the_version(model, tmp_path):
    base = tmp_path / "serving"
    first = publishing.publish(model, base, extras={"warm_up": b"requests"})
    assert (first.path / "assets.extra" / "warm_up").read_bytes() == b"requests"
    assert versions.verify(first.path) == first.digest
    assert publishing.publish(model, base, extras={"warm_up": b"requests"}).copied is False
    # Other requests make no other model.
    again = publishing.publish(model, base, extras={"warm_up": b"others"})
    assert (again.version, again.digest, again.copied) == (1, first.digest, False)
    (model / "saved_model.pb").write_bytes(b"other")
    assert publishing.publish(model, base, extras={"warm_up": b"requests"}).version == 2
    publishing.rollback(base)
    with pytest.raises(RuntimeError, match="withdrawn as version 2"):
        publishing.publish(model, base, extras={"warm_up": b"others"})


def test_files_and_versions_of_someone_else_stay(model, tmp_path):
    base = tmp_path / "serving"
    foreign = [base / ".tmp-notes", base / ".tmp-mine" / "x", base / "1" / "saved_model.pb"]
    for path in foreign:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("mine")
    for content in (b"2", b"3", b"4"):
        _publish(model, base, content, keep=1)
    assert all(path.read_text() == "mine" for path in foreign)
    assert sorted(versions.directories(base)) == [1, 4]
