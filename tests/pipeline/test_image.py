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
    "sigline.components.check_serving.component",
    "sigline.components.export_tower.component",
    "sigline.components.train.component",
    "sigline.components.embed.component",
    "sigline.components.evaluate.component",
    "sigline.components.index.component",
    "sigline.components.ingest.component",
    "sigline.components.publish.component",
    "sigline.components.validate.component",
    "sigline.components.vocabulary.component",
    "sigline.pipeline.kubeflow.cluster",
    "sigline.serving.server.server",
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


def _build(stage: str, folder: Path) -> Path:
    """Executes a stage and the one that it begins with, in a folder in place of the image's root.

    Libraries are linked from this machine's cache in place of downloading them.

    Returns:
        The environment that it has installed.
    """
    own = ROOT / ".venv" / "bin"
    if not (own / "uv").is_file():
        pytest.skip("this checkout was not set up by make, whose uv installs what the image has")
    instructions = _instructions(ROOT / "Dockerfile")
    stages: dict[str, list[tuple[str, str]]] = {}
    for kind, argument in instructions:
        if kind == "FROM":
            name = argument.split()[-1]
            stages[name] = list(stages.get(argument.split()[0], []))
        elif stages:
            stages[name].append((kind, argument))
    variables = {key: value for key, value in os.environ.items() if key != "VIRTUAL_ENV"}
    variables["PATH"] = f"{own}:{variables['PATH']}"
    work = folder
    for kind, argument in stages[stage]:
        if kind == "ENV":
            found = dict(item.split("=", 1) for item in shlex.split(argument))
            if "UV_PROJECT_ENVIRONMENT" in found:
                found["UV_PROJECT_ENVIRONMENT"] = str(folder) + found["UV_PROJECT_ENVIRONMENT"]
            variables |= found | {"UV_LINK_MODE": "hardlink"}
        elif kind == "WORKDIR":
            work = folder / argument.lstrip("/")
            work.mkdir(parents=True)
        elif kind == "COPY":
            _copy(argument.split()[:-1], work)
        elif argument.startswith("pip install"):
            version = re.search(r"uv==(\S+)", argument)
            assert version is not None
            assert f"UV_VERSION := {version[1]}\n" in (ROOT / "Makefile").read_text()
        else:
            assert kind == "RUN", kind
            command = ["sh", "-ec", argument.replace("--no-cache", "")]
            done = subprocess.run(
                command, cwd=work, env=variables, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, done.stderr
    # Without the sources, as in the stage that is left.
    shutil.rmtree(work)
    return Path(variables["UV_PROJECT_ENVIRONMENT"])


def _copy(sources: list[str], target: Path) -> None:
    """Copies what `.dockerignore` lets into the image."""
    if sources == ["."]:
        lines = (ROOT / ".dockerignore").read_text().splitlines()
        sources = [line[1:] for line in lines if line.startswith("!")]
    for source in sources:
        if (ROOT / source).is_dir():
            shutil.copytree(
                ROOT / source, target / source, ignore=shutil.ignore_patterns("__pycache__")
            )
        else:
            shutil.copy(ROOT / source, target / source)


@pytest.mark.slow
def test_what_the_image_installs_runs_its_commands(tmp_path):
    environment = _build("build", tmp_path)
    lines = ["import sigline.quiet", "sigline.quiet.import_tfx()"]
    lines += [f"import {name}" for name in MODULES]
    lines += [
        "from sigline.commands import new; from sigline.pipeline import environment, planning"
    ]
    lines += ["environment.load('kubeflow')", "assert planning.plan"]
    lines += [f"new.make('my_project', __import__('pathlib').Path({str(tmp_path)!r}))"]
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


@pytest.mark.slow
@pytest.mark.skipif(
    "SIGLINE_TPU_IMAGE" not in os.environ,
    reason="$SIGLINE_TPU_IMAGE is not set; it downloads the TPU's wheels, half a gigabyte",
)
def test_trainer_for_tpus_installs_and_trains_nothing_without_its_task(tmp_path):
    environment = _build("build-tpu", tmp_path)
    (tmp_path / "task.json").write_text("{}")
    done = subprocess.run(
        [str(environment / "bin/python"), "-m", "sigline.trainer.run_file", tmp_path / "task.json"],
        cwd=tmp_path,
        # Open for as long as it runs: it stops when its input ends.
        stdin=os.pipe()[0],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "missing" in done.stderr.splitlines()[-1]
