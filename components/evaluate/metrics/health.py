"""Whether embeddings use their space: norms, effective rank, modality gap, collapse."""

from collections.abc import Sequence

import numpy as np

from sigline.components.evaluate.metrics.intervals import Measure

# Examples that are processed at a time.
_ROWS = 8192


def effective_rank(units: Sequence[str], embeddings: np.ndarray) -> Measure:
    """Returns exp of the entropy of the embeddings' normalised singular values (RankMe).

    arXiv 2210.02885, equation 1, without its offset; between 1, when all are multiples of one
    vector, and the dimension. What a draw of examples changes is taken to first order, by the
    derivative with respect to how often each counts (the infinitesimal jackknife, Efron 1982,
    chapter 6): one decomposition then serves all draws.

    Args:
        units: The examples.
        embeddings: Shape `(units, dim)`.
    """
    x = np.asarray(embeddings, np.float64)
    value, slopes = _effective_rank(x)

    def statistic(weights: np.ndarray) -> np.ndarray:
        return value + weights @ slopes * len(slopes) / weights.sum(axis=1)

    return Measure(tuple(units), statistic)


def _effective_rank(x: np.ndarray) -> tuple[float, np.ndarray]:
    """Returns the rank, and what one more of each example adds to it, shape `(examples,)`."""
    squares, directions = np.linalg.eigh(x.T @ x)
    singular = np.sqrt(np.clip(squares, 0.0, None))
    # Singular values below this are zeros with rounding errors.
    real = singular > singular.max() * 1e-7
    singular, directions = singular[real], directions[:, real]
    share = singular / singular.sum()
    entropy = -(share * np.log(share)).sum()
    rank = np.exp(entropy)
    # Chain rule: the derivative of the entropy by a singular value, times that of the singular
    # value by its square. Each example adds the square of its component along the direction.
    slope = -rank * (np.log(share) + entropy) / singular.sum() / (2 * singular)
    slopes = np.empty(len(x))
    for top in range(0, len(x), _ROWS):
        slopes[top : top + _ROWS] = (x[top : top + _ROWS] @ directions) ** 2 @ slope
    return float(rank), slopes


def modality_gap(units: Sequence[str], image: np.ndarray, text: np.ndarray) -> Measure:
    """Returns the distance between the mean image and the mean text embedding.

    arXiv 2203.02053, section 4.2.

    Args:
        units: The examples.
        image: Unit embeddings, shape `(units, dim)`.
        text: The mean of each example's unit text embeddings, shape `(units, dim)`.
    """
    gap = np.asarray(image, np.float64) - text

    def statistic(weights: np.ndarray) -> np.ndarray:
        return np.linalg.norm(weights @ gap, axis=1) / weights.sum(axis=1)

    return Measure(tuple(units), statistic, biased=True)


def mean_similarity(units: Sequence[str], embeddings: np.ndarray) -> Measure:
    """Returns the mean cosine of two different examples; 1 where all have collapsed into one.

    Args:
        units: The examples, at least two.
        embeddings: Unit embeddings, shape `(units, dim)`.
    """
    x = np.asarray(embeddings, np.float64)
    own = (x**2).sum(axis=1)

    def statistic(weights: np.ndarray) -> np.ndarray:
        # Copies of an example in one draw are not pairs; their self-similarities are subtracted.
        squares = weights**2
        with np.errstate(invalid="ignore", divide="ignore"):
            whole = ((weights @ x) ** 2).sum(axis=1)
            return (whole - squares @ own) / (weights.sum(axis=1) ** 2 - squares.sum(axis=1))

    return Measure(tuple(units), statistic)
