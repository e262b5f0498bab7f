"""The programs that a TPU v4 would run: lowered by tensorflow-tpu, compiled by libtpu, read."""

import json
import re
import subprocess
from pathlib import Path

import pytest

from sigline.trainer import config

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
TRAINER = ROOT / ".venv-tpu/bin/python"
COMPILER = ROOT / ".venv-tpu-compiler/bin/python"
REPLICAS, REPLICA_BATCH = 4, 640
GLOBAL_BATCH = REPLICAS * REPLICA_BATCH
# Texts go on to all but the last replica, their gradients all the way home.
PERMUTES = (REPLICAS - 1) + REPLICAS


def _compile(request, folder):
    for python in (TRAINER, COMPILER):
        if not python.exists():
            pytest.skip(f"no TPU environment: {python} does not exist; `make tpu-check` makes it")
    (folder / "request.json").write_text(json.dumps(request))
    program, result = folder / "program.mlir", folder / "result.json"
    lower = [TRAINER, ROOT / "benchmarks/tpu_lower.py", folder / "request.json"]
    _run(*lower, "--output", program)
    compile_ = [COMPILER, ROOT / "benchmarks/tpu_compiler/compile.py", program]
    _run(*compile_, "--topology", "v4:2x2x1", "--output", result)
    return (
        program.read_text(),
        result.with_suffix(".hlo").read_text(),
        json.loads(result.read_text()),
    )


def _run(*command):
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


def _shapes(hlo):
    found = re.findall(r"\b(?:f32|bf16|s32|u32|pred|u8)\[([\d,]+)\]", hlo)
    return {tuple(int(x) for x in shape.split(",")) for shape in found}


@pytest.fixture(scope="module")
def ring(tmp_path_factory):
    loss = {"batch": REPLICA_BATCH, "dim": 64, "num_replicas": REPLICAS, "form": "ring"}
    return _compile({"loss": loss}, tmp_path_factory.mktemp("ring"))


def test_ring_travels_by_collective_permutes_alone(ring):
    program, hlo, result = ring
    assert program.count('"stablehlo.collective_permute"') == PERMUTES
    assert result["collectives"]["collective-permute"] == PERMUTES
    others = {name: n for name, n in result["collectives"].items() if name != "collective-permute"}
    assert not any(others.values()), others
    assert len(re.findall(r" collective-permute(?:-start)?\(", hlo)) == PERMUTES


def test_ring_holds_no_matrix_of_all_pairs(ring):
    shapes = _shapes(ring[1])
    assert (REPLICA_BATCH, 64) in shapes
    assert not any(GLOBAL_BATCH in shape for shape in shapes)


def test_dense_form_is_caught_by_the_same_check(tmp_path):
    loss = {"batch": REPLICA_BATCH, "dim": 64, "num_replicas": REPLICAS, "form": "dense"}
    _, hlo, _ = _compile({"loss": loss}, tmp_path)
    assert (REPLICA_BATCH, GLOBAL_BATCH) in _shapes(hlo)


def test_training_step_compiles_with_its_ring_and_its_sums(tmp_path):
    tiny = config.tiny(config.load_recipe("siglip_demo"))
    settings = config.override(
        tiny,
        [
            f"global_batch_size={GLOBAL_BATCH}",
            # Nine patches: four, times the replica's batch, would look like the global batch.
            "image.size=12",
            "precision=bfloat16",
            "rematerialize=true",
            "optimizer.first_moment_dtype=bfloat16",
        ],
    )
    request = {
        "config": json.loads(settings.to_json()),
        "num_replicas": REPLICAS,
        "form": "live",
    }
    _, hlo, result = _compile(request, tmp_path)
    assert result["collectives"]["collective-permute"] == PERMUTES
    # Gradients and scalars are summed over the chips.
    assert result["collectives"]["all-reduce"] > 0
    assert not any(GLOBAL_BATCH in shape for shape in _shapes(hlo))
