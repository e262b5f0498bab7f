"""Health of the embeddings: norms, ranks, and how far images and texts lie apart."""

import numpy as np

from sigline.components.evaluate.metrics import health, intervals
from sigline.components.evaluate.metrics.intervals import Measure
from sigline.components.evaluate.predictions import Predictions
from sigline.components.evaluate.views import View


def measures(view: View) -> dict[str, Measure]:
    """Returns the metrics of images, and of texts if the model reads any."""
    split = view.split
    units = split.units
    measured = {"image_norm": intervals.mean(units, np.linalg.norm(split.image, axis=1))}
    measured["image_effective_rank"] = health.effective_rank(units, split.image)
    if len(units) > 1:
        measured["image_mean_similarity"] = health.mean_similarity(units, split.image)
    return measured | (_texts(split.captioned()) if view.reads else {})


def _texts(split: Predictions) -> dict[str, Measure]:
    assert split.text is not None
    units, starts = split.units, split.text_starts
    sums = np.add.reduceat(split.text.astype(np.float64), starts[:-1], axis=0)
    text = sums / np.diff(starts)[:, None]
    first = split.text[starts[:-1]]
    matching = np.einsum("nd,nd->n", split.image.astype(np.float64), text)
    measured = {
        "text_norm": intervals.mean(units, np.linalg.norm(first, axis=1)),
        "text_effective_rank": health.effective_rank(units, first),
        "modality_gap": health.modality_gap(units, split.image, text),
        "pair_similarity": intervals.mean(units, matching),
    }
    if len(units) > 1:
        measured["text_mean_similarity"] = health.mean_similarity(units, first)
    return measured
