"""The measurements of a model: one file for each task, and the table of them."""

from collections.abc import Callable

from sigline.components.evaluate.metrics.intervals import Measure
from sigline.components.evaluate.tasks import (
    composition,
    grids,
    head,
    health,
    probes,
    retrieval,
    robustness,
    teacher,
    zero_shot,
)
from sigline.components.evaluate.views import View

# Each task returns measures by name, or none if the model or the data does not allow them.
TASKS: tuple[Callable[[View], dict[str, Measure]], ...] = (
    zero_shot.measures,
    head.measures,
    retrieval.measures,
    health.measures,
    probes.measures,
    composition.measures,
    robustness.measures,
    grids.measures,
    teacher.measures,
)
