import json

import numpy as np
import pytest

from sigline.components.evaluate import costs, leaks, results, slices
from sigline.components.evaluate.metrics import intervals
from sigline.components.evaluate.predictions import EvalRecord

UNITS = tuple(map(str, range(40)))
VALUES = np.arange(40) % 2


def _record(**given):
    known = {
        "key": "k",
        "source": "s",
        "label": (),
        "text": ("one two", "a caption of six words here"),
        "language": ("en", "de"),
        "width": 640,
        "height": 65,
        "image_sha256": "aa",
    }
    return EvalRecord(**known | given)


def test_results_hold_interval_chance_and_baseline():
    chances = np.full(40, 0.25)
    candidate = {"acc": intervals.mean(UNITS, VALUES, chances=chances)}
    baseline = {"acc": intervals.mean(UNITS, np.zeros(40)), "other": candidate["acc"]}
    found = results.summarize(candidate, baseline)["acc"]
    assert (found.value, found.examples, found.chance, found.baseline) == (0.5, 40, 0.25, 0.0)
    assert found.low < 0.5 < found.high
    assert (found.difference, found.difference_low) == (0.5, pytest.approx(found.low))
    assert found.significant


def test_metric_that_the_baseline_lacks_has_none():
    found = results.summarize({"acc": intervals.mean(UNITS, VALUES)}, {})["acc"]
    assert found.baseline is None
    assert not found.significant


def test_other_confidence_gives_another_interval():
    measures = {"acc": intervals.mean(UNITS, VALUES)}
    wide, narrow = (results.summarize(measures, None, confidence=c)["acc"] for c in (0.99, 0.5))
    assert wide.low < narrow.low < narrow.high < wide.high


def test_costs_are_compared_without_interval():
    found = results.costs(
        {"model_bytes": costs.Cost(3.0), "new": costs.Cost(1.0, 0.5, 2.0)},
        {"model_bytes": costs.Cost(2.0)},
    )
    assert found["model_bytes"].difference == 1.0
    assert not found["model_bytes"].significant
    assert found["new"].baseline is None


def test_json_of_results_has_no_nan():
    found = results.to_dict({"b": results.Result(float("nan")), "a": results.Result(1.0)})
    assert json.dumps(found, allow_nan=False) == (
        '{"a": {"value": 1.0, "examples": 0}, "b": {"value": null, "examples": 0}}'
    )


def test_records_are_sliced_by_source_size_and_first_caption():
    assert slices.of_record(_record()) == {
        "source": "s",
        "image_size": "65-128px",
        "language": "en",
        "caption_words": "1-5words",
    }
    assert slices.of_record(_record(height=9000, width=9000))["image_size"] == "over768px"
    assert slices.of_caption(_record(), 1)["caption_words"] == "6-10words"


def test_leaks_are_pictures_of_equal_bytes():
    records = [_record(key="1"), _record(key="2", image_sha256="bb")]
    assert leaks.measures(records, {"aa", "cc"})["leaked_share"].value == 0.5


def test_models_take_turns_when_they_are_timed():
    turns = []
    calls = {model: {"call": lambda model=model: turns.append(model)} for model in ("new", "old")}
    found = costs.latencies(calls, rounds=3)
    assert turns == ["new", "old"] * 6
    assert set(found) == {"new", "old"}
    cost = found["new"]["call"]
    assert 0 <= cost.low <= cost.value <= cost.high


def test_interval_of_a_median_is_that_of_the_binomial_distribution():
    # The values of ranks 10 and 22 of 31: the median lies outside in 2.9 % of cases.
    cost = costs._median([float(x) for x in reversed(range(1, 32))])
    assert cost == (16.0, 10.0, 22.0)
    assert costs._median([3.0]) == (3.0, 3.0, 3.0)


def test_known_noise_of_seeds_counts_for_slices_too():
    names = ("acc", "acc/source=a", "other")
    candidate = {name: intervals.mean(UNITS, np.zeros(40)) for name in names}
    baseline = {name: intervals.mean(UNITS, np.full(40, 0.1)) for name in names}
    found = results.summarize(candidate, baseline, seed_std={"acc": 0.1})
    assert not found["acc"].significant
    assert not found["acc/source=a"].significant
    assert found["other"].significant
