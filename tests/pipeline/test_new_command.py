"""Projects that `sigline new` makes: what is in them, and what their CI does."""

import http.server
import os
import re
import shutil
import subprocess
import sys
import threading
import urllib.parse
from pathlib import Path

import pytest
import yaml

from sigline import cli
from sigline.commands import new as new_command
from sigline.components.scenes import grammar
from sigline.trainer import config

PACKAGE = "my_project"


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
    with pytest.raises(ValueError, match="that of a new folder"):
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
    tool = tools / "gh"
    tool.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > "{tmp_path}/gh.txt"\n')
    tool.chmod(0o755)
    # The protected branch, and a candidate's branch that asks for nothing.
    shutil.copytree(project / PACKAGE, project / "trusted" / PACKAGE)
    for command in (
        ["init", "--quiet", "--initial-branch=main"],
        ["add", PACKAGE],
        ["-c", "user.name=n", "-c", "user.email=e", "commit", "--quiet", "--message=all"],
        ["remote", "add", "origin", str(project)],
    ):
        subprocess.run(["git", *command], cwd=project, check=True)
    thresholds = project / PACKAGE / "thresholds.yaml"
    thresholds.write_text("minimum:\n  text_to_image_recall@10: 0.0\n")
    path = f"{tools}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    variables = os.environ | {
        "PATH": path,
        "MODEL": "candidate",
        "PULL_REQUEST": "12",
        "GITHUB_STEP_SUMMARY": str(tmp_path / "step.md"),
        "CI_MERGE_REQUEST_IID": "7",
        "CI_DEFAULT_BRANCH": "main",
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
def test_gitlab_s_script_judges_the_candidate_and_says_so(checkout):
    folder, variables = checkout
    jobs = yaml.safe_load((folder / ".gitlab-ci.yml").read_text())
    assert "environment" not in jobs["gate"]
    assert jobs["say"]["environment"]["name"] == "gate-notes"
    without = {name: value for name, value in variables.items() if name != "GATE_TOKEN"}
    assert _shell("\n".join(jobs["gate"]["script"]), folder, without) == 1
    assert (folder / "verdict/junit.xml").is_file()
    asked = []

    class _GitLab(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["content-length"])).decode()
            asked.append((self.path, self.headers["private-token"], urllib.parse.parse_qs(body)))
            self.send_response(201)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _GitLab)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    variables["CI_API_V4_URL"] = f"http://127.0.0.1:{server.server_port}/api/v4"
    say = "\n".join(jobs["say"]["script"])
    assert _shell(say, folder, variables) == 0
    without["CI_API_V4_URL"] = variables["CI_API_V4_URL"]
    assert _shell(say, folder, without) == 0
    server.shutdown()
    server.server_close()
    ((path, token, body),) = asked
    assert path == "/api/v4/projects/3/merge_requests/7/notes"
    assert token == "secret"
    assert body["body"] == [(folder / "verdict/summary.md").read_text()]


def test_keys_are_not_committed_or_copied_into_images(project):
    subprocess.run(["git", "init", "--quiet"], cwd=project, check=True)
    for name in ("signing.pem", "keys.txt", ".env", "tls/server.key"):
        ignored = subprocess.run(["git", "check-ignore", "--quiet", name], cwd=project, check=False)
        assert ignored.returncode == 0, name
    assert {"*.pem", "*.key", "keys.txt", ".env"} <= set(
        (project / ".dockerignore").read_text().splitlines()
    )


def test_actions_are_named_by_commit_and_no_image_by_default(project):
    workflow = (project / ".github/workflows/gate.yml").read_text()
    used = re.findall(r"uses: (\S+)", workflow)
    assert used
    assert all(re.fullmatch(r"[\w/-]+@[0-9a-f]{40}", name) for name in used)
    for name in (".github/workflows/gate.yml", ".gitlab-ci.yml", "Dockerfile"):
        assert "ghcr.io" not in (project / name).read_text()
