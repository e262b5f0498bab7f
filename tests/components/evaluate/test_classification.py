import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

from sigline.components.evaluate.metrics import classification

SCORES = np.random.default_rng(0).standard_normal((200, 7)).astype(np.float32)
LABELS = np.random.default_rng(1).integers(7, size=200)


def _sets(labels):
    return [np.array([label]) for label in labels]


@pytest.mark.parametrize("k", [1, 3, 5])
def test_accuracy_among_the_first_equals_scikit_learn(k):
    found = np.mean(classification.ranks(SCORES, _sets(LABELS)) < k)
    expected = sklearn_metrics.top_k_accuracy_score(LABELS, SCORES, k=k, labels=range(7))
    assert found == pytest.approx(expected)


def test_predictions_are_the_best_scores():
    assert classification.predictions(SCORES).tolist() == SCORES.argmax(axis=1).tolist()


def test_of_several_labels_one_that_is_first_is_enough():
    scores = np.array([[0.1, 0.9, 0.5], [0.9, 0.1, 0.5]])
    labels = [np.array([0, 1]), np.array([1, 2])]
    assert classification.ranks(scores, labels).tolist() == [0, 1]


def test_of_several_labels_the_last_counts_the_wrong_ones_before_it():
    scores = np.array([[0.9, 0.8, 0.5], [0.9, 0.1, 0.5]])
    labels = [np.array([0, 1]), np.array([0, 1])]
    assert classification.ranks(scores, labels).tolist() == [0, 0]
    assert classification.last_ranks(scores, labels).tolist() == [0, 1]


def test_ties_and_nan_are_mistakes():
    scores = np.array([[0.5, 0.5, 0.1], [np.nan, 0.5, 0.1]])
    assert classification.ranks(scores, _sets([0, 1])).tolist() == [1, 1]
    assert classification.predictions(scores).tolist() == [-1, -1]


@pytest.mark.parametrize("ties", [False, True])
def test_average_precision_equals_scikit_learn(ties):
    scores = np.round(SCORES[:, 0], 0 if ties else 7)
    relevant = LABELS < 2
    (found,) = classification.average_precision(scores, relevant)(np.ones((1, 200)))
    assert found == pytest.approx(sklearn_metrics.average_precision_score(relevant, scores))


def test_average_precision_with_weights_equals_scikit_learn():
    weights = np.random.default_rng(2).integers(3, size=(2, 200)).astype(float)
    relevant = LABELS < 2
    found = classification.average_precision(SCORES[:, 0], relevant)(weights)
    for value, weight in zip(found, weights, strict=True):
        expected = sklearn_metrics.average_precision_score(
            relevant, SCORES[:, 0], sample_weight=weight
        )
        assert value == pytest.approx(expected)


def test_class_that_nothing_has_has_no_average_precision():
    none = classification.average_precision(SCORES[:, 0], np.zeros(200, bool))
    (found,) = none(np.ones((1, 200)))
    assert np.isnan(found)


def test_class_scores_are_cosines(monkeypatch):
    monkeypatch.setattr(classification, "_ROWS", 3)
    image, classes = np.eye(4, dtype=np.float32), np.eye(4, dtype=np.float32)[:2]
    assert classification.class_scores(image, classes).tolist() == np.eye(4)[:, :2].tolist()


def test_confusions_are_the_most_frequent_mistakes():
    labels, predicted = np.array([0, 0, 0, 1, 2, 1]), np.array([1, 1, 0, 2, -1, 1])
    found = classification.confusions(labels, predicted, ("cat", "dog", "bird"), top=5)
    assert found == [("cat", "dog", 2), ("dog", "bird", 1)]
