"""What was written by someone else, or changed since, is never written over."""

import hashlib

import pytest

from sigline.schemas import ownership


def _write(folder, **files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / f"{name}.txt").write_text(text)
    return folder


@pytest.fixture
def output(tmp_path):
    """A folder that the command wrote `a.txt` and `b.txt` to."""
    scratch = _write(tmp_path / "scratch", a="1", b="2")
    ownership.OutputFolder(tmp_path / "out", "sigline gate").place(scratch)
    return tmp_path / "out"


def _again(output, **files):
    scratch = _write(output.parent / "again", **files)
    ownership.OutputFolder(output, "sigline gate").place(scratch)


def test_files_of_an_earlier_call_are_replaced_and_leftovers_go(output):
    _again(output, a="3")
    assert (output / "a.txt").read_text() == "3"
    assert not (output / "b.txt").exists()


def test_a_file_that_was_changed_stays_and_nothing_is_written(output):
    (output / "b.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"b\.txt is in the way.*another place with --output"):
        _again(output, a="3", b="4")
    assert (output / "a.txt").read_text() == "1"
    assert (output / "b.txt").read_text() == "mine"


def test_a_changed_file_that_is_not_written_again_stays(output):
    (output / "b.txt").write_text("mine")
    _again(output, a="3")
    assert (output / "b.txt").read_text() == "mine"


@pytest.mark.parametrize("kind", ["file", "folder", "link"])
def test_what_someone_else_put_there_stays(tmp_path, kind):
    output = _write(tmp_path / "out", other="mine")
    path = output / "a.txt"
    if kind == "file":
        path.write_text("mine")
    elif kind == "folder":
        _write(path, deep="mine")
    else:
        path.symlink_to(output / "other.txt")
    with pytest.raises(ValueError, match=r"a\.txt.* is in the way"):
        _again(output, a="1")
    assert (output / "other.txt").read_text() == "mine"


def test_a_file_with_the_same_bytes_is_not_in_the_way(tmp_path):
    output = _write(tmp_path / "out", a="1")
    _again(output, a="1", b="2")
    _again(output, a="3")
    assert (output / "a.txt").read_text() == "3"


def test_a_list_that_names_files_elsewhere_removes_none(tmp_path):
    victim = tmp_path / "victim.txt"
    victim.write_text("mine")
    output = _write(tmp_path / "out")
    digest = hashlib.sha256(b"mine").hexdigest()
    for name in ("../victim.txt", str(victim)):
        listed = f'{{"files": {{"{name}": "{digest}"}}}}'
        (output / ownership.LIST_FILE).write_text(listed)
        _again(output, a="1")
    assert victim.read_text() == "mine"


def test_an_output_folder_that_is_a_file_is_named(tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(ValueError, match=r"--output must be a folder.*Received: --output .*out"):
        ownership.OutputFolder(tmp_path / "out", "sigline gate")


def test_a_stamped_text_is_known_until_it_is_changed(tmp_path):
    path = tmp_path / "package.yaml"
    ownership.check_stamped(path, "sigline x")
    path.write_text(ownership.stamped("a: 1\n", "sigline x"))
    ownership.check_stamped(path, "sigline x")
    path.write_text(path.read_text() + "b: 2\n")
    with pytest.raises(ValueError, match=r"package\.yaml is in the way: sigline x did not write"):
        ownership.check_stamped(path, "sigline x")


@pytest.mark.parametrize("content", [b"", b"a: 1\n", b"\xff\xfe"])
def test_any_other_file_is_not_stamped(tmp_path, content):
    path = tmp_path / "emoji.yaml"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="is in the way"):
        ownership.check_stamped(path, "sigline x")
