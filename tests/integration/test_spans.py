"""Data that arrives in spans: only the new is ingested, and the newest accepted are trained on."""

import json
from pathlib import Path

import pytest
from tiny_model import OVERRIDES
from whole_run import write_environment

from sigline.components.scenes import generate
from sigline.pipeline import environment as environments
from sigline.schemas import signatures
from sigline.trainer.inputs import shards

pytestmark = [pytest.mark.tfx, pytest.mark.slow]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("spans")
    for span in (1, 2, 3):
        # The second span is not fit to train on.
        faults = {generate.CORRUPT: 0.3} if span == 2 else {}
        generate.write_scenes(folder / "data" / f"span-{span}", count=400, seed=span, faults=faults)
    return folder


def _run(folder, span=None, **changes):
    from sigline.pipeline import local_run

    values = {
        "input_base": str(folder / "data" / "span-{SPAN}"),
        "window": 2,
        "overrides": [*OVERRIDES, "steps=5", "run.checkpoint_steps=5"],
        "ingest": {"eval_share": 0.2},
        "data_gate": {"max_drift": {"source": 0.5}, "warn": {"max_shift": {"words": 0}}},
    }
    if span is not None:
        values["span"] = span
    return local_run.run(
        environments.load(write_environment(folder, "spans", **(values | changes)))
    )


def _outputs(report):
    return {node.name: node.outputs for node in report.nodes}


def _states(report):
    return {node.name: node.state for node in report.nodes}


def _metadata(report):
    path = Path(_outputs(report)["Trainer"]["model"])
    return json.loads(next(path.rglob(signatures.METADATA_FILE)).read_text())


def test_newest_accepted_spans_are_trained_on(folder, capfd):
    first = _run(folder, 1)
    assert first.counts["input"] == 400
    assert "warns" not in capfd.readouterr().err
    with pytest.raises(RuntimeError, match="The data gate stopped the pipeline"):
        _run(folder, 2)
    third = _run(folder)
    # Compared with the first span, since the second was refused.
    warned = Path(_outputs(third)["ReportData"]["report"]) / "warnings.json"
    assert "of the last accepted data" in json.loads(warned.read_text())[0]
    assert "The data gate warns: split" in capfd.readouterr().err
    folders = [
        Path(_outputs(report)["IngestExamples"]["examples"]) / "Split-train"
        for report in (first, third)
    ]
    assert _metadata(third)["data_digest"] == shards.data_digest(folders)
    assert _metadata(first)["data_digest"] == shards.data_digest(folders[0])
    again = _run(folder)
    done = {name for name, state in _states(again).items() if state == "cached"}
    assert {"IngestExamples", "StatisticsGen", "ReportData", "CheckData", "Trainer"} <= done
