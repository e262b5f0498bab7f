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
    scores, predicted = of_head(view, split)
    return classes.measures(_NAME, split, scores, predicted, sliced=sliced)


def of_head(view: View, split: Predictions) -> tuple[np.ndarray, np.ndarray]:
    """Returns scores and probabilities of the classes, both `(records, classes)`, by the head.

    A head that learnt a tree of classes tells apart those of each level. Of a record compete the
    classes of its labels' levels, by their probability within the level; the score of the others is
    minus infinity and their probability zero.

    Args:
        view: The model.
        split: Labelled records that it has logits of.
    """
    logits = split.class_logits
    assert logits is not None
    if not view.levels:
        return logits, probabilities(logits, view.class_loss)
    levels = np.array(view.levels)
    predicted = np.empty(logits.shape, np.float64)
    for level in np.unique(levels):
        predicted[:, levels == level] = probabilities(logits[:, levels == level], "softmax")
    competing = np.array(
        [np.isin(levels, [view.levels[c] for c in _known(r.label, levels)]) for r in split.records]
    )
    predicted = np.where(competing, predicted, 0.0)
    # A probability that is too small for a number still competes.
    tiny = np.finfo(np.float64).tiny
    scores = np.where(competing, np.log(np.maximum(predicted, tiny)), -np.inf)
    return scores, predicted


def _known(label: tuple[int, ...], levels: np.ndarray) -> list[int]:
    """Returns the labels that are classes; `classes.measures` refuses others."""
    return [c for c in label if 0 <= c < len(levels)]


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
