"""The image: its recipe is linted, and what it installs is installed and imported here."""

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILES = ("Dockerfile", "serving/deploy/Dockerfile", "pipeline/template/Dockerfile")
# What the tasks of a compiled package name, and the other commands of the image.
MODULES = (
    "sigline.pipeline.kubeflow.run_task",
    "sigline.pipeline.kubeflow.tfx_nodes",
    "sigline.pipeline.tfx_infra",
    "sigline.pipeline.tfx_tower",
    "sigline.pipeline.tfx_trainer",
    "sigline.components.embed.component",
    "sigline.components.evaluate.component",
    "sigline.components.index.component",
    "sigline.components.ingest.component",
    "sigline.components.publish.component",
    "sigline.components.validate.component",
    "sigline.components.vocabulary.component",
    "sigline.pipeline.kubeflow.cluster",
    "sigline.serving.server",
)


def _instructions(path: Path) -> list[tuple[str, str]]:
    """Returns the instructions of a Dockerfile and their arguments."""
    text = re.sub(r"^#.*\n", "", path.read_text(), flags=re.M).replace("\\\n", " ")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return [tuple(line.split(maxsplit=1)) for line in lines]


@pytest.mark.parametrize("name", DOCKERFILES)
def test_dockerfiles_are_linted(name):
    linter = shutil.which("hadolint")
    if linter is None:
        pytest.skip("hadolint is not on PATH")
    done = subprocess.run([linter, str(ROOT / name)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", DOCKERFILES)
def test_images_end_as_a_user_without_rights(name):
    users = [argument for kind, argument in _instructions(ROOT / name) if kind == "USER"]
    assert users[-1].split(":")[0].isdigit()
    assert int(users[-1].split(":")[0]) > 0


@pytest.mark.slow
def test_what_the_image_installs_runs_its_commands(tmp_path):
    """Its build stage, in a folder in place of its root, and with this machine's cache."""
    instructions = _instructions(ROOT / "Dockerfile")
    stages = [n for n, (kind, _) in enumerate(instructions) if kind == "FROM"]
    variables, folder = dict(os.environ), tmp_path
    variables.pop("VIRTUAL_ENV", None)
    own = ROOT / ".venv" / "bin"
    if not (own / "uv").is_file():
        pytest.skip("this checkout was not set up by make, whose uv installs what the image has")
    variables["PATH"] = f"{own}:{variables['PATH']}"
    environment = tmp_path / "opt/sigline"
    for kind, argument in instructions[stages[0] + 1 : stages[1]]:
        if kind in ("ARG", "ENV"):
            variables |= dict(item.split("=", 1) for item in shlex.split(argument))
            # Links in place of copies, so that it takes seconds.
            variables |= {"UV_LINK_MODE": "hardlink", "UV_PROJECT_ENVIRONMENT": str(environment)}
        elif kind == "WORKDIR":
            folder = tmp_path / argument.lstrip("/")
            folder.mkdir(parents=True)
        elif kind == "COPY":
            *sources, target = argument.split()
            for source in sources:
                found, place = ROOT / source, folder / target
                if found.is_dir():
                    shutil.copytree(found, place, ignore=shutil.ignore_patterns("__pycache__"))
                else:
                    shutil.copy(found, place / source)
        else:
            assert kind == "RUN", kind
            if argument.startswith("pip install"):
                version = re.search(r"uv==(\S+)", argument)
                assert version is not None
                assert f"UV_VERSION := {version[1]}\n" in (ROOT / "Makefile").read_text()
                continue
            command = ["sh", "-ec", argument.replace("--no-cache", "")]
            done = subprocess.run(
                command, cwd=folder, env=variables, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, done.stderr
    # Without the sources, as in the second stage.
    shutil.rmtree(folder)
    lines = ["import sigline.quiet", "sigline.quiet.import_tfx()"]
    lines += [f"import {name}" for name in MODULES]
    lines += ["from sigline.pipeline import environment, new_command, planning"]
    lines += ["environment.load('kubeflow')", "assert planning.plan"]
    lines += [f"new_command.make('my_project', __import__('pathlib').Path({str(tmp_path)!r}))"]
    done = subprocess.run(
        [str(environment / "bin/python"), "-c", "\n".join(lines)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "my_project/.gitlab-ci.yml").is_file()
    done = subprocess.run(
        [str(environment / "bin/sigline"), "--help"], capture_output=True, text=True, check=False
    )
    assert "kubeflow" in done.stdout
