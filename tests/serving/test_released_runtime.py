"""Exports run by the TensorFlow of the newest released TF Serving, older than their own."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from sigline.schemas import retrieval, signatures

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".venv-released-runtime" / "bin" / "python"


@pytest.fixture(scope="module")
def python():
    if not PYTHON.exists():
        pytest.skip(f"{PYTHON} does not exist; `make serving-check` makes it")
    return PYTHON


def test_released_runtime_is_older(python):
    code = "import importlib.metadata as m; print(m.version('tensorflow-cpu'))"
    found = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "2.20.0"


def _run(python, directory):
    """Returns the signatures that ran."""
    done = subprocess.run(
        [python, "-m", "sigline.serving.checks.loader_check", str(directory)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_every_signature_runs_in_the_released_runtime(python, contract_base):
    assert _run(python, contract_base / "3") == {
        signatures.SERVING_DEFAULT,
        signatures.EMBED_IMAGE,
        signatures.EMBED_IMAGE_SAFE,
        signatures.EMBED_TEXT,
        signatures.SIMILARITY,
        signatures.CLASSIFY,
    }


def test_index_runs_in_the_released_runtime(python, index):
    assert _run(python, index) == {
        retrieval.RETRIEVE,
        retrieval.RETRIEVE_TEXT,
        retrieval.RETRIEVE_IMAGE,
    }
