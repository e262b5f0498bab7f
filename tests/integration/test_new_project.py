"""A project of one's own, from `sigline new` to a published model and a Kubeflow package."""

import os
import sys
from pathlib import Path

import pytest
import yaml
from forked import Forked
from tiny_model import OVERRIDES

from sigline import cli
from sigline.schemas import signatures, versions

pytestmark = [pytest.mark.tfx, pytest.mark.slow]


def test_new_project_runs_by_tfx_and_compiles_for_kubeflow(tmp_path):
    assert cli.main(["new", "my_scenes", "--into", str(tmp_path)]) == 0
    project = tmp_path / "my_scenes"
    # So that it takes seconds; all else is as a new user has it.
    local = project / "environments/local.yaml"
    changed = yaml.safe_load(local.read_text()) | {"overrides": OVERRIDES}
    local.write_text(yaml.safe_dump(changed))
    scenes = ["data", "scenes", "--output", str(project / "data"), "--count", "800"]
    assert cli.main(scenes) == 0

    tools = Path(sys.executable).parent
    variables = os.environ | {
        "HOME": str(tmp_path / "home"),
        "PATH": f"{tools}:{os.environ['PATH']}",
        # In place of installing it.
        "PYTHONPATH": str(project),
    }
    variables.pop("SIGLINE_ENVIRONMENT", None)

    def _run(*command: str) -> str:
        process = Forked(list(command), tmp_path, cwd=project, variables=variables)
        output, errors = process.communicate()
        assert process.returncode == 0, output + errors
        return output + errors

    created = _run(
        "tfx",
        "pipeline",
        "create",
        "--engine",
        "local",
        "--pipeline_path",
        str(project / "local_runner.py"),
    )
    assert 'Pipeline "my-scenes" created successfully' in created
    done = _run("tfx", "run", "create", "--engine", "local", "--pipeline_name", "my-scenes")
    assert "Blessed; published as" in done
    version = project / "runs/serving/1"
    assert versions.verify(version) is not None
    card = (version / signatures.ASSETS_DIR / "model_card.md").read_text()
    assert card.startswith("# my-scenes")

    compiled = _run("sigline", "kubeflow", "compile", "--environment", "environments/kubeflow.yaml")
    assert "my-scenes.yaml: " in compiled
    assert (project / "my-scenes.yaml").is_file()
