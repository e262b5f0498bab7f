"""From what a model says of a split to measures, by name."""

from sigline.components.evaluate import tasks
from sigline.components.evaluate.metrics.intervals import Measure
from sigline.components.evaluate.views import View


def measures(view: View) -> dict[str, Measure]:
    """Returns all measures that a split allows, by name; slices as `NAME/DIMENSION=VALUE`.

    Raises:
        ValueError: If predictions are not finite, with the keys, or a label has no class.
    """
    if problems := view.split.problems():
        raise ValueError("; ".join(problems))
    measured: dict[str, Measure] = {}
    for task in tasks.TASKS:
        measured |= task(view)
    return measured
