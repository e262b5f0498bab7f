"""`sigline seeds`, as a user calls it."""

import json

import numpy as np
import pytest
import yaml
from scipy import stats

from sigline import cli
from sigline.schemas.gate import Gate

ACCURACY, SLICE, COST = "zero_shot_accuracy", "zero_shot_accuracy/source=web", "model_bytes"
OURS, THEIRS = [0.51, 0.53, 0.52, 0.55], [0.47, 0.45, 0.50]


@pytest.fixture
def write(tmp_path):
    def run(name, value, **more):
        folder = tmp_path / name
        folder.mkdir()
        metrics = {
            ACCURACY: {"value": value, "examples": 400},
            SLICE: {"value": value / 2, "examples": 100},
            COST: {"value": 1000.0, "examples": 0},
        }
        (folder / "metrics.json").write_text(json.dumps(metrics | more))
        return str(folder)

    return run


@pytest.fixture
def runs(write):
    ours = [write(f"ours-{i}", value) for i, value in enumerate(OURS)]
    return ours, [write(f"theirs-{i}", value) for i, value in enumerate(THEIRS)]


def test_table_and_file(runs, tmp_path, capsys):
    output = tmp_path / "seeds.json"
    ours, theirs = runs
    assert cli.main(["seeds", *ours, "--against", *theirs, "--output", str(output)]) == 0
    said = capsys.readouterr().out
    assert "told apart" in next(line for line in said.splitlines() if line.startswith(ACCURACY))
    assert SLICE not in said
    found = json.loads(output.read_text())
    assert set(found) == {ACCURACY, SLICE, COST}
    one = found[ACCURACY]
    assert one["mean"]["value"] == pytest.approx(np.mean(OURS))
    assert one["std"] == pytest.approx(np.std(OURS, ddof=1))
    # Welch's interval, written out.
    parts = [np.var(x, ddof=1) / len(x) for x in (OURS, THEIRS)]
    degrees = sum(parts) ** 2 / sum(
        part**2 / (len(x) - 1) for part, x in zip(parts, (OURS, THEIRS), strict=True)
    )
    half = stats.t.ppf(0.975, degrees) * sum(parts) ** 0.5
    difference = np.mean(OURS) - np.mean(THEIRS)
    assert one["difference"]["value"] == pytest.approx(difference)
    assert one["difference"]["low"] == pytest.approx(difference - half)
    assert one["difference"]["high"] == pytest.approx(difference + half)
    assert found[COST]["difference"] == {"value": 0.0, "low": 0.0, "high": 0.0}


def test_gate_takes_what_is_printed(runs, capsys):
    assert cli.main(["seeds", *runs[0], "--metric", ACCURACY]) == 0
    text = capsys.readouterr().out
    printed = yaml.safe_load(text[text.index("seed_std:") :])
    gate = Gate.from_dict({"minimum": {ACCURACY: 0.5}} | printed)
    assert gate.seed_std == {ACCURACY: pytest.approx(np.std(OURS, ddof=1), rel=1e-3)}


def test_metric_that_some_lack_is_said(runs, write, capsys):
    more = write("more", 0.5, recall={"value": 0.1, "examples": 3}, rank={"examples": 3})
    assert cli.main(["seeds", runs[0][0], more]) == 0
    assert "Left out, since some runs lack them: recall" in capsys.readouterr().out


def test_mistake_is_one_line(runs, write, tmp_path, capsys):
    (one, two, *_), _ = runs
    broken = write("broken", 0.5)
    (tmp_path / "broken" / "metrics.json").write_text('{"a": {"value": "x", "examples": 1}}')
    other_data = write("other", 0.5, **{ACCURACY: {"value": 0.5, "examples": 399}})
    for arguments, message in (
        ([one], "needs two of them"),
        ([one, one], "must each come once"),
        ([one, two, "--against", broken], "must be what `sigline gate --output` wrote"),
        ([one, str(tmp_path)], "must be what `sigline gate --output` wrote"),
        ([one, other_data], "zero_shot_accuracy over 399, 400 examples"),
        ([one, two, "--metric", "accuracy"], "must be one that all runs have"),
    ):
        assert cli.main(["seeds", *arguments]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert len(error.splitlines()) == 1
