"""Simple classifiers on frozen embeddings: neighbours, means, ridge and logistic regression."""

from collections.abc import Iterator

import numpy as np
from scipy import optimize

# Similarities held in memory at a time.
_HELD = 1 << 26
# As in big_vision's evaluators/fewshot_lsr.py.
SHOTS = (1, 5, 10, 25)
SEEDS = 3
_RIDGE = 2.0**10
_CONSTANT = 100.0
_STD_FLOOR = 1e-5


def nearest_neighbors(
    support: np.ndarray,
    labels: np.ndarray,
    queries: np.ndarray,
    *,
    k: int,
    temperature: float | None = None,
) -> np.ndarray:
    """Returns the class that most of the k nearest support examples have.

    Of classes with equally many votes the one whose votes sum to the higher similarity wins, then
    the smaller class id. Of neighbours that are equally near the earlier one counts.

    Args:
        support: Unit embeddings, shape `(support, dim)`.
        labels: Their classes, shape `(support,)`, integers from 0.
        queries: Unit embeddings, shape `(queries, dim)`.
        k: Number of neighbours; all if there are fewer.
        temperature: Weighs a vote by exp(similarity / temperature), as DINO and instance
            discrimination (arXiv 1805.01978) do; equally by default.

    Returns:
        Classes, shape `(queries,)`, int64.

    Raises:
        ValueError: If there is no support, or k is below 1.
    """
    _check_support(support, labels)
    if k < 1:
        raise ValueError(f"k must be at least 1. Received: k={k}")
    k = min(k, len(support))
    predictions = np.empty(len(queries), np.int64)
    for rows, similarity in _similarities(queries, support):
        # A stable sort makes ties for the last place deterministic.
        nearest = np.argsort(-similarity, axis=1, kind="stable")[:, :k]
        near = np.take_along_axis(similarity, nearest, axis=1).astype(np.float64)
        weight = np.ones_like(near) if temperature is None else np.exp(near / temperature)
        votes = np.zeros((len(near), int(labels.max()) + 1, 2))
        index = np.arange(len(near))[:, None]
        np.add.at(votes[..., 0], (index, labels[nearest]), weight)
        np.add.at(votes[..., 1], (index, labels[nearest]), near)
        most = votes[..., 0] >= votes[..., 0].max(axis=1, keepdims=True) - 1e-9
        predictions[rows] = np.where(most, votes[..., 1], -np.inf).argmax(axis=1)
    return predictions


def nearest_mean(support: np.ndarray, labels: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """Returns the class whose normalised mean embedding is nearest, shape `(queries,)`.

    Args:
        support: As in `nearest_neighbors`.
        labels: As in `nearest_neighbors`.
        queries: As in `nearest_neighbors`.
    """
    _check_support(support, labels)
    classes = np.unique(labels)
    means = np.stack([support[labels == c].mean(axis=0, dtype=np.float64) for c in classes])
    means /= np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-12)
    predictions = np.empty(len(queries), np.int64)
    for rows, similarity in _similarities(queries, means):
        predictions[rows] = classes[similarity.argmax(axis=1)]
    return predictions


def _check_support(support: np.ndarray, labels: np.ndarray) -> None:
    if not len(support) or len(support) != len(labels):
        raise ValueError(
            "There must be labelled support examples, a label for each. "
            f"Received: {len(support)} examples, {len(labels)} labels"
        )


def _similarities(queries: np.ndarray, support: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    count = max(1, _HELD // len(support))
    for top in range(0, len(queries), count):
        rows = slice(top, top + count)
        yield rows, queries[rows] @ support.T


def shots(labels: np.ndarray, count: int, *, seed: int) -> np.ndarray:
    """Returns the positions of `count` random examples of each class, all of a smaller one."""
    order = np.random.default_rng(seed).permutation(len(labels))
    chosen = [order[labels[order] == c][:count] for c in np.unique(labels)]
    return np.sort(np.concatenate(chosen))


def ridge(
    support: np.ndarray, labels: np.ndarray, queries: np.ndarray, *, l2: float = _RIDGE
) -> np.ndarray:
    """Few-shot classification by ridge regression in closed form, as big_vision's `fewshot_lsr`.

    Features are whitened by the support's mean and standard deviation, and get a constant of 100;
    targets are 1 for the class and -1 for others.

    Args:
        support: Shape `(support, dim)`.
        labels: Shape `(support,)`, integers from 0.
        queries: Shape `(queries, dim)`.
        l2: Weight of the squared norm of the regression's weights.

    Returns:
        Scores, shape `(queries, classes)`, float64, for classes 0 to the largest label.
    """
    _check_support(support, labels)
    mean = support.mean(axis=0, dtype=np.float64)
    std = support.std(axis=0, dtype=np.float64) + _STD_FLOOR

    def features(x: np.ndarray) -> np.ndarray:
        white = (x.astype(np.float64) - mean) / std
        return np.concatenate([white, np.full((len(x), 1), _CONSTANT)], axis=1)

    x = features(support)
    targets = np.where(labels[:, None] == np.arange(labels.max() + 1), 1.0, -1.0)
    if len(x) >= x.shape[1]:
        weights = np.linalg.solve(x.T @ x + l2 * np.eye(x.shape[1]), x.T @ targets)
    else:
        # The dual form: its system has one row per example, and there are fewer examples than
        # dimensions.
        weights = x.T @ np.linalg.solve(x @ x.T + l2 * np.eye(len(x)), targets)
    return features(queries) @ weights


def logistic(
    support: np.ndarray,
    labels: np.ndarray,
    queries: np.ndarray,
    *,
    l2: float = 1.0,
    steps: int = 500,
) -> np.ndarray:
    """Linear probe: multinomial logistic regression by L-BFGS, from zero.

    Minimises sum of cross-entropies + l2 / 2 |W|^2, the bias left free: scikit-learn's
    `LogisticRegression(C=1 / l2)`.

    Args:
        support: Shape `(support, dim)`.
        labels: Shape `(support,)`, integers from 0.
        queries: Shape `(queries, dim)`.
        l2: Weight of the squared norm of the weights.
        steps: Largest number of steps.

    Returns:
        Logits, shape `(queries, classes)`, float64, for classes 0 to the largest label.
    """
    _check_support(support, labels)
    classes, dim = int(labels.max()) + 1, support.shape[1]
    x = support.astype(np.float64)
    target = np.eye(classes)[labels]

    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        weights, bias = flat[:-classes].reshape(dim, classes), flat[-classes:]
        logits = x @ weights + bias
        logits -= logits.max(axis=1, keepdims=True)
        log_sum = np.log(np.exp(logits).sum(axis=1, keepdims=True))
        loss = (log_sum[:, 0] - (logits * target).sum(axis=1)).sum()
        wrong = np.exp(logits - log_sum) - target
        gradient = np.concatenate([(x.T @ wrong + l2 * weights).ravel(), wrong.sum(axis=0)])
        return loss + l2 / 2 * (weights**2).sum(), gradient

    fit = optimize.minimize(
        objective,
        np.zeros((dim + 1) * classes),
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": steps, "maxfun": 2 * steps, "gtol": 1e-6, "ftol": 1e-12},
    )
    weights, bias = fit.x[:-classes].reshape(dim, classes), fit.x[-classes:]
    return queries.astype(np.float64) @ weights + bias
