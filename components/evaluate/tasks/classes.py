"""Metrics of choosing classes by scores: cosines with prompts, or logits of a head."""

import numpy as np

from sigline.components.evaluate import slices
from sigline.components.evaluate.metrics import calibration, classification, intervals, retrieval
from sigline.components.evaluate.metrics.intervals import Measure
from sigline.components.evaluate.predictions import Predictions


def measures(
    prefix: str,
    split: Predictions,
    scores: np.ndarray,
    probabilities: np.ndarray | None,
    *,
    sliced: bool,
) -> dict[str, Measure]:
    """Returns top-1 and top-5, by class, of several labels, and calibration.

    A record with several labels is right with any of them; `all_labels` asks for all.

    Args:
        prefix: What names begin with.
        split: Labelled records.
        scores: Shape `(records, classes)`, larger is likelier; minus infinity for classes that do
            not compete.
        probabilities: As many, for calibration; None for none.
        sliced: Whether to measure top-1 by slices, too.

    Raises:
        ValueError: If a label is no class.
    """
    if not split.records:
        return {}
    labels = [np.unique(record.label) for record in split.records]
    for record in split.records:
        if min(record.label) < 0 or max(record.label) >= scores.shape[1]:
            raise ValueError(
                f"Labels must be classes, of which there are {scores.shape[1]}. "
                f"Received: label={list(record.label)}, key={record.unit}"
            )
    counts = np.array([len(classes) for classes in labels])
    ranks = classification.ranks(scores, labels)
    competing = np.count_nonzero(scores > -np.inf, axis=1)
    accuracy, measured = f"{prefix}_accuracy", {}
    for k in (1, 5):
        if k < scores.shape[1]:
            name = accuracy if k == 1 else f"{accuracy}@{k}"
            chances = _chances(competing, counts, k)
            measured[name] = intervals.mean(split.units, ranks < k, chances=chances)
    if sliced and accuracy in measured:
        by = slices.transposed(slices.of_record(record) for record in split.records)
        measured |= slices.sliced(accuracy, measured[accuracy], by)
    measured |= _by_class(prefix, split, scores, labels, competing)
    if probabilities is not None:
        measured |= _calibration(prefix, split, probabilities)
    return measured


def _chances(competing: np.ndarray, counts: np.ndarray, k: int) -> np.ndarray:
    """Returns how likely guessing is right among the first k, by the number that compete."""
    chances = np.empty(len(counts))
    for number in np.unique(competing):
        rows = competing == number
        chances[rows] = retrieval.chance_at_k(int(number), counts[rows], k)
    return chances


def _by_class(
    prefix: str,
    split: Predictions,
    scores: np.ndarray,
    labels: list[np.ndarray],
    competing: np.ndarray,
) -> dict[str, Measure]:
    measured, single = {}, np.array([len(classes) == 1 for classes in labels])
    if single.any():
        first = np.array([classes[0] for classes in labels])[single]
        right = classification.predictions(scores[single]) == first
        measured[f"{prefix}_mean_class_recall"] = intervals.mean_of_means(
            _at(split.units, single),
            right,
            first,
            chances=1.0 / competing[single],
        )
    if not single.all():
        several = ~single
        last = classification.last_ranks(scores[several], [x for x in labels if len(x) > 1])
        measured[f"{prefix}_all_labels"] = intervals.mean(_at(split.units, several), last == 0)
        measured[f"{prefix}_mean_average_precision"] = _mean_average_precision(
            split, scores, labels
        )
    return measured


def _at(units: tuple[str, ...], chosen: np.ndarray) -> list[str]:
    return [units[i] for i in np.flatnonzero(chosen)]


def _mean_average_precision(
    split: Predictions, scores: np.ndarray, labels: list[np.ndarray]
) -> Measure:
    relevant = np.zeros(scores.shape, bool)
    for row, classes in enumerate(labels):
        relevant[row, classes] = True
    by_class = [
        classification.average_precision(scores[:, c], relevant[:, c])
        for c in np.flatnonzero(relevant.any(axis=0))
    ]

    def statistic(weights: np.ndarray) -> np.ndarray:
        return np.nanmean([of(weights) for of in by_class], axis=0)

    return Measure(split.units, statistic, costly=True)


def _calibration(prefix: str, split: Predictions, probabilities: np.ndarray) -> dict[str, Measure]:
    came = np.zeros(probabilities.shape, bool)
    for row, record in enumerate(split.records):
        came[row, list(record.label)] = True
    brier = calibration.squared_error(probabilities, came).mean(axis=1)
    return {
        f"{prefix}_calibration_error": calibration.calibration_error(
            split.units, probabilities, came
        ),
        f"{prefix}_brier_score": intervals.mean(split.units, brier),
    }
