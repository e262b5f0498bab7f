"""Classification metrics of scores, with one right class or several."""

from collections.abc import Callable

import numpy as np

from sigline.components.evaluate.metrics import retrieval

_ROWS = 1024


def ranks(scores: np.ndarray, labels: list[np.ndarray]) -> np.ndarray:
    """Returns how many wrong classes score at least as high as the best right one.

    An example is right among the first k where that is less than k; with several labels it is so
    if any of them is there ("set accuracy", as for ImageNet ReaL). Ties and NaN count against the
    model.

    Args:
        scores: Shape `(examples, classes)`.
        labels: The classes of each example, at least one.

    Returns:
        Shape `(examples,)`, int64.
    """
    wrong_above = np.empty(len(scores), np.int64)
    for row, right in enumerate(labels):
        limit = scores[row, right].max() - retrieval.TIE
        others = np.count_nonzero(~(scores[row] < limit))
        wrong_above[row] = others - np.count_nonzero(~(scores[row, right] < limit))
    return wrong_above


def last_ranks(scores: np.ndarray, labels: list[np.ndarray]) -> np.ndarray:
    """Returns how many wrong classes score at least as high as the worst right one; see `ranks`.

    A model that sees one thing in each picture has rank 0 by `ranks` and not by this: the single
    tag bias of CLIP (arXiv 2404.00384).
    """
    wrong_above = np.empty(len(scores), np.int64)
    for row, right in enumerate(labels):
        limit = scores[row, right].min() - retrieval.TIE
        wrong = np.delete(scores[row], right)
        wrong_above[row] = np.count_nonzero(~(wrong < limit))
    return wrong_above


def predictions(scores: np.ndarray) -> np.ndarray:
    """Returns the best class of each example, shape `(examples,)`; -1 where several tie for it."""
    best = scores.max(axis=1, keepdims=True)
    alone = np.count_nonzero(~(scores < best - retrieval.TIE), axis=1) == 1
    return np.where(alone, scores.argmax(axis=1), -1)


def class_scores(image: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Returns the cosines of images and classes, shape `(images, classes)`, float32.

    Args:
        image: Unit embeddings, shape `(images, dim)`.
        classes: Unit embeddings, shape `(classes, dim)`.
    """
    scores = np.empty((len(image), len(classes)), np.float32)
    for top in range(0, len(image), _ROWS):
        scores[top : top + _ROWS] = image[top : top + _ROWS] @ classes.T
    return scores


def average_precision(
    scores: np.ndarray, relevant: np.ndarray
) -> Callable[[np.ndarray], np.ndarray]:
    """Average precision of one class: the sum over thresholds of precision times gained recall.

    AP = sum_n (R_n - R_{n-1}) P_n; examples of the same score are one threshold.

    Args:
        scores: Shape `(examples,)`.
        relevant: Whether each has the class, shape `(examples,)`.

    Returns:
        A function of how often each example counts, shape `(draws, examples)`: the values, shape
        `(draws,)`, NaN where nothing that counts is relevant.
    """
    order = np.argsort(-scores, kind="stable")
    relevant = relevant[order]
    # Thresholds are the ends of runs of equal scores; those without a relevant example are left
    # out, since they add no recall.
    ranked = scores[order]
    last = np.append(np.flatnonzero(ranked[1:] != ranked[:-1]), len(scores) - 1)
    counts = np.cumsum(relevant)[last]
    last = last[np.diff(counts, prepend=0) > 0]

    def of(weights: np.ndarray) -> np.ndarray:
        counted = weights[:, order]
        ranked = np.cumsum(counted, axis=1)[:, last]
        hits = np.cumsum(counted * relevant, axis=1)[:, last]
        gained = np.diff(hits, axis=1, prepend=0.0)
        with np.errstate(invalid="ignore"):
            precision = np.where(ranked > 0, hits / np.maximum(ranked, 1e-300), 0.0)
            return (gained * precision).sum(axis=1) / gained.sum(axis=1)

    return of


def confusions(
    labels: np.ndarray, predicted: np.ndarray, names: tuple[str, ...], top: int
) -> list[tuple[str, str, int]]:
    """Returns the most frequent mistakes: the class, what it was taken for, and how often.

    Args:
        labels: The class of each example, shape `(examples,)`.
        predicted: What it was taken for; -1, where classes tied, is left out.
        names: Names of the classes.
        top: How many to return.
    """
    wrong = (labels != predicted) & (predicted >= 0)
    pairs, counts = np.unique(
        np.stack([labels[wrong], predicted[wrong]], axis=1), axis=0, return_counts=True
    )
    order = np.argsort(-counts, kind="stable")[:top]
    return [(names[pairs[i, 0]], names[pairs[i, 1]], int(counts[i])) for i in order]
