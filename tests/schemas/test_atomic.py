import errno
import os
import subprocess
import sys

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
