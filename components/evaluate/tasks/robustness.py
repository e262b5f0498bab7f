"""Robustness: the main metrics of corrupted images, as `NAME/corruption=KIND@SEVERITY`."""

from sigline.components.evaluate.metrics.intervals import Measure
from sigline.components.evaluate.tasks import images
from sigline.components.evaluate.views import View


def measures(view: View) -> dict[str, Measure]:
    """Returns the metrics of each corruption."""
    return {
        f"{metric}/corruption={name}": measure
        # Corrupted images keep the texts of the original ones.
        for name, split in view.corrupted.items()
        for metric, measure in images.measures(view, split).items()
    }
