import numpy as np
import pytest

from sigline.components.evaluate import evaluation, gate
from sigline.schemas.gate import Gate

AXES = np.eye(4, dtype=np.float32)


def _pair(key, source, label, texts, image, text_rows):
    return evaluation.EmbeddedPair(key, source, label, texts, AXES[image], AXES[list(text_rows)])


def _pairs():
    return [
        _pair("1", "a", (0,), ("cat",), 0, (0,)),
        _pair("2", "a", (1,), ("dog", "a dog"), 1, (1, 1)),
        _pair("3", "b", (2, 3), ("bird",), 3, (2,)),
        _pair("4", "b", (), ("cat",), 0, (0,)),
    ]


def test_zero_shot_is_over_labelled_records_and_by_source():
    found = evaluation.evaluate(_pairs(), AXES)
    assert found["examples"] == 4
    assert found["zero_shot_accuracy"] == pytest.approx(1.0)
    assert found["zero_shot_accuracy/b"] == pytest.approx(1.0)
    assert found["zero_shot_chance"] == pytest.approx(0.25)


def test_equal_captions_are_one_text_for_all_their_images():
    found = evaluation.evaluate(_pairs(), None)
    # cat finds both its images; dog finds its own; bird's image lies elsewhere.
    assert found["text_to_image_recall@1"] == pytest.approx(3 / 4)
    assert "zero_shot_accuracy" not in found


def test_order_of_the_records_does_not_matter():
    forward = evaluation.evaluate(_pairs(), AXES)
    assert evaluation.evaluate(list(reversed(_pairs())), AXES) == forward


def test_empty_split_is_refused():
    with pytest.raises(ValueError, match="holds no records"):
        evaluation.evaluate([], None)


GATE = Gate(minimum={"acc": 0.9}, above_chance={"r": ("chance", 3.0)}, max_drop={"acc": 0.02})


def test_model_that_reaches_everything_is_blessed():
    verdict = gate.judge({"acc": 0.95, "r": 0.31, "chance": 0.1}, {"acc": 0.96}, GATE)
    assert verdict.blessed
    assert len(verdict.checks) == 3
    assert verdict.failures() == []


def test_first_model_has_no_drop_to_fear():
    verdict = gate.judge({"acc": 0.95, "r": 0.31, "chance": 0.1}, None, GATE)
    assert verdict.blessed
    assert len(verdict.checks) == 2


@pytest.mark.parametrize(
    ("candidate", "baseline", "sentence"),
    [
        ({"acc": 0.85, "r": 0.31, "chance": 0.1}, None, "acc fails (minimum): 0.8500 < 0.9000"),
        ({"acc": 0.95, "r": 0.2, "chance": 0.1}, None, "r fails (3 times chance): 0.2000 < 0.3000"),
        (
            {"acc": 0.95, "r": 0.31, "chance": 0.1},
            {"acc": 0.98},
            "acc fails (at most 0.02 below the last blessed model): 0.9500 < 0.9600",
        ),
        (
            {"r": 0.31, "chance": 0.1},
            None,
            "acc fails (minimum): the metric is missing, needs 0.9000",
        ),
    ],
)
def test_refusal_names_both_numbers(candidate, baseline, sentence):
    verdict = gate.judge(candidate, baseline, GATE)
    assert not verdict.blessed
    assert sentence in verdict.failures()
    assert verdict.to_dict()["failures"] == verdict.failures()


def test_nan_never_passes():
    nan = float("nan")
    assert not gate.judge({"acc": nan, "r": nan, "chance": nan}, None, GATE).blessed
    assert not gate.judge({"acc": 1.0, "r": 1.0, "chance": 0.1}, {"acc": nan}, GATE).blessed


def test_gate_without_thresholds_is_refused():
    with pytest.raises(ValueError, match="at least one threshold"):
        Gate()


def test_gate_survives_json():
    assert Gate.from_json(GATE.to_json()) == GATE
