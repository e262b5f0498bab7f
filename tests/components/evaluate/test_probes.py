import numpy as np
import pytest
from sklearn import linear_model, neighbors, preprocessing

from sigline.components.evaluate.metrics import probes


def _data(rng, count, dim=5, classes=3):
    labels = rng.integers(classes, size=count)
    x = rng.standard_normal((count, dim)) + 1.5 * np.eye(classes, dim)[labels]
    return x / np.linalg.norm(x, axis=1, keepdims=True), labels


RNG = np.random.default_rng(0)
SUPPORT, LABELS = _data(RNG, 77)
QUERIES, _ = _data(RNG, 50)


@pytest.mark.parametrize("k", [1, 5, 200])
def test_neighbors_equal_scikit_learn(k):
    found = probes.nearest_neighbors(SUPPORT, LABELS, QUERIES, k=k)
    peer = neighbors.KNeighborsClassifier(min(k, 77), metric="cosine", algorithm="brute")
    votes = peer.fit(SUPPORT, LABELS).predict_proba(QUERIES)
    best = votes.max(axis=1, keepdims=True)
    assert all(votes[row, c] == best[row, 0] for row, c in enumerate(found))
    alone = (votes == best).sum(axis=1) == 1
    assert alone.any()
    assert found[alone].tolist() == votes[alone].argmax(axis=1).tolist()


def test_votes_by_similarity_equal_scikit_learn():
    found = probes.nearest_neighbors(SUPPORT, LABELS, QUERIES, k=9, temperature=0.07)
    peer = neighbors.KNeighborsClassifier(
        9, metric="cosine", algorithm="brute", weights=lambda d: np.exp((1 - d) / 0.07)
    )
    assert found.tolist() == peer.fit(SUPPORT, LABELS).predict(QUERIES).tolist()


def test_of_equal_votes_the_nearer_class_wins():
    support = np.array([[1.0, 0.0], [0.0, 1.0]])
    query = np.array([[0.6, 0.8]])
    assert probes.nearest_neighbors(support, np.array([0, 1]), query, k=2).tolist() == [1]


def test_one_neighbor_of_equally_near_ones_is_the_first():
    support = np.array([[1.0, 0.0], [1.0, 0.0]])
    query = np.array([[1.0, 0.0]])
    assert probes.nearest_neighbors(support, np.array([1, 0]), query, k=1).tolist() == [1]


def test_nearest_mean_equals_scikit_learn_of_normalized_means():
    found = probes.nearest_mean(SUPPORT, LABELS, QUERIES)
    means = np.stack([SUPPORT[c == LABELS].mean(axis=0) for c in range(3)])
    means = preprocessing.normalize(means)
    peer = neighbors.NearestCentroid().fit(means, np.arange(3))
    assert found.tolist() == peer.predict(QUERIES).tolist()


def test_class_without_support_is_never_predicted():
    labels = np.where(LABELS == 1, 4, LABELS)
    assert set(probes.nearest_mean(SUPPORT, labels, QUERIES)) <= {0, 2, 4}
    assert set(probes.nearest_neighbors(SUPPORT, labels, QUERIES, k=3)) <= {0, 2, 4}


@pytest.mark.parametrize("count", [77, 4], ids=["primal", "dual"])
def test_ridge_equals_scikit_learn(count):
    support, labels = SUPPORT[:count], np.arange(count) % 3
    found = probes.ridge(support, labels, QUERIES, l2=10.0)
    mean, std = support.mean(axis=0), support.std(axis=0) + 1e-5
    constant = [np.full((len(x), 1), 100.0) for x in (support, QUERIES)]
    x, q = (
        np.concatenate([(part - mean) / std, one], axis=1)
        for part, one in zip((support, QUERIES), constant, strict=True)
    )
    peer = linear_model.Ridge(alpha=10.0, fit_intercept=False, solver="svd")
    expected = peer.fit(x, 2.0 * np.eye(3)[labels] - 1.0).predict(q)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-8)


@pytest.mark.filterwarnings("ignore:scipy.optimize:DeprecationWarning")  # scikit-learn's call.
def test_logistic_regression_equals_scikit_learn():
    found = probes.logistic(SUPPORT, LABELS, QUERIES, l2=0.5)
    peer = linear_model.LogisticRegression(C=2.0, tol=1e-8, max_iter=2000)
    expected = peer.fit(SUPPORT, LABELS).predict_log_proba(QUERIES)
    found = found - np.log(np.exp(found).sum(axis=1, keepdims=True))
    np.testing.assert_allclose(found, expected, atol=2e-4)


def test_shots_are_that_many_of_each_class():
    chosen = probes.shots(np.array([0] * 10 + [1] * 3), 5, seed=1)
    assert (np.sum(chosen < 10), np.sum(chosen >= 10)) == (5, 3)
    assert chosen.tolist() == probes.shots(np.array([0] * 10 + [1] * 3), 5, seed=1).tolist()


@pytest.mark.parametrize("probe", [probes.ridge, probes.logistic, probes.nearest_mean])
def test_without_support_there_is_nothing_to_probe_by(probe):
    with pytest.raises(ValueError, match="Received: 0 examples, 0 labels"):
        probe(np.empty((0, 5)), np.empty(0, np.int64), QUERIES)


def test_no_neighbors_are_refused():
    with pytest.raises(ValueError, match="Received: k=0"):
        probes.nearest_neighbors(SUPPORT, LABELS, QUERIES, k=0)
