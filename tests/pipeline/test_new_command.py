"""Projects that `sigline new` makes: what is in them, and what their CI does."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from sigline import cli
from sigline.components.scenes import grammar
from sigline.pipeline import new_command
from sigline.trainer import config


@pytest.fixture
def project(tmp_path):
    assert cli.main(["new", "my_project", "--into", str(tmp_path)]) == 0
    return tmp_path / "my_project"


def test_project_has_all_that_a_team_copies(project):
    found = {str(path.relative_to(project)) for path in project.rglob("*") if path.is_file()}
    assert found == {
        ".dockerignore",
        ".github/workflows/gate.yml",
        ".gitignore",
        ".gitlab-ci.yml",
        "Dockerfile",
        "README.md",
        "environments/kubeflow.yaml",
        "environments/local.yaml",
        "local_runner.py",
        "my_project/__init__.py",
        "my_project/recipe.py",
        "my_project/thresholds.yaml",
        "pyproject.toml",
        "tests/test_recipe.py",
    }
    texts = "".join((project / name).read_text() for name in found)
    assert not any(word in texts for word in ("PROJECT_NAME", "PROJECT_TITLE", "dot_"))


def test_project_passes_its_own_tests(project):
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "tests"],
        cwd=project,
        env=os.environ | {"PYTHONPATH": str(project)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert "2 passed" in done.stdout


@pytest.mark.parametrize("name", ["", "My", "my-project", "class", "../x", "1x", "sigline", "_x"])
def test_wrong_names_are_refused(tmp_path, name):
    with pytest.raises(ValueError, match="name must"):
        new_command.make(name, tmp_path)
    assert not list(tmp_path.iterdir())


def test_nothing_is_overwritten(project, tmp_path):
    with pytest.raises(ValueError, match="not there yet"):
        new_command.make("my_project", tmp_path)


def test_recipe_of_a_module_must_be_one():
    with pytest.raises(ValueError, match="Is its package installed here"):
        config.load_recipe("no_such_project.recipe")
    with pytest.raises(ValueError, match=r"must have a function config\(\)"):
        config.load_recipe("os.path")
    with pytest.raises(ValueError, match="Unknown recipe"):
        config.load_recipe("../x.recipe")


@pytest.fixture
def checkout(project, model_without_classes, split_dir, tmp_path):
    """A checkout with a candidate and data, and tools of the forges that write down their calls."""
    shutil.copytree(model_without_classes, project / "candidate")
    (project / "eval").mkdir()
    shutil.copytree(split_dir, project / "eval" / "Split-eval")
    (project / "eval" / "classes.json").write_text(grammar.label_set().to_json())
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("gh", "curl"):
        tool = tools / name
        tool.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > "{tmp_path}/{name}.txt"\n')
        tool.chmod(0o755)
    path = f"{tools}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    variables = os.environ | {
        "PATH": path,
        "MODEL": "candidate",
        "PULL_REQUEST": "12",
        "GITHUB_STEP_SUMMARY": str(tmp_path / "step.md"),
        "CI_MERGE_REQUEST_IID": "7",
        "CI_API_V4_URL": "https://gitlab.example.com/api/v4",
        "CI_PROJECT_ID": "3",
        "GATE_TOKEN": "secret",
    }
    return project, variables


def _shell(lines: str, folder: Path, variables: dict[str, str]) -> int:
    command = ["bash", "-e", "-c", lines]
    return subprocess.run(command, cwd=folder, env=variables, check=False).returncode


@pytest.mark.slow
def test_github_s_steps_judge_the_candidate_and_say_so(checkout, tmp_path):
    folder, variables = checkout
    workflow = yaml.safe_load((folder / ".github/workflows/gate.yml").read_text())
    lines = [
        step["run"]
        for job in ("gate", "say")
        for step in workflow["jobs"][job]["steps"]
        if "run" in step
    ]
    assert not any("${{" in line for line in lines)
    # A model that has learned nothing is refused.
    assert _shell(lines[0], folder, variables) == 1
    assert [_shell(line, folder, variables) for line in lines[1:]] == [0, 0]
    summary = (folder / "verdict/summary.md").read_text()
    assert "text_to_image_recall@10" in summary
    assert (tmp_path / "step.md").read_text() == summary
    assert (tmp_path / "gh.txt").read_text().split() == [
        "pr",
        "comment",
        "12",
        "--body-file",
        "verdict/summary.md",
    ]


@pytest.mark.slow
def test_gitlab_s_script_judges_the_candidate_and_says_so(checkout, tmp_path):
    folder, variables = checkout
    jobs = yaml.safe_load((folder / ".gitlab-ci.yml").read_text())
    assert _shell("\n".join(jobs["gate"]["script"]), folder, variables) == 1
    assert _shell("\n".join(jobs["say"]["script"]), folder, variables) == 0
    assert (folder / "verdict/junit.xml").is_file()
    asked = (tmp_path / "curl.txt").read_text().splitlines()
    assert asked[-1] == "https://gitlab.example.com/api/v4/projects/3/merge_requests/7/notes"
