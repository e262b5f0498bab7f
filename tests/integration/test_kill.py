"""Kills the pipeline at its worst moments; the same command must complete the work."""

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from forked import Forked

from sigline.components.scenes import generate
from sigline.schemas import versions
from sigline.trainer import config

pytestmark = [pytest.mark.tfx, pytest.mark.slow]

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT_SECONDS = 300


def _start(environment: Path) -> Forked:
    command = ["sigline", "run", "--environment", str(environment)]
    return Forked(command, environment.parent, cwd=ROOT)


def _kill_when(
    process: Forked, seen: Callable[[], bool], near: Callable[[], bool] = lambda: False
) -> None:
    """Kills the process at the moment that `seen` holds.

    From the moment that `near` holds the process runs in slices of a millisecond, so that even a
    short window is hit.
    """
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while not seen():
        assert process.poll() is None, process.communicate()[1][-3000:]
        assert time.monotonic() < deadline, "the moment to kill never came"
        if near():
            os.kill(process.pid, signal.SIGCONT)
            time.sleep(0.001)
            os.kill(process.pid, signal.SIGSTOP)
        else:
            time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kill")
    faults = {generate.CORRUPT: 0.02}
    generate.write_scenes(folder / "data", count=1000, seed=2, faults=faults)
    tiny = config.tiny(config.load_recipe("siglip_small"))
    overrides = [
        "steps=150",
        "run.checkpoint_steps=50",
        "global_batch_size=64",
        "image.size=32",
        "optimizer.warmup_steps=5",
        "optimizer.learning_rate=0.003",
        "similarity.bias_init=-4.1",
        # Compiling takes longer than these steps.
        "run.jit_compile=false",
    ]
    for tower in ("image", "text"):
        values = getattr(tiny, tower)
        for name in ("width", "mlp_dim", "num_heads"):
            overrides.append(f"{tower}.{name}={getattr(values, name)}")
        overrides.append(f"{tower}.depth=1")
    (folder / "environment.yaml").write_text(
        yaml.safe_dump(
            {
                "pipeline_name": "kill",
                "root": str(folder / "root"),
                "input_base": str(folder / "data"),
                "recipe": "siglip_small",
                "overrides": overrides,
                "ingest": {"eval_share": 0.2, "shard_records": 50},
            }
        )
    )
    return folder


def test_killed_during_ingest_training_and_publishing_it_completes(folder):
    environment, root = folder / "environment.yaml", folder / "root"
    artifacts = root / "artifacts"

    def _any(pattern: str) -> Callable[[], bool]:
        return lambda: any(root.glob(pattern))

    # Ingest: some shards are written, the manifest is not.
    _kill_when(_start(environment), _any("artifacts/IngestExamples/examples/*/Split-*/*.gz"))
    assert not list(artifacts.glob("IngestExamples/examples/*/manifest.json"))
    assert not list(artifacts.glob("IngestExamples/report/*/counts.json"))
    assert not list(artifacts.glob("Trainer"))

    # Training: the first checkpoint is there.
    _kill_when(_start(environment), _any("checkpoints/*/checkpoints/checkpoint"))
    (counts,) = artifacts.glob("IngestExamples/report/*/counts.json")
    assert json.loads(counts.read_text())["input"] == 1000
    assert not list(artifacts.glob("Trainer/model/*/Format-Serving"))

    # Publishing: the copy has begun, no version is visible.
    serving = root / "serving"
    _kill_when(_start(environment), _any("serving/.tmp-*"), near=_any("artifacts/PublishModel/*/*"))
    assert versions.list_versions(serving) == []
    (training,) = artifacts.glob("Trainer/model_run/*/training.json")
    resumed = json.loads(training.read_text())
    assert resumed["first_step"] in (50, 100)
    assert resumed["steps"] == 150

    done = _start(environment)
    output, errors = done.communicate(timeout=TIMEOUT_SECONDS)
    assert done.returncode == 0, errors[-3000:]
    assert "Blessed; published as" in output
    assert versions.list_versions(serving) == [1]
    assert versions.verify(serving / "1") is not None
    assert not list(serving.glob(".tmp-*"))
    # What was finished was not done again.
    assert len(list(artifacts.glob("Trainer/model_run/*/training.json"))) == 1
    assert len(list(artifacts.glob("IngestExamples/report/*/counts.json"))) == 1
