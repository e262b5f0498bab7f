"""The main metrics of the same records by what a model says of their images in another way."""

import dataclasses

from sigline.components.evaluate.metrics.intervals import Measure
from sigline.components.evaluate.predictions import Predictions
from sigline.components.evaluate.tasks import head, retrieval, zero_shot
from sigline.components.evaluate.views import DEFAULT_PROMPTS, View

MAIN = (
    head.ACCURACY,
    zero_shot.ACCURACY,
    f"{retrieval.IMAGE_TO_TEXT}_recall@1",
    f"{retrieval.TEXT_TO_IMAGE}_recall@1",
)


def measures(view: View, images: Predictions) -> dict[str, Measure]:
    """Returns the main metrics by name, as far as the model has them.

    Args:
        view: The split as the model sees it; texts and classes are its own.
        images: What the model says of the images instead.
    """
    split = dataclasses.replace(view.split, image=images.image, class_logits=images.class_logits)
    part = dataclasses.replace(view, split=split, scale=None)
    measured = retrieval.measures(part) | head.of_split(view, split, sliced=False)
    if view.classes:
        measured |= zero_shot.of_prompts(part, view.classes[DEFAULT_PROMPTS], sliced=False)
    return {name: measured[name] for name in MAIN if name in measured}
