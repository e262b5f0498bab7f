import itertools

import numpy as np
import pytest

from sigline.trainer import metrics


def _unit(rng, count, dim=6):
    x = rng.standard_normal((count, dim))
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def _brute_force(queries, gallery, positives, k):
    hits = 0
    for query, wanted in zip(queries, positives, strict=True):
        order = np.argsort(-(gallery @ query), kind="stable")
        hits += bool(set(order[:k]) & set(wanted.tolist()))
    return hits / len(queries)


@pytest.mark.parametrize("k", [1, 3, 10, 100])
def test_recall_equals_sorting(k):
    rng = np.random.default_rng(0)
    queries, gallery = _unit(rng, 50), _unit(rng, 40)
    positives = [rng.choice(40, rng.integers(1, 4), replace=False) for _ in range(50)]
    found = metrics.recall_at_k(queries, gallery, positives, (k,))[k]
    assert found == pytest.approx(_brute_force(queries, gallery, positives, k))


def test_recall_is_exact_over_chunks(monkeypatch):
    rng = np.random.default_rng(1)
    queries, gallery = _unit(rng, 50), _unit(rng, 40)
    positives = [np.array([i % 40]) for i in range(50)]
    whole = metrics.recall_at_k(queries, gallery, positives, (5,))
    monkeypatch.setattr(metrics, "_CHUNK", 7)
    assert metrics.recall_at_k(queries, gallery, positives, (5,)) == whole


def test_collapsed_model_has_no_recall():
    same = np.ones((10, 2)) / np.sqrt(2)
    positives = [np.array([i]) for i in range(10)]
    assert metrics.recall_at_k(same, same, positives, (1, 5)) == {1: 0.0, 5: 0.0}


def test_model_of_nan_has_no_recall():
    nan = np.full((6, 2), np.nan)
    positives = [np.array([i]) for i in range(6)]
    assert metrics.recall_at_k(nan, nan, positives, (1, 5)) == {1: 0.0, 5: 0.0}


def test_nan_in_the_gallery_ranks_before_the_positive():
    gallery = np.array([[1.0, 0.0], [np.nan, 0.0]])
    assert metrics.recall_at_k(gallery[:1], gallery, [np.array([0])], (1,)) == {1: 0.0}


def test_several_positives_that_tie_do_not_count_against_each_other():
    gallery = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    found = metrics.recall_at_k(gallery[:1], gallery, [np.array([0, 1])], (1,))
    assert found == {1: 1.0}


def test_chance_equals_enumeration_of_all_orders():
    positives = [np.array([0]), np.array([1, 3]), np.array([0, 1, 2, 3])]
    for k in (1, 2, 4):
        orders = list(itertools.permutations(range(4)))
        hits = [[bool(set(o[:k]) & set(p.tolist())) for o in orders] for p in positives]
        found = metrics.chance_recall_at_k(4, positives, (k,))[k]
        assert found == pytest.approx(np.mean(hits))


def test_zero_shot_takes_the_best_class():
    classes = np.eye(3)
    image = np.array([[0.9, 0.1, 0], [0, 0.2, 0.8]])
    assert metrics.zero_shot_predictions(image, classes).tolist() == [0, 2]


def test_zero_shot_tie_is_no_prediction():
    predictions = metrics.zero_shot_predictions(
        np.array([[1.0, 0]]), np.array([[1.0, 0], [1.0, 0]])
    )
    assert predictions.tolist() == [-1]
