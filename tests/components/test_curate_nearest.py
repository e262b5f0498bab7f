"""Choices by nearness to a target and by covariance, against computing everything."""

import itertools

import apache_beam as beam
import numpy as np
import pytest

from sigline.components.curate import choice_transforms, covariance, rules, targets
from sigline.components.curate.rules import Candidate, CurateConfig, Embedded


def _unit(vectors):
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


def _candidate(number, text="x"):
    return Candidate(f"shard-{number % 3}", number, f"key{number:04d}", (text,))


def _collect(items):
    _collect.found = items


def _run(make, workers=1):
    """Runs a function from a pipeline to a collection, and returns what it holds."""
    options = [f"--direct_num_workers={workers}", "--direct_running_mode=multi_threading"]
    with beam.Pipeline(runner="FnApiRunner", argv=options if workers > 1 else []) as pipeline:
        _ = make(pipeline) | beam.combiners.ToList() | beam.Map(_collect)
    return _collect.found


def _brute_force_nearest(vectors, centres, limit, stop):
    """SimCore's rounds over all images, by their definition."""
    similarities = centres @ vectors.astype(np.float64).T
    left, chosen, first = np.ones(len(vectors), bool), [], None
    while len(chosen) < limit and left.any():
        masked = np.where(left, similarities, -np.inf)
        best = masked.argmax(axis=1)
        mean = masked.max(axis=1).mean()
        first = mean if first is None else first
        if mean < stop * first:
            break
        order = sorted(range(len(centres)), key=lambda c: (-masked[c, best[c]], best[c]))
        for number in dict.fromkeys(int(best[c]) for c in order):
            if len(chosen) < limit:
                chosen.append(number)
                left[number] = False
    return chosen


@pytest.mark.parametrize(("limit", "stop"), [(40, 0.0), (300, 0.9), (7, 0.0), (1, 0.95)])
def test_nearest_images_are_those_of_all_comparisons(limit, stop):
    rng = np.random.default_rng(0)
    vectors, centres = _unit(rng.normal(size=(300, 8))), _unit(rng.normal(size=(5, 8)))
    centres = centres.astype(np.float64)
    lists = targets.NearestLists(300)
    for number in rng.permutation(300):
        lists.add((f"{number:03d}",), centres @ vectors[number].astype(np.float64))
    found = targets.choose(lists.sorted(), limit, stop)
    expected = _brute_force_nearest(vectors, centres, limit, stop)
    assert [int(name[0]) for name in found] == expected
    # Lists as short as they are made lose nothing here.
    short = targets.NearestLists(targets.list_size(limit, 5))
    halves = [targets.NearestLists(targets.list_size(limit, 5)) for _ in range(2)]
    for number in range(300):
        halves[number % 2].add((f"{number:03d}",), centres @ vectors[number].astype(np.float64))
    for half in halves:
        short.merge(half)
    assert targets.choose(short.sorted(), limit, stop) == found


def test_equally_near_images_are_taken_by_name():
    lists = targets.NearestLists(2)
    for name in "cabd":
        lists.add((name,), np.ones(1))
    assert targets.choose(lists.sorted(), 5, 0.0) == [("a",), ("b",)]


def test_close_centres_lose_nothing_and_cut_lists_do_not_end_silently(monkeypatch):
    rng = np.random.default_rng(0)
    vectors = _unit(rng.normal(size=(2000, 8)))
    centres = _unit(np.eye(8)[0] + 0.05 * rng.normal(size=(20, 8))).astype(np.float64)

    def lists(size):
        found = targets.NearestLists(size)
        for number, vector in enumerate(vectors):
            found.add((f"{number:04d}",), centres @ vector.astype(np.float64))
        return found.sorted()

    size = targets.list_size(500, 20)
    assert size == 500
    assert len(targets.choose(lists(size), 500, 0.0, size=size)) == 500
    monkeypatch.setattr(targets, "_LISTED", 100)
    size = targets.list_size(500, 20)
    assert size == 116
    with pytest.raises(ValueError, match="lower target_limit or target_clusters"):
        targets.choose(lists(size), 500, 0.0, size=size)


def test_rounds_stop_where_images_become_dissimilar():
    lists = [[targets.Near(s, (f"{c}{s}",)) for s in (0.9, 0.8, 0.3)] for c in "ab"]
    assert len(targets.choose(lists, 100, 0.8)) == 4
    assert len(targets.choose(lists, 100, 0.0)) == 6
    assert len(targets.choose(lists, 3, 0.0)) == 3


def _planted(rng, near, far):
    """Images near two directions, which are the target, among others."""
    directions = np.eye(16)[:2]
    target = _unit(np.repeat(directions, 20, axis=0) + 0.05 * rng.normal(size=(40, 16)))
    like = np.repeat(directions, near // 2, axis=0) + 0.1 * rng.normal(size=(near, 16))
    other = np.concatenate([np.zeros((far, 2)), rng.normal(size=(far, 14))], axis=1)
    return target, _unit(np.concatenate([like, other]))


def test_planted_images_of_the_target_are_found_for_any_number_of_workers():
    target, vectors = _planted(np.random.default_rng(0), 60, 400)
    items = [(_candidate(i), Embedded(0.0, vector)) for i, vector in enumerate(vectors)]
    others = [(_candidate(i, "target"), Embedded(0.0, vector)) for i, vector in enumerate(target)]
    config = CurateConfig(target_limit=60, target_stop=0.5)

    def make(order):
        def nearest(pipeline):
            given = pipeline | "Items" >> beam.Create(order) | beam.Reshuffle()
            near = pipeline | "Near" >> beam.Create(others)
            return {"items": given, "target": near} | choice_transforms.NearestToTarget(config, 2)

        return nearest

    found = {item[0].position for item in _run(make(items))}
    assert found == set(range(60))
    assert {item[0].position for item in _run(make(items[::-1]), workers=4)} == found


def _objective(images, texts, chosen, label, other_images, other_texts):
    """What the greedy choice grows, by its definition."""
    images, texts = images.astype(np.float64), texts.astype(np.float64)
    cross = images @ texts.T + texts @ images.T
    total = cross[:, chosen].sum() / len(images)
    for i, j in itertools.combinations(chosen, 2):
        total -= cross[i, j] / len(images)
    for j in chosen:
        total += 2 * images[j] @ texts[j] + (images[j] + texts[j]) @ label
        total -= np.mean(other_texts @ images[j]) + np.mean(other_images @ texts[j])
    return total


def _class(rng, pairs=30, dim=6):
    images = _unit(rng.normal(size=(pairs, dim)) + np.eye(dim)[0])
    texts = _unit(images + 0.5 * rng.normal(size=(pairs, dim)))
    label = np.eye(dim)[0]
    return images, texts, label, rng.normal(size=(3, dim)), rng.normal(size=(3, dim))


@pytest.mark.parametrize("seed", range(3))
def test_each_step_of_the_subset_gains_the_most(seed):
    images, texts, label, other_images, other_texts = _class(np.random.default_rng(seed))
    others = {"other_images": other_images, "other_texts": other_texts}
    found = covariance.greedy_subset(images, texts, 12, label=label, **others)
    chosen = []
    for _ in range(12):
        left = [j for j in range(30) if j not in chosen]
        values = [_objective(images, texts, [*chosen, j], label, *others.values()) for j in left]
        chosen.append(left[int(np.argmax(values))])
    assert found == chosen


def test_subset_is_at_most_all_and_needs_no_other_classes():
    images, texts, label, *_ = _class(np.random.default_rng(0))
    none = np.empty((0, 6))
    found = covariance.greedy_subset(
        images, texts, 99, label=label, other_images=none, other_texts=none
    )
    assert sorted(found) == list(range(30))


def _mismatched(rng, pairs=600, classes=6, dim=32):
    """Pairs of classes, of which a fifth has the caption of another class."""
    labels = _unit(rng.normal(size=(classes, dim)))
    kinds = rng.integers(classes, size=pairs)
    wrong = rng.random(pairs) < 0.2
    said = np.where(wrong, (kinds + rng.integers(1, classes, size=pairs)) % classes, kinds)
    own = 0.3 * rng.normal(size=(pairs, dim))
    images = _unit(labels[kinds] + own)
    texts = _unit(labels[said] + np.where(wrong[:, None], 0.3 * rng.normal(size=own.shape), own))
    return labels, images, texts, wrong


def test_mismatched_pairs_are_left_out_for_any_number_of_workers():
    labels, images, texts, wrong = _mismatched(np.random.default_rng(0))
    items = [
        (_candidate(i), Embedded(0.0, *both))
        for i, both in enumerate(zip(images, texts, strict=True))
    ]

    def make(order):
        def keep(pipeline):
            given = pipeline | "Items" >> beam.Create(order) | beam.Reshuffle()
            named = beam.pvalue.AsSingleton(
                pipeline | "Labels" >> beam.Create([labels.astype(np.float64)])
            )
            return given | choice_transforms.KeepCovariance(0.3, named)

        return keep

    found = {item[0].position for item in _run(make(items))}
    assert 175 <= len(found) <= 180
    assert not wrong[sorted(found)].any()
    # All classes are there, each by its share.
    kinds = (images @ labels.T).argmax(axis=1)
    counts, kept = np.bincount(kinds), np.bincount(kinds[sorted(found)])
    np.testing.assert_array_equal(kept, np.floor(0.3 * counts))
    assert {item[0].position for item in _run(make(items[::-1]), workers=4)} == found


def test_large_classes_are_divided(monkeypatch):
    monkeypatch.setattr(choice_transforms, "_CLASS_PAIRS", 50)
    labels, images, texts, wrong = _mismatched(np.random.default_rng(1))
    items = [
        (_candidate(i), Embedded(0.0, *both))
        for i, both in enumerate(zip(images, texts, strict=True))
    ]

    def keep(pipeline):
        named = beam.pvalue.AsSingleton(
            pipeline | "Labels" >> beam.Create([labels.astype(np.float64)])
        )
        given = pipeline | "Items" >> beam.Create(items)
        return given | choice_transforms.KeepCovariance(0.3, named)

    found = [item[0].position for item in _run(keep)]
    assert 150 <= len(set(found)) == len(found) <= 180
    assert wrong[found].mean() < 0.02


def test_chunks_are_even():
    counts = np.bincount([rules.chunk_of(f"key{i}", 4) for i in range(4000)], minlength=4)
    assert counts.min() > 900


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"covariance_fraction": 1.5}, "at most 1"),
        ({"target_limit": 0}, "at least 1"),
        ({"target_stop": 2.0}, "0 to 1"),
    ],
)
def test_wrong_settings_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        CurateConfig(**options)
