"""Whether probabilities mean what they say."""

from collections.abc import Sequence

import numpy as np

from sigline.components.evaluate.metrics.intervals import Measure

BINS = 15


def reliability(
    probabilities: np.ndarray,
    happened: np.ndarray,
    *,
    bins: int = BINS,
    weights: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Bins predictions by probability, with bins of equal width, and compares them with outcomes.

    A bin holds its upper bound and not its lower one, but the first holds 0.

    Args:
        probabilities: Shape `(predictions,)`, within [0, 1].
        happened: Whether each came true, shape `(predictions,)`.
        bins: Number of bins.
        weights: How often each counts, shape `(predictions,)`; once by default.

    Returns:
        For each bin, shape `(bins,)`: the weight in it, the mean predicted probability, and the
        share of predictions that came true; the latter two are NaN for an empty bin.
    """
    index = bin_of(probabilities, bins)
    if weights is None:
        weights = np.ones(len(probabilities))
    count = np.bincount(index, weights, bins)
    with np.errstate(invalid="ignore"):
        predicted = np.bincount(index, weights * probabilities, bins) / count
        came = np.bincount(index, weights * happened, bins) / count
    return count, predicted, came


def bin_of(probabilities: np.ndarray, bins: int = BINS) -> np.ndarray:
    """Returns the bin of each probability, integers."""
    return np.clip(np.ceil(np.asarray(probabilities, np.float64) * bins) - 1, 0, bins - 1).astype(
        np.int64
    )


def calibration_error(
    units: Sequence[str], probabilities: np.ndarray, happened: np.ndarray
) -> Measure:
    """Returns the expected calibration error: the weighted mean of |predicted - true share|.

    ECE = sum_b n_b / n |said_b - came_b| (arXiv 1706.04599).

    Args:
        units: The examples.
        probabilities: Shape `(units, predictions)`.
        happened: Shape `(units, predictions)`.
    """
    gap = np.empty((len(units), BINS))
    for row, (predicted, came) in enumerate(zip(probabilities, happened, strict=True)):
        gap[row] = np.bincount(bin_of(predicted), predicted.astype(np.float64) - came, BINS)
    # The closure holds this number, not the array, which would stay in memory.
    predictions = probabilities.shape[1]
    return Measure(
        tuple(units),
        lambda weights: np.abs(weights @ gap).sum(axis=1) / (weights.sum(axis=1) * predictions),
        biased=True,
    )


def squared_error(probabilities: np.ndarray, happened: np.ndarray) -> np.ndarray:
    """Returns the Brier score of each prediction, (p - happened)^2."""
    return (np.asarray(probabilities, np.float64) - happened) ** 2
