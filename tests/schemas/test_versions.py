import json
import os
import socket

import pytest

from sigline import cli
from sigline.components.publish import publishing
from sigline.schemas import digests, versions


def test_versions_are_those_that_tf_serving_finds(tmp_path):
    for name in ("1", "00000123", "9" * 20, "x", "1.0", "-1", ".withdrawn-7", "\u0663"):
        (tmp_path / name).mkdir()
    (tmp_path / "5").write_text("no folder")
    found = versions.directories(tmp_path)
    assert found == {1: tmp_path / "1", 123: tmp_path / "00000123"}
    assert versions.list_versions(tmp_path) == [1, 123]
    assert versions.list_versions(tmp_path / "nothing") == []


@pytest.fixture
def published(tmp_path):
    """A version as a publisher leaves it, with TensorFlow's empty folder."""
    model = tmp_path / "model"
    for name in ("saved_model.pb", "variables/variables.index", "assets.extra/model.json"):
        (model / name).parent.mkdir(parents=True, exist_ok=True)
        (model / name).write_text(name)
    (model / "assets").mkdir()
    return publishing.publish(model, tmp_path / "serving").path


def _change_keeping_times(folder):
    path = folder / "saved_model.pb"
    times = path.stat()
    path.write_text("saved_model.PB")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def _replace_by_link(folder):
    path = folder / "saved_model.pb"
    path.rename(folder.parent / "elsewhere.pb")
    path.symlink_to(folder.parent / "elsewhere.pb")


def _replace_folder_by_link(folder):
    (folder / "variables").rename(folder.parent / "variables")
    (folder / "variables").symlink_to(folder.parent / "variables")


def _edit_manifest(folder, change):
    path = folder / versions.MANIFEST
    read = json.loads(path.read_text())
    change(read)
    path.write_text(json.dumps(read))


def _list_another_file(folder):
    (folder / "added").write_text("x")
    _edit_manifest(
        folder, lambda read: read["files"].update(added=digests.file_digest(folder / "added"))
    )


def _link_manifest(folder):
    path = folder / versions.MANIFEST
    path.rename(folder.parent / "manifest")
    path.symlink_to(folder.parent / "manifest")


def _socket(folder):
    with socket.socket(socket.AF_UNIX) as one:
        os.chdir(folder)
        one.bind("socket")


TAMPERINGS = {
    "changed": (_change_keeping_times, "saved_model.pb is changed"),
    "cut": (lambda x: (x / "saved_model.pb").write_text("saved"), "saved_model.pb is changed"),
    "empty": (lambda x: (x / "saved_model.pb").write_text(""), "saved_model.pb is changed"),
    "appended": (
        lambda x: (x / "saved_model.pb").open("a").write("x"),
        "saved_model.pb is changed",
    ),
    "missing": (lambda x: (x / "saved_model.pb").unlink(), "saved_model.pb is missing"),
    "renamed": (lambda x: (x / "saved_model.pb").rename(x / "model.pb"), "model.pb is added"),
    "added": (lambda x: (x / "saved_model.pbtxt").write_text("x"), "saved_model.pbtxt is added"),
    "hidden": (lambda x: (x / ".hidden").write_text("x"), ".hidden is added"),
    "below": (lambda x: (x / "assets/vocab").write_text("x"), "assets/vocab is added"),
    "link": (lambda x: (x / "added").symlink_to("/etc/passwd"), "added is a link"),
    "dangling": (lambda x: (x / "added").symlink_to("nowhere"), "added is a link"),
    "link to a folder": (lambda x: (x / "added").symlink_to("/etc"), "added is a link"),
    "file by a link": (_replace_by_link, "saved_model.pb is a link"),
    "folder by a link": (_replace_folder_by_link, "variables is a link"),
    "pipe": (lambda x: os.mkfifo(x / "pipe"), "pipe is no file"),
    "socket": (_socket, "socket is no file"),
    "folder": (lambda x: (x / "more").mkdir(), "more is a folder of no file"),
    "no manifest": (lambda x: (x / versions.MANIFEST).unlink(), "is missing, or no file"),
    "linked manifest": (_link_manifest, "is missing, or no file"),
    "half a manifest": (
        lambda x: (x / versions.MANIFEST).write_text('{"files": {'),
        "sigline_manifest.json is damaged",
    ),
    "no object": (lambda x: (x / versions.MANIFEST).write_text("[]"), "is damaged"),
    "listed": (_list_another_file, "does not agree with itself"),
    "taken off": (
        lambda x: _edit_manifest(x, lambda read: read["files"].pop("saved_model.pb")),
        "does not agree with itself",
    ),
    "another digest": (
        lambda x: _edit_manifest(x, lambda read: read.update(digest="0" * 64)),
        "does not agree with itself",
    ),
}


def test_version_as_it_was_published_has_no_problems(published, capsys):
    assert versions.problems(published) == []
    assert cli.main(["verify", str(published)]) == 0
    assert capsys.readouterr().out == f"{published} is what was published.\n"


@pytest.mark.parametrize("kind", TAMPERINGS)
def test_every_tampering_is_named(published, kind, capsys, monkeypatch):
    monkeypatch.chdir(published.parent)
    tamper, named = TAMPERINGS[kind]
    tamper(published)
    assert any(named in problem for problem in versions.problems(published))
    assert versions.verify(published) is None
    assert cli.main(["verify", str(published)]) == 1
    assert named in capsys.readouterr().out
    assert cli.main(["versions", str(published.parent)]) == 0
    assert "intact" not in capsys.readouterr().out


def test_versions_are_not_called_intact_without_reading_them(published, capsys):
    assert cli.main(["versions", str(published.parent)]) == 0
    assert "intact" in capsys.readouterr().out
    assert cli.main(["versions", str(published.parent), "--fast"]) == 0
    assert "intact" not in capsys.readouterr().out
