import dataclasses

import pytest

from sigline.components.evaluate import gate
from sigline.components.evaluate.results import Result
from sigline.schemas.gate import Gate

GATE = Gate(minimum={"acc": 0.9}, above_chance={"r": 3.0}, max_drop={"acc": 0.02})


def _results(acc=0.95, r=0.31, **rest):
    return {"acc": Result(acc, **rest), "r": Result(r, chance=0.1)}


def _against(value, baseline, low, high):
    return Result(
        value,
        baseline=baseline,
        difference=value - baseline,
        difference_low=low,
        difference_high=high,
    )


def test_model_that_reaches_everything_is_blessed():
    found = _results() | {"acc": _against(0.95, 0.96, -0.03, 0.01)}
    verdict = gate.judge(found, GATE, has_baseline=True)
    assert verdict.blessed
    assert len(verdict.checks) == 3
    assert verdict.failures() == []


def test_first_model_has_no_drop_to_fear():
    verdict = gate.judge(_results(), GATE, has_baseline=False)
    assert verdict.blessed
    assert len(verdict.checks) == 2


@pytest.mark.parametrize(
    ("results", "sentence"),
    [
        (_results(acc=0.85), "acc fails: 0.85, at least: 0.9"),
        (_results(r=0.2), "r fails: 0.2, at least 3 times chance: 0.3"),
        ({"r": Result(0.31, chance=0.1)}, "acc fails: the metric is missing, at least: 0.9"),
        ({"r": Result(0.31)}, "r fails: 0.31, at least 3 times chance: not known"),
    ],
)
def test_refusal_names_both_numbers(results, sentence):
    verdict = gate.judge(results, GATE, has_baseline=False)
    assert not verdict.blessed
    assert sentence in verdict.failures()
    assert verdict.to_dict()["failures"] == verdict.failures()


DROP = Gate(max_drop={"acc": 0.02})


@pytest.mark.parametrize(
    ("result", "blessed"),
    [
        (_against(0.95, 0.98, -0.05, -0.01), False),
        (_against(0.95, 0.98, -0.07, 0.01), True),
        (_against(0.97, 0.98, -0.015, -0.005), True),
        (_against(0.99, 0.90, 0.05, 0.13), True),
        (Result(0.95), False),
        (Result(float("nan"), baseline=0.9, difference=float("nan")), False),
        (_against(0.95, 0.98, float("nan"), float("nan")), False),
        (Result(0.95, baseline=0.98, difference=-0.03), False),
        (None, False),
    ],
    ids=[
        "surely-worse",
        "perhaps-chance",
        "within-the-margin",
        "better",
        "not-in-the-baseline",
        "nan",
        "no-interval",
        "cost",
        "missing",
    ],
)
def test_drop_is_refused_if_it_is_larger_than_the_margin_and_no_chance(result, blessed):
    results = {} if result is None else {"acc": result}
    assert gate.judge(results, DROP, has_baseline=True).blessed == blessed


def test_drop_says_what_it_was():
    (reason,) = gate.judge(
        {"acc": _against(0.95, 0.98, -0.05, -0.01)}, DROP, has_baseline=True
    ).failures()
    assert reason == (
        "acc fails: 0.95, at most 0.02 below the last blessed model's: 0.96 "
        "(difference -0.05 to -0.01)"
    )


def test_rise_of_an_error_is_refused():
    limits = Gate(max_rise={"ece": 0.01})
    assert not gate.judge(
        {"ece": _against(0.05, 0.02, 0.02, 0.04)}, limits, has_baseline=True
    ).blessed
    assert gate.judge(
        {"ece": _against(0.01, 0.02, -0.02, -0.005)}, limits, has_baseline=True
    ).blessed


def test_cost_may_exceed_the_last_blessed_models_by_a_factor():
    limits = Gate(max_ratio={"latency_ms": 1.5}, maximum={"model_bytes": 100.0})
    slow = {"latency_ms": Result(20.0, baseline=10.0), "model_bytes": Result(100.0)}
    verdict = gate.judge(slow, limits, has_baseline=True)
    assert verdict.failures() == [
        "latency_ms fails: 20, at most 1.5 times the last blessed model's: 15"
    ]
    assert gate.judge(slow, limits, has_baseline=False).blessed


def test_one_slice_that_is_too_low_is_refused():
    limits = Gate(slice_minimum={"acc": {"source": 0.5}}, min_slice_examples=10)
    results = {
        "acc": Result(0.9, examples=120),
        "acc/source=a": Result(0.95, examples=100),
        "acc/source=b": Result(0.4, examples=15),
        "acc/source=c": Result(0.0, examples=5),
        "acc/language=de": Result(0.1, examples=50),
    }
    verdict = gate.judge(results, limits, has_baseline=False)
    assert verdict.failures() == ["acc/source=b fails: 0.4, at least: 0.5"]
    assert [check.metric for check in verdict.checks] == ["acc/source=a", "acc/source=b"]


def test_where_there_are_no_slices_the_whole_is_judged():
    limits = Gate(slice_minimum={"acc": {"source": 0.5}})
    assert not gate.judge({"acc": Result(0.4)}, limits, has_baseline=False).blessed
    assert not gate.judge({}, limits, has_baseline=False).blessed


def test_slice_that_dropped_is_refused():
    limits = Gate(slice_max_drop={"acc": {"source": 0.02}}, min_slice_examples=1)
    dropped = _against(0.5, 0.9, -0.5, -0.3)
    results = {"acc/source=a": Result(0.9, baseline=0.9, difference=0.0), "acc/source=b": dropped}
    results["acc/source=b"] = Result(**{**dropped.__dict__, "examples": 30})
    results["acc/source=a"] = Result(0.9, examples=30, baseline=0.9, difference=0.0)
    verdict = gate.judge(results, limits, has_baseline=True)
    assert len(verdict.failures()) == 1
    assert verdict.failures()[0].startswith("acc/source=b fails")


def test_problem_refuses_whatever_was_reached():
    verdict = gate.judge(_results(), GATE, has_baseline=False, problems=["3 keys are broken"])
    assert verdict.failures() == ["model fails: 3 keys are broken"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({}, "at least one threshold"),
        ({"minimun": {}}, "Unknown key gate.minimun"),
        ({"minimum": {"acc": "high"}}, "gate.minimum.acc must be a number. Received: .*='high'"),
        ({"minimum": {"acc": float("nan")}}, "must hold numbers"),
        ({"minimum": {"acc": True}}, "gate.minimum.acc must be a number"),
        ({"minimum": 3}, "gate.minimum must be keys and values"),
        ({"slice_minimum": {"acc": 0.5}}, "gate.slice_minimum.acc must be keys and values"),
        ({"minimum": {"acc": 0.5}, "confidence": 1.5}, "confidence must lie between"),
        ({"minimum": {"acc": 0.5}, "confidence": "0.9"}, "gate.confidence must be a number"),
        (
            {"minimum": {"acc": 0.5}, "max_parity_difference": "1e-4"},
            "parity_difference must be a number",
        ),
        ({"slice_minimum": {"acc": {"sources": 0.5}}}, "must name dimensions: source, language"),
        ([], "gate must be keys and values"),
    ],
)
def test_wrong_gate_is_refused(data, message):
    with pytest.raises(ValueError, match=message):
        Gate.from_dict(data)


def test_gate_of_relative_rules_does_not_bless_a_first_model():
    verdict = gate.judge({}, DROP, has_baseline=False)
    assert not verdict.blessed
    assert "nothing was checked" in verdict.failures()[0]


def test_gate_survives_json():
    assert Gate.from_json(GATE.to_json()) == GATE


@pytest.mark.parametrize(("p_value", "blessed"), [(0.02, True), (1e-4, False)])
def test_one_of_many_slices_may_drop_by_chance(p_value, blessed):
    limits = Gate(slice_max_drop={"acc": {"source": 0.02}}, min_slice_examples=1)
    same = Result(0.9, examples=30, baseline=0.9, difference=0.0, p_value=1.0)
    results = {f"acc/source={i}": same for i in range(9)}
    dropped = _against(0.8, 0.9, -0.19, -0.01)
    results["acc/source=9"] = dataclasses.replace(dropped, examples=30, p_value=p_value)
    verdict = gate.judge(results, limits, has_baseline=True)
    assert verdict.blessed == blessed
    if blessed:
        assert "in one of 10 slices" in verdict.checks[-1].note


def test_slice_whose_difference_is_not_a_number_is_not_forgiven():
    limits = Gate(slice_max_drop={"acc": {"source": 0.02}}, min_slice_examples=1)
    nan = float("nan")
    broken = dataclasses.replace(_against(0.8, nan, nan, nan), examples=30, p_value=nan)
    assert not gate.judge({"acc/source=a": broken}, limits, has_baseline=True).blessed
