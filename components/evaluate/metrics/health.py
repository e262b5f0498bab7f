"""Whether embeddings use their space: norms, effective rank, modality gap, collapse."""

from collections.abc import Sequence

import numpy as np

from sigline.components.evaluate.metrics.intervals import Measure


def effective_rank(units: Sequence[str], embeddings: np.ndarray) -> Measure:
    """Returns exp of the entropy of the embeddings' normalised singular values (RankMe).

    arXiv 2210.02885, equation 1, without its offset; between 1, when all are multiples of one
    vector, and the dimension.

    Args:
        units: The examples.
        embeddings: Shape `(units, dim)`.
    """
    x = np.asarray(embeddings, np.float64)

    def statistic(weights: np.ndarray) -> np.ndarray:
        return np.array([_effective_rank((x * row[:, None]).T @ x) for row in weights])

    return Measure(tuple(units), statistic, costly=True, biased=True)


def _effective_rank(gram: np.ndarray) -> float:
    singular = np.sqrt(np.clip(np.linalg.eigvalsh(gram), 0.0, None))
    # What rounding leaves of zeros.
    singular = singular[singular > singular.max() * 1e-7]
    share = singular / singular.sum()
    return float(np.exp(-(share * np.log(share)).sum()))


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
        # An example that a draw holds several times is no pair with itself.
        squares = weights**2
        with np.errstate(invalid="ignore", divide="ignore"):
            whole = ((weights @ x) ** 2).sum(axis=1)
            return (whole - squares @ own) / (weights.sum(axis=1) ** 2 - squares.sum(axis=1))

    return Measure(tuple(units), statistic)
