"""The table of memory on a TPU: what its rows ask to compile, and what it says of a line."""

import importlib.util
import json
from pathlib import Path

import pytest

from sigline.trainer import config

PATH = Path(__file__).resolve().parents[2] / "benchmarks" / "tpu_memory.py"


@pytest.fixture(scope="module")
def tpu_memory():
    spec = importlib.util.spec_from_file_location("tpu_memory", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_row_asks_for_its_own_depth_and_batch(tpu_memory):
    for row in tpu_memory.rows():
        for depth in row.depths:
            asked = tpu_memory.request(row, depth)
            if row.settings is None:
                assert asked["loss"]["batch"] * row.num_chips == row.global_batch_size
                continue
            settings = config.from_json(json.dumps(asked["config"]))
            towers = [tower for tower in (settings.image, settings.text) if tower is not None]
            assert {tower.depth for tower in towers} == {depth}
            assert settings.global_batch_size == row.global_batch_size


def test_line_through_shallow_compiles_says_what_does_not_fit(tpu_memory, tmp_path):
    (row,) = (row for row in tpu_memory.rows() if row.depth == 48)
    fields = ("peak_gib", "temp_gib", "argument_gib", "flops")
    compiled = {
        depth: dict.fromkeys(fields, 10.0 + 5.0 * depth) | {"collectives": {"all-reduce": 3}}
        for depth in (1, 2)
    }
    entry = tpu_memory.describe(row, compiled)
    assert (entry["peak_gib"], entry["fits"]) == (10.0 + 5.0 * 48, False)
    versions = dict.fromkeys(("date", "tensorflow", "jax", "libtpu"), "x")
    table = tmp_path / "table.md"
    tpu_memory.write_table({"environment": versions, "rows": [entry]}, table)
    assert (
        table.read_text().rstrip().endswith("| ~2.50e+02 | 3 all-reduce | does not fit: 250 GiB |")
    )
