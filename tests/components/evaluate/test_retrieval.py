import itertools
import math

import numpy as np
import pytest

from sigline.components.evaluate.metrics import retrieval


def _unit(rng, count, dim=6):
    x = rng.standard_normal((count, dim))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def _pairs(rng, images, texts):
    """Returns pairs that hold everything, some several times."""
    wanted = {(i, int(rng.integers(texts))) for i in range(images)}
    wanted |= {(int(rng.integers(images)), t) for t in range(texts)}
    return np.array(sorted(wanted))


def _by_sorting(image, text, pairs):
    """Returns the place of the first right text of each image, by sorting in float64."""
    found = []
    for i, row in enumerate(image.astype(np.float64) @ text.T.astype(np.float64)):
        wanted = set(pairs[pairs[:, 0] == i, 1].tolist())
        order = np.argsort(-row, kind="stable")
        found.append(next(place for place, t in enumerate(order) if int(t) in wanted))
    return found


@pytest.mark.parametrize("rows", [1024, 7])
def test_ranks_equal_sorting_both_ways(monkeypatch, rows):
    monkeypatch.setattr(retrieval, "_ROWS", rows)
    monkeypatch.setattr(retrieval, "_COLUMNS", rows + 4)
    rng = np.random.default_rng(0)
    image, text = _unit(rng, 50), _unit(rng, 70)
    pairs = _pairs(rng, 50, 70)
    to_text, to_image = retrieval.ranks(image, text, pairs)
    assert to_text.tolist() == _by_sorting(image, text, pairs)
    assert to_image.tolist() == _by_sorting(text, image, pairs[:, ::-1])


def test_collapsed_model_finds_nothing():
    same = np.full((10, 2), np.sqrt(0.5), np.float32)
    to_text, to_image = retrieval.ranks(same, same, np.stack([np.arange(10)] * 2, axis=1))
    assert to_text.tolist() == to_image.tolist() == [9] * 10


def test_copies_that_are_summed_in_another_order_still_tie():
    rng = np.random.default_rng(1)
    image = _unit(rng, 1, dim=513)
    text = np.repeat(_unit(rng, 1, dim=513), 1001, axis=0)
    to_text, _ = retrieval.ranks(image, text[:1000], np.array([[0, i] for i in range(1000)]))
    assert to_text.tolist() == [0]
    image = np.concatenate([image, _unit(rng, 1, dim=513)])
    pairs = np.array([[0, 0], *([1, i] for i in range(1, 1001))])
    assert retrieval.ranks(image, text, pairs)[0][0] == 1000


def test_model_of_nan_finds_nothing():
    nan = np.full((6, 2), np.nan, np.float32)
    to_text, _ = retrieval.ranks(nan, nan, np.stack([np.arange(6)] * 2, axis=1))
    assert to_text.tolist() == [5] * 6


def test_nan_in_the_gallery_ranks_before_the_positive():
    image = np.array([[1.0, 0.0], [0.0, 1.0]], np.float32)
    text = np.array([[1.0, 0.0], [np.nan, 0.0]], np.float32)
    to_text, _ = retrieval.ranks(image, text, np.array([[0, 0], [1, 1]]))
    assert to_text[0] == 1


def test_one_image_with_one_caption_is_found():
    one = np.array([[1.0, 0.0]], np.float32)
    to_text, to_image = retrieval.ranks(one, one, np.array([[0, 0]]))
    assert (to_text.tolist(), to_image.tolist()) == ([0], [0])


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([[0, 0], [1, 0]], "Every text must be in a pair. Received: 1 of 2"),
        ([[0, 0], [0, 1]], "Every image must be in a pair. Received: 1 of 2"),
        ([[0, 0], [1, 1], [0, 0]], "comes twice"),
    ],
)
def test_pairs_that_leave_something_out_are_refused(pairs, message):
    with pytest.raises(ValueError, match=message):
        retrieval.ranks(np.eye(2), np.eye(2), np.array(pairs))


@pytest.mark.parametrize("k", [1, 2, 4, 9])
def test_chance_is_the_mean_over_all_orders(k):
    entries, wanted = 4, (1, 2)
    for positives in wanted:
        orders = list(itertools.permutations(range(entries)))
        hits = sum(any(entry < positives for entry in order[:k]) for order in orders)
        (found,) = retrieval.chance_at_k(entries, np.array([positives]), k)
        assert found == pytest.approx(hits / math.factorial(entries))


def test_pairs_of_positives():
    found = retrieval.pairs_of([np.array([2, 0]), np.array([1])])
    assert found.tolist() == [[0, 2], [0, 0], [1, 1]]
