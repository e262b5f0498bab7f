"""A FlexiViT's main metrics at each of its grids, as `NAME/grid=G`.

What a grid costs in quality is `NAME_difference/grid=G`: the metric minus that of the default grid,
whose interval is of the same examples at both, so that what is hard for both cancels.
"""

from sigline.components.evaluate.metrics import intervals
from sigline.components.evaluate.metrics.intervals import Measure
from sigline.components.evaluate.tasks import images
from sigline.components.evaluate.views import View

DIMENSION = "grid"


def measures(view: View) -> dict[str, Measure]:
    """Returns the metrics of each grid; none of a model of one grid."""
    if not view.by_grid:
        return {}
    default, measured = images.measures(view, view.split), {}
    for grid, split in view.by_grid.items():
        for metric, measure in images.measures(view, split).items():
            measured[f"{metric}/{DIMENSION}={grid}"] = measure
            if split is not view.split:
                change = _difference(measure, default[metric])
                measured[f"{metric}_difference/{DIMENSION}={grid}"] = change
    return measured


def _difference(measure: Measure, default: Measure) -> Measure:
    """Returns the mean over units of how much more each counts; both are means of one split."""
    assert measure.values is not None
    assert default.values is not None
    values = measure.values - default.values
    return intervals.mean(measure.units, values, clusters=measure.clusters)
