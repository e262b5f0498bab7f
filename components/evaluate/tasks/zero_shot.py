"""Zero-shot classification: images against the embeddings of the classes' prompts."""

import numpy as np

from sigline.components.evaluate.metrics import classification
from sigline.components.evaluate.metrics.intervals import Measure
from sigline.components.evaluate.tasks import classes
from sigline.components.evaluate.views import DEFAULT_PROMPTS, View, labelled

_NAME = "zero_shot"
ACCURACY = f"{_NAME}_accuracy"


def measures(view: View) -> dict[str, Measure]:
    """Returns the metrics of each set of prompts; those of the others with `/prompts=NAME`."""
    measured = {}
    for prompts, embeddings in view.classes.items():
        suffix = f"/prompts={prompts}" if prompts != DEFAULT_PROMPTS else ""
        for name, measure in of_prompts(view, embeddings, sliced=not suffix).items():
            measured[name + suffix] = measure
    return measured


def of_prompts(view: View, embeddings: np.ndarray, *, sliced: bool) -> dict[str, Measure]:
    """Returns the metrics of one set of prompts.

    Args:
        view: The split as the model sees it.
        embeddings: Unit embeddings of the classes, shape `(classes, dim)`.
        sliced: Whether to measure the accuracy by slices, too.
    """
    split = view.split.only(labelled(view.split))
    scores = classification.class_scores(split.image, embeddings)
    predicted = None if view.scale is None else view.scale.probabilities(scores)
    return classes.measures(_NAME, split, scores, predicted, sliced=sliced)
