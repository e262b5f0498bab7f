"""Robustness: the main metrics of corrupted images, as `NAME/corruption=KIND@SEVERITY`."""

import dataclasses

from sigline.components.evaluate.metrics.intervals import Measure
from sigline.components.evaluate.tasks import head, retrieval, zero_shot
from sigline.components.evaluate.views import DEFAULT_PROMPTS, View

_MAIN = (
    zero_shot.ACCURACY,
    head.ACCURACY,
    f"{retrieval.IMAGE_TO_TEXT}_recall@1",
    f"{retrieval.TEXT_TO_IMAGE}_recall@1",
)


def measures(view: View) -> dict[str, Measure]:
    """Returns the metrics of each corruption."""
    measured = {}
    for name, split in view.corrupted.items():
        # Corrupted images keep the texts of the original ones.
        split = dataclasses.replace(view.split, image=split.image, class_logits=split.class_logits)
        part = dataclasses.replace(view, split=split, scale=None)
        of_part = retrieval.measures(part) | head.of_split(view, split, sliced=False)
        if view.classes:
            of_part |= zero_shot.of_prompts(part, view.classes[DEFAULT_PROMPTS], sliced=False)
        for metric in _MAIN:
            if metric in of_part:
                measured[f"{metric}/corruption={name}"] = of_part[metric]
    return measured
