"""Probes: what simple classifiers of the image embeddings reach."""

import numpy as np

from sigline.components.evaluate.metrics import intervals, probes
from sigline.components.evaluate.metrics.intervals import Measure
from sigline.components.evaluate.predictions import Predictions
from sigline.components.evaluate.views import View

NEIGHBORS = 20
# Temperature by which neighbours' votes are weighted; arXiv 1805.01978.
_VOTE_TEMPERATURE = 0.07
_PROBED_SHOTS = (1, 5, 10)


def measures(view: View) -> dict[str, Measure]:
    """Returns what probes reach on records with one label; each learns from the support's."""
    if view.support is None:
        return {}
    query, query_labels = _one_label(view.split)
    support, labels = _one_label(view.support)
    if not len(query_labels) or not len(labels):
        return {}
    x, s = query.image, support.image
    neighbors = probes.nearest_neighbors(s, labels, x, k=NEIGHBORS, temperature=_VOTE_TEMPERATURE)
    linear = probes.logistic(s, labels, x).argmax(axis=1)
    right = {
        f"knn_accuracy@{NEIGHBORS}": neighbors == query_labels,
        "nearest_mean_accuracy": probes.nearest_mean(s, labels, x) == query_labels,
        "linear_probe_accuracy": linear == query_labels,
    }
    for count in _PROBED_SHOTS:
        hits = []
        for seed in range(probes.SEEDS):
            chosen = probes.shots(labels, count, seed=seed)
            hits.append(probes.ridge(s[chosen], labels[chosen], x).argmax(axis=1) == query_labels)
        right[f"few_shot_accuracy@{count}"] = np.mean(hits, axis=0)
    return {name: intervals.mean(query.units, values) for name, values in right.items()}


def _one_label(split: Predictions) -> tuple[Predictions, np.ndarray]:
    positions = [i for i, record in enumerate(split.records) if len(set(record.label)) == 1]
    part = split.only(np.array(positions, np.int64))
    return part, np.array([record.label[0] for record in part.records], np.int64)
