"""Evaluation metrics over whole sets, in NumPy."""

import numpy as np

# Rows of scores that are held at a time.
_CHUNK = 1024


def zero_shot_predictions(image: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Returns the best class of each image.

    Args:
        image: Unit embeddings, shape `(images, dim)`.
        classes: Unit embeddings of the classes, shape `(classes, dim)`.

    Returns:
        Class ids, shape `(images,)`; -1 where classes tie for the best score, since a model that
        cannot tell them apart has not classified the image.
    """
    predictions = np.empty(len(image), np.int64)
    for start in range(0, len(image), _CHUNK):
        scores = image[start : start + _CHUNK] @ classes.T
        best = scores.max(axis=1, keepdims=True)
        unique = (scores == best).sum(axis=1) == 1
        predictions[start : start + _CHUNK] = np.where(unique, scores.argmax(axis=1), -1)
    return predictions


def recall_at_k(
    queries: np.ndarray, gallery: np.ndarray, positives: list[np.ndarray], ks: tuple[int, ...]
) -> dict[int, float]:
    """Returns the share of queries with a positive among the k best of the gallery.

    A query hits if any of its positives does. Ties count against the model: an entry that scores as
    high as the positive ranks before it, so a collapsed model has recall 0 and not 1, and so does
    one whose embeddings are NaN.

    Args:
        queries: Unit embeddings, shape `(queries, dim)`.
        gallery: Unit embeddings, shape `(entries, dim)`.
        positives: For each query the positions of its positives, at least one.
        ks: Numbers of results.

    Returns:
        Recall by k; NaN without queries.
    """
    ranks = np.empty(len(queries), np.int64)
    for start in range(0, len(queries), _CHUNK):
        scores = queries[start : start + _CHUNK] @ gallery.T
        for row, wanted in enumerate(positives[start : start + _CHUNK]):
            best = scores[row, wanted].max()
            # Not "at least as high" but "not lower": NaN, too, counts against the model.
            others = np.count_nonzero(~(scores[row] < best))
            others -= np.count_nonzero(~(scores[row, wanted] < best))
            ranks[start + row] = others
    return {k: float(np.mean(ranks < k)) if len(queries) else float("nan") for k in ks}


def chance_recall_at_k(
    entries: int, positives: list[np.ndarray], ks: tuple[int, ...]
) -> dict[int, float]:
    """Returns the recall that a random order of the gallery has on average.

    For a query with m positives among n entries it is 1 - C(n - m, k) / C(n, k).

    Args:
        entries: Size of the gallery.
        positives: As in `recall_at_k`.
        ks: Numbers of results.
    """
    counts = np.array([len(wanted) for wanted in positives], np.float64)
    found = {}
    for k in ks:
        drawn = np.arange(min(k, entries))
        misses = np.prod(
            np.clip((entries - counts[:, None] - drawn) / (entries - drawn), 0.0, 1.0), axis=1
        )
        found[k] = float(np.mean(1.0 - misses)) if len(counts) else float("nan")
    return found
