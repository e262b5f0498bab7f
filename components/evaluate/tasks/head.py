"""Classification by the model's own head."""

import numpy as np

from sigline.components.evaluate.metrics.intervals import Measure
from sigline.components.evaluate.predictions import Predictions
from sigline.components.evaluate.tasks import classes
from sigline.components.evaluate.views import View, labelled

_NAME = "classification"
ACCURACY = f"{_NAME}_accuracy"


def measures(view: View) -> dict[str, Measure]:
    """Returns the metrics; none of a model without a head."""
    return of_split(view, view.split, sliced=True)


def of_split(view: View, split: Predictions, *, sliced: bool) -> dict[str, Measure]:
    """Returns the metrics of what the model says of some images.

    Args:
        view: The model.
        split: What it says.
        sliced: Whether to measure the accuracy by slices, too.
    """
    if split.class_logits is None:
        return {}
    split = split.only(labelled(split))
    assert split.class_logits is not None
    predicted = probabilities(split.class_logits, view.class_loss)
    return classes.measures(_NAME, split, split.class_logits, predicted, sliced=sliced)


def probabilities(logits: np.ndarray, loss: str) -> np.ndarray:
    """Returns what logits of a head mean, float64 of the same shape.

    Args:
        logits: Shape `(records, classes)`.
        loss: What the head was trained by: `softmax` or `sigmoid`.
    """
    logits = np.asarray(logits, np.float64)
    if loss == "sigmoid":
        return np.exp(-np.logaddexp(0.0, -logits))
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)
