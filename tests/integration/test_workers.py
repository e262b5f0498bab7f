"""The pipeline on workers in processes of their own, as Flink, Spark and Dataflow have them."""

import json
import socket
import subprocess
import sys
from pathlib import Path

import grpc
import pytest
import yaml
from tiny_model import OVERRIDES

from sigline.components.scenes import generate
from sigline.pipeline import environment as environments
from sigline.schemas import signatures

pytestmark = [pytest.mark.tfx, pytest.mark.slow, pytest.mark.engine]

HERE = Path(__file__).parent


@pytest.fixture
def pool(tmp_path):
    """Beam's own pool of workers, the container beside Flink's and Spark's executors."""
    boot = tmp_path / "boot"
    started = tmp_path / "started"
    started.mkdir()
    boot.write_text(
        f'#!/bin/sh\ntouch {started}/$$\nexec {sys.executable} {HERE / "worker_boot.py"} "$@"\n'
    )
    boot.chmod(0o755)
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    command = [sys.executable, "-m", "apache_beam.runners.worker.worker_pool_main"]
    command += [f"--service_port={port}", f"--container_executable={boot}"]
    with (
        subprocess.Popen(command) as process,
        grpc.insecure_channel(f"localhost:{port}") as channel,
    ):
        try:
            grpc.channel_ready_future(channel).result(60)
            yield f"localhost:{port}"
        finally:
            process.terminate()
    # Ingest, the statistics of both splits, evaluation and the index's embedding.
    assert len(list(started.iterdir())) >= 4


def _run(folder: Path, name: str, beam_args: list[str]):
    from sigline.pipeline import local_run

    values = {
        "pipeline_name": name,
        "root": str(folder / name),
        "input_base": str(folder / "data"),
        "recipe": "siglip_small",
        "overrides": OVERRIDES,
        "ingest": {"eval_sources": [generate.HELD_OUT_SOURCE], "eval_share": 0.2},
        "index": {"top": 20},
        "beam_args": beam_args,
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(values))
    return local_run.run(environments.load(path))


def _model_digest(report) -> str:
    path = Path(report.published["path"]) / signatures.ASSETS_DIR / signatures.METADATA_FILE
    return json.loads(path.read_text())["model_digest"]


def test_pipeline_does_the_same_on_workers_elsewhere(pool, tmp_path):
    generate.write_scenes(tmp_path / "data", count=600, seed=1, faults={generate.CORRUPT: 0.02})
    # A job server and workers, as with Flink and Spark; this one is Beam's own, in this process.
    elsewhere = _run(
        tmp_path,
        "elsewhere",
        [
            "--runner=PortableRunner",
            "--job_endpoint=embed",
            "--environment_type=EXTERNAL",
            f"--environment_config={pool}",
        ],
    )
    here = _run(tmp_path, "here", [])
    assert elsewhere.released
    assert elsewhere.counts == here.counts
    assert _model_digest(elsewhere) == _model_digest(here)
    accuracy = "zero_shot_accuracy"
    assert elsewhere.metrics[accuracy]["value"] == here.metrics[accuracy]["value"]
    assert elsewhere.index["copied"]
