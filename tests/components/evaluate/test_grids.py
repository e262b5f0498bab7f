"""A FlexiViT is measured, shown and gated at each of its grids."""

import numpy as np
import pytest

from sigline.components.evaluate import costs, evaluation, gate, plots, report, results
from sigline.components.evaluate.findings import Findings
from sigline.components.evaluate.metrics import intervals
from sigline.components.evaluate.predictions import EvalRecord, Predictions
from sigline.components.evaluate.views import View
from sigline.schemas.gate import Gate

COUNT, CLASSES = 60, 4
ACCURACY = "classification_accuracy"


def _predictions(noise):
    rng = np.random.default_rng(0)
    labels = rng.integers(CLASSES, size=COUNT)
    logits = noise * rng.standard_normal((COUNT, CLASSES))
    logits[np.arange(COUNT), labels] += 1.0
    image = rng.standard_normal((COUNT, 3))
    image /= np.linalg.norm(image, axis=1, keepdims=True)
    records = tuple(
        EvalRecord(f"{i:02d}", "s", (int(label),), (), (), 64, 64, f"{i:064x}")
        for i, label in enumerate(labels)
    )
    arrays = image.astype(np.float32), logits.astype(np.float32)
    return Predictions(records, arrays[0], None, None, class_logits=arrays[1])


@pytest.fixture(scope="module")
def view():
    """A model that sees better with more patches, and whose default is in the middle."""
    by_grid = {2: _predictions(2.0), 4: _predictions(0.5), 8: _predictions(0.2)}
    return View(by_grid[4], by_grid=by_grid)


@pytest.fixture(scope="module")
def measured(view):
    return evaluation.measures(view)


def test_each_grid_has_the_metrics_of_its_own_predictions(view, measured):
    for grid, split in view.by_grid.items():
        expected = evaluation.measures(View(split))[ACCURACY]
        assert measured[f"{ACCURACY}/grid={grid}"].value == expected.value
        assert measured[f"{ACCURACY}/grid={grid}"].chance == expected.chance
    assert measured[f"{ACCURACY}/grid=4"].value == measured[ACCURACY].value
    assert not any("grid" in name for name in evaluation.measures(View(view.split)))


def test_difference_from_the_default_is_paired(view, measured):
    names = {name for name in measured if "_difference/" in name}
    assert names == {f"{ACCURACY}_difference/grid={grid}" for grid in (2, 8)}
    own, default = measured[f"{ACCURACY}/grid=2"], measured[ACCURACY]
    estimate = intervals.estimate(measured[f"{ACCURACY}_difference/grid=2"])
    assert estimate.value == pytest.approx(own.value - default.value)
    # As a comparison with another model on the same examples.
    compared = intervals.compare(own, default)
    assert estimate.low == pytest.approx(compared.low, abs=0.03)
    assert estimate.high == pytest.approx(compared.high, abs=0.03)


def test_gate_can_demand_each_grid(measured):
    found = results.summarize(measured, None)
    low = {grid: found[f"{ACCURACY}/grid={grid}"].value for grid in (2, 4, 8)}
    assert low[2] < 0.75 < low[4] < low[8]
    by_name = Gate(minimum={f"{ACCURACY}/grid=8": 0.75, f"{ACCURACY}/grid=2": 0.75})
    every = Gate(slice_minimum={ACCURACY: {"grid": 0.75}})
    for limits, checked in ((by_name, 2), (every, 3)):
        verdict = gate.judge(found, limits, has_baseline=False)
        assert len(verdict.checks) == checked
        assert [x.metric for x in verdict.checks if not x.passed] == [f"{ACCURACY}/grid=2"]
    loss = Gate(minimum={f"{ACCURACY}_difference/grid=2": -0.05})
    assert not gate.judge(found, loss, has_baseline=False).blessed


def test_report_has_a_table_and_a_plot_by_grid(measured):
    found = results.summarize(measured, None)
    for grid in (2, 4, 8):
        name = f"latency_ms/embed_image@1/grid={grid}"
        found |= results.costs({name: costs.Cost(grid, 0.9 * grid, 1.2 * grid)}, None)
    page = report.content(gate.Verdict(()), found, Findings(), report.Subject("a model"))
    rows = page["grids"]["rows"]
    assert [row["grid"] for row in rows] == ["2 x 2", "4 x 4", "8 x 8"]
    assert [row["latency"] for row in rows] == [
        "2 (1.8 to 2.4)",
        "4 (3.6 to 4.8)",
        "8 (7.2 to 9.6)",
    ]
    assert rows[1]["change"] == ""
    assert rows[0]["change"].startswith("-")
    assert page["grids"]["plot"].count("<circle") == 3
    # They are not among the metrics of the default grid.
    assert not any("grid=" in row["name"] for row in page["metrics"]["rows"])
    html = report.page(gate.Verdict(()), found, Findings(), report.Subject("a model"))
    assert "By number of patches" in html
    plain = {name: x for name, x in found.items() if "grid=" not in name}
    assert report.content(gate.Verdict(()), plain, Findings(), report.Subject("a"))["grids"] is None


def test_plot_of_grids_takes_what_has_no_interval():
    point = plots.GridPoint(7, results.Result(3.0), results.Result(0.5))
    assert "7 x 7 patches: 50.0%, 3 ms" in plots.grids("accuracy", [point])
