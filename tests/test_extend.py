"""Does what docs/extend.md says, to a copy of the sources, and runs its commands."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "extend.md"
FOLDERS = ("schemas", "trainer", "components", "serving", "pipeline")
TESTS = ("conftest.py", "test_import_contract.py", "references")
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_TITLE = re.compile(r"`([\w./]+)`, (new|change):\n\n\Z")


class Block(NamedTuple):
    """A block of the page: a file's path and content, a diff of it, or commands."""

    kind: str
    path: str
    content: str


def _blocks(page: str) -> list[Block]:
    blocks = []
    for fence in _FENCE.finditer(page):
        language, content = fence.groups()
        title = _TITLE.search(page[: fence.start()])
        if language == "sh":
            blocks.append(Block("run", "", content))
            continue
        assert title is not None, f"No file is named above this block:\n{content[:200]}"
        path, kind = title.groups()
        assert (language == "diff") == (kind == "change"), f"{path}: {kind} is in {language}"
        blocks.append(Block(kind, path, content))
    return blocks


def _changed(text: str, diff: str, path: str) -> str:
    """Returns a file with the hunks of a diff applied, each where alone it fits."""
    for hunk in re.split(r"^@@\n", diff, flags=re.MULTILINE):
        lines = hunk.splitlines(keepends=True)
        assert all(line[0] in " +-\n" for line in lines), f"{path}:\n{hunk}"
        old = "".join(line[1:] or "\n" for line in lines if line[0] != "+")
        new = "".join(line[1:] or "\n" for line in lines if line[0] != "-")
        count = ("\n" + text).count("\n" + old)
        assert count == 1, f"{path} holds these lines {count} times, not once:\n{old}"
        text = ("\n" + text).replace("\n" + old, "\n" + new)[1:]
    return text


def _copy(folder: Path) -> Path:
    """Copies the sources; returns the folder to import `sigline` from."""
    ignored = shutil.ignore_patterns("__pycache__")
    for name in ("sigline", *FOLDERS):
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    for name in TESTS:
        source, target = ROOT / "tests" / name, folder / "tests" / name
        if source.is_dir():
            shutil.copytree(source, target, ignore=ignored)
        else:
            target.parent.mkdir(exist_ok=True)
            shutil.copy(source, target)
    shutil.copy(ROOT / "pyproject.toml", folder)
    package = folder / "packages" / "sigline"
    package.mkdir(parents=True)
    for source in (*(folder / "sigline").iterdir(), *(folder / name for name in FOLDERS)):
        (package / source.name).symlink_to(source)
    return package.parent


def _run(argv: list[str], folder: Path, packages: Path) -> str:
    # The folder itself has a package `sigline` without the top-level folders.
    variables = os.environ | {"PYTHONPATH": str(packages), "PYTHONSAFEPATH": "1"}
    variables.pop("PYTEST_ADDOPTS", None)
    done = subprocess.run(
        [sys.executable, *argv], capture_output=True, text=True, cwd=folder, env=variables
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    return done.stdout


@pytest.fixture(scope="module")
def blocks():
    return _blocks(PAGE.read_text())


@pytest.mark.slow
def test_page_does_what_it_says(blocks, tmp_path):
    packages, touched, tests = _copy(tmp_path), {}, []
    for kind, path, content in blocks:
        target = tmp_path / path
        if kind == "new":
            assert not (ROOT / path).exists(), f"{path} is there already"
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(content)
        elif kind == "change":
            target.write_text(_changed(target.read_text(), content, path))
        else:
            for command in content.splitlines():
                program, *arguments = shlex.split(command)
                if program == ".venv/bin/sigline":
                    code = "import sys; from sigline.cli import main; sys.exit(main())"
                    assert _run(["-c", code, *arguments], tmp_path, packages)
                else:
                    assert program == ".venv/bin/pytest", command
                    tests += arguments
            continue
        touched[path] = target
    files = list(touched)
    for command in (["check"], ["format", "--check"]):
        _run(["-m", "ruff", *command, "--no-cache", *files], tmp_path, packages)
    contract = "tests/test_import_contract.py"
    allowed = f"{contract}::test_file_imports_only_what_its_place_allows"
    tests += [f"{allowed}[{path}]" for path in files if not path.startswith("tests/")]
    tests.append(f"{contract}::test_no_room_of_the_trainer_imports_from_one_above_it")
    assert {path for path in files if path.startswith("tests/")} <= set(tests)
    # One process for all sections: half of the time is what TensorFlow and Beam take to load.
    _run(["-m", "pytest", "-q", "-p", "no:cacheprovider", *tests], tmp_path, packages)


@pytest.mark.parametrize(
    ("diff", "changed"),
    [
        (" a\n+x\n b\n", "a\nx\nb\nc\n"),
        ("-a\n@@\n-c\n+d\n", "b\nd\n"),
    ],
)
def test_diffs_are_applied(diff, changed):
    assert _changed("a\nb\nc\n", diff, "file") == changed


def test_diff_that_does_not_fit_is_told():
    with pytest.raises(AssertionError, match="file holds these lines 0 times"):
        _changed("a\nb\n", " b\n a\n", "file")


def test_block_without_a_file_is_told():
    with pytest.raises(AssertionError, match="No file is named above"):
        _blocks("Some words:\n\n```python\nx = 1\n```\n")
