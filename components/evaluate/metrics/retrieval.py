"""Ranks of what belongs together: retrieval, and classification as retrieval of classes."""

import numpy as np

# Scores within this distance of a positive's tie with it. For unit vectors, summing the same
# products in another order changes the score by less.
TIE = 5e-7
# Rows and columns of the block of scores held in memory at a time: 32 MiB.
_ROWS, _COLUMNS = 1024, 8192


def ranks(image: np.ndarray, text: np.ndarray, pairs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns how many wrong entries rank before the first right one, in both directions.

    Exact, by blocks of the scores, each of which serves both directions; memory grows with the
    numbers of images and texts and not with their product. Ties count against the model: an entry
    that scores as high as the best positive ranks before it, so that a collapsed model finds
    nothing, and neither does one whose embeddings are NaN.

    Args:
        image: Unit embeddings, shape `(images, dim)`.
        text: Unit embeddings, shape `(texts, dim)`.
        pairs: What belongs together, an image and a text a row, shape `(pairs, 2)`, integers; every
            image and every text in at least one, and no row twice.

    Returns:
        For each image the number of texts, shape `(images,)`, and for each text the number of
        images, shape `(texts,)`, int64; 0 where a positive ranks first.

    Raises:
        ValueError: If an image or a text is in no pair, or a pair comes twice.
    """
    pairs = np.asarray(pairs, np.int64).reshape(-1, 2)
    _check(pairs, len(image), len(text))
    scores = _of_pairs(image, text, pairs)
    best = [np.full(n, -np.inf, scores.dtype) for n in (len(image), len(text))]
    for side in (0, 1):
        with np.errstate(invalid="ignore"):
            np.maximum.at(best[side], pairs[:, side], scores)
        best[side] -= TIE
    # Counted as not lower instead of at least as high, so that NaN counts against the model.
    wrong = [np.zeros(n, np.int64) for n in (len(image), len(text))]
    for top in range(0, len(image), _ROWS):
        rows = slice(top, top + _ROWS)
        for left in range(0, len(text), _COLUMNS):
            columns = slice(left, left + _COLUMNS)
            block = image[rows] @ text[columns].T
            wrong[0][rows] += np.count_nonzero(~(block < best[0][rows, None]), axis=1)
            wrong[1][columns] += np.count_nonzero(~(block < best[1][None, columns]), axis=0)
    for side in (0, 1):
        own = pairs[~(scores < best[side][pairs[:, side]]), side]
        wrong[side] -= np.bincount(own, minlength=len(wrong[side]))
    # A matrix product's last bit depends on the place in the block, so a count may fall below 0.
    return np.maximum(wrong[0], 0), np.maximum(wrong[1], 0)


def _check(pairs: np.ndarray, images: int, texts: int) -> None:
    for side, count, name in ((0, images, "image"), (1, texts, "text")):
        alone = np.setdiff1d(np.arange(count), pairs[:, side])
        if len(alone):
            raise ValueError(
                f"Every {name} must be in a pair. Received: {len(alone)} of {count} that are in "
                f"none, the first at {alone[0]}"
            )
    distinct, counts = np.unique(pairs, axis=0, return_counts=True)
    if len(distinct) != len(pairs):
        image, text = distinct[counts > 1][0]
        raise ValueError(
            "pairs must not repeat. Received: a pair that comes twice, "
            f"image {image} with text {text}"
        )


def _of_pairs(image: np.ndarray, text: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    scores = np.empty(len(pairs), np.result_type(image, text))
    for top in range(0, len(pairs), _COLUMNS):
        part = pairs[top : top + _COLUMNS]
        scores[top : top + _COLUMNS] = np.einsum("nd,nd->n", image[part[:, 0]], text[part[:, 1]])
    return scores


def pairs_of(positives: list[np.ndarray]) -> np.ndarray:
    """Returns the pairs, shape `(pairs, 2)`, of each row and its positives."""
    rows = np.repeat(np.arange(len(positives)), [len(of_row) for of_row in positives])
    columns = np.concatenate(positives) if positives else np.empty(0, np.int64)
    return np.stack([rows, columns], axis=1).astype(np.int64)


def chance_at_k(entries: int, positives: np.ndarray, k: int) -> np.ndarray:
    """Returns how likely a random order has a positive among the first k.

    For a query with m positives among n entries it is 1 - C(n - m, k) / C(n, k).

    Args:
        entries: Number of entries, n.
        positives: Number of positives of each query, m, shape `(queries,)`.
        k: Number of results; all entries if there are fewer.

    Returns:
        Shape `(queries,)`, float64.
    """
    drawn = np.arange(min(k, entries))
    left = entries - np.asarray(positives, np.float64)[:, None] - drawn
    return 1.0 - np.prod(np.clip(left / (entries - drawn), 0.0, 1.0), axis=1)
