"""Agreement with a teacher's choice of class."""

import numpy as np

from sigline.components.evaluate.metrics import agreement, classification, intervals
from sigline.components.evaluate.metrics.intervals import Measure
from sigline.components.evaluate.views import DEFAULT_PROMPTS, View


def measures(view: View) -> dict[str, Measure]:
    """Returns how far the model's choice of class is from its teacher's."""
    if view.teacher is None:
        return {}
    own, taught = _logits(view), _logits(view.teacher)
    if own is None or taught is None:
        return {}
    return {
        "teacher_agreement": intervals.mean(view.split.units, agreement.agreement(own, taught)),
        "teacher_divergence": intervals.mean(view.split.units, agreement.divergence(own, taught)),
    }


def _logits(view: View) -> np.ndarray | None:
    """Returns logits of classes, by the head or by prompts; None of a model that has neither.

    Logits of a tree of classes can be compared within a level alone, and are left out.
    """
    if view.levels:
        return None
    if view.split.class_logits is not None:
        return view.split.class_logits
    if not view.classes:
        return None
    cosines = classification.class_scores(view.split.image, view.classes[DEFAULT_PROMPTS])
    return cosines * (view.scale.temperature if view.scale else 1.0)
