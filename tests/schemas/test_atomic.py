import errno
import os
import subprocess
import sys

import power_cut
import pytest

from sigline.schemas import atomic


def test_file_is_written_in_the_place_of_the_old_one(tmp_path):
    path = tmp_path / "file"
    atomic.write_file(path, "first")
    atomic.write_file(path, b"second")
    assert path.read_bytes() == b"second"
    assert [item.name for item in tmp_path.iterdir()] == ["file"]


def test_what_is_written_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    done = []
    fsync, replace = os.fsync, os.replace

    def _fsync(descriptor):
        place = os.readlink(f"/proc/self/fd/{descriptor}")
        done.append(("flush", "folder" if place == str(tmp_path) else "file"))
        fsync(descriptor)

    def _replace(source, target):
        done.append(("rename", os.path.basename(target)))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", _fsync)
    monkeypatch.setattr(os, "replace", _replace)
    atomic.write_file(tmp_path / "pointer", "x")
    assert done == [("flush", "file"), ("rename", "pointer"), ("flush", "folder")]


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_disk_that_is_full_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, failing):
    path = tmp_path / "file"
    path.write_text("old")

    def _full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, failing, _full)
    with pytest.raises(OSError, match="No space left"):
        atomic.write_file(path, "new")
    monkeypatch.undo()
    assert path.read_text() == "old"
    assert [item.name for item in tmp_path.iterdir()] == ["file"]


def test_lock_is_held_by_one_and_ends_with_its_process(tmp_path):
    code = """
import pathlib, sys
from sigline.schemas import atomic
folder = pathlib.Path(sys.argv[1])
for _ in range(200):
    with atomic.locked(folder / "lock"):
        count = int((folder / "count").read_text())
        atomic.write_file(folder / "count", str(count + 1))
"""
    (tmp_path / "count").write_text("0")
    command = [sys.executable, "-c", code, str(tmp_path)]
    processes = [subprocess.Popen(command) for _ in range(3)]
    assert [process.wait() for process in processes] == [0, 0, 0]
    assert (tmp_path / "count").read_text() == "600"
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys\nfrom sigline.schemas import atomic\n"
            "with atomic.locked(sys.argv[1]):\n    print('held', flush=True)\n    sys.stdin.read()",
            str(tmp_path / "lock"),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    holder.kill()
    holder.communicate()
    with atomic.locked(tmp_path / "lock"):
        pass


def test_cut_of_the_power_leaves_the_old_file_or_the_new_one(tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    (root / "file").write_text("old")
    found = power_cut.states(root, lambda: atomic.write_file(root / "file", "new"))
    assert {state["file"] for state in found} == {b"old", b"new"}
    found = power_cut.states(root, lambda: (root / "file").write_text("careless"))
    assert b"care" in {state["file"] for state in found}


def _is_whole(state: power_cut.State, name: str, files: dict[str, bytes]) -> bool:
    """Returns whether a folder is there, and checks that it is whole then."""
    if name not in state:
        return False
    below = {k.removeprefix(f"{name}/"): v for k, v in state.items() if k.startswith(f"{name}/")}
    assert {k: v for k, v in below.items() if v is not None} == files
    return True


def test_cut_of_the_power_leaves_no_folder_or_a_whole_one(tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    files = {"one": b"1", "below/two": b"22"}

    def _write():
        with atomic.new_folder(root / "far" / "folder") as scratch:
            power_cut.lay_out(dict(files), scratch / "x")
            for path in (scratch / "x").iterdir():
                path.rename(scratch / path.name)
            (scratch / "x").rmdir()

    found = power_cut.states(root, _write)
    assert {_is_whole(state, "far/folder", files) for state in found} == {True, False}


def test_folder_that_fails_leaves_nothing(tmp_path):
    def _fail():
        with atomic.new_folder(tmp_path / "a" / "b") as given:
            (given / "half").write_text("x")
            raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        _fail()
    assert list((tmp_path / "a").iterdir()) == []
    (tmp_path / "full" / "x").mkdir(parents=True)
    with pytest.raises(OSError, match="not empty"), atomic.new_folder(tmp_path / "full"):
        pass
    assert [item.name for item in tmp_path.iterdir() if item.name.startswith(".")] == []
