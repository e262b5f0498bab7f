import pytest

from sigline.components.validate.gate import DataGate, Described, data_problems

COUNTS = {
    "input": 100,
    "written": 95,
    "rejected": 5,
    "rejected_by_reason": {"corrupt_image": 5},
    "splits": {"train": 80, "eval": 15},
}


def test_good_data_has_no_problems():
    assert data_problems(Described(COUNTS, {}), {"train": {}, "eval": {}}, DataGate()) == []


def test_share_that_is_a_percentage_is_refused():
    with pytest.raises(ValueError, match="between 0 and 1"):
        DataGate(max_rejected_share=10)


@pytest.mark.parametrize(
    ("changes", "anomalies", "gate", "sentence"),
    [
        ({"written": 94}, {}, DataGate(), "100 pairs in, 94 written, 5 rejected"),
        ({}, {}, DataGate(max_rejected_share=0.01), "5.0% of 100 pairs were rejected"),
        ({}, {}, DataGate(min_records=20), "split eval holds 15 records, the least is 20"),
        ({"splits": {"train": 95}}, {}, DataGate(), "split eval holds 0 records"),
        ({}, {"train": {"width": "Out of range"}}, DataGate(), "feature width: Out of range"),
    ],
)
def test_problem_is_a_sentence_with_its_numbers(changes, anomalies, gate, sentence):
    (problem,) = data_problems(Described(COUNTS | changes, {}), anomalies, gate)
    assert sentence in problem


def test_reasons_have_limits_of_their_own():
    counts = COUNTS | {
        "written": 95,
        "rejected": 5,
        "rejected_by_reason": {"leak": 1, "duplicate": 4},
    }
    limits = DataGate(max_shares={"leak": 0, "duplicate": 0.05, "too_small": 0})
    (problem,) = data_problems(Described(counts, {}), {}, limits)
    assert problem == "1 of 100 pairs were rejected as leak, 1.0%; the limit is 0.0%"


BEFORE = Described(
    COUNTS | {"input": 1000, "rejected": 20, "rejected_by_reason": {"corrupt_image": 20}},
    {"train": {"language": {"en": 90, "de": 10}}, "eval": {"language": {"en": 9, "de": 1}}},
)
NOW = Described(
    COUNTS,
    {"train": {"language": {"en": 70, "fr": 30}}, "eval": {"language": {"en": 9, "de": 1}}},
)


@pytest.mark.parametrize(
    ("limits", "sentences"),
    [
        ({}, []),
        ({"max_change": {"rejected": 0.03, "corrupt_image": 0.03}}, []),
        (
            {"max_change": {"rejected": 0.02, "corrupt_image": 0.1, "leak": 0.0}},
            [
                "5.0% of the pairs were rejected, 2.0% of the last accepted data; "
                "the limit of the change is 2.0%"
            ],
        ),
        (
            {"max_change": {"corrupt_image": 0.02}},
            [
                "5.0% of the pairs were rejected as corrupt_image, 2.0% of the last accepted data; "
                "the limit of the change is 2.0%"
            ],
        ),
        ({"max_shift": {"language": 0.3}}, []),
        (
            {"max_shift": {"language": 0.25}},
            [
                "split train, language: 30.0% are fr, 0.0% of the last accepted data; the limit of "
                "the change is 25.0%"
            ],
        ),
        (
            {"max_shift": {"words": 0.5}},
            [
                f"split {split} has no words to compare with the last accepted data"
                for split in ("train", "eval")
            ],
        ),
    ],
)
def test_changes_since_the_last_accepted_data_are_sentences(limits, sentences):
    assert data_problems(NOW, {}, DataGate(**limits), BEFORE) == sentences
    assert data_problems(NOW, {}, DataGate(**limits)) == []


def test_gate_that_warns_has_no_limits_by_default():
    bad = Described(COUNTS | {"input": 1000, "rejected": 905, "splits": {}}, {})
    assert len(data_problems(bad, {}, DataGate())) == 3
    assert data_problems(bad, {}, DataGate().warning) == []
    strict = DataGate(warn={"max_rejected_share": 0.5})
    (sentence,) = data_problems(bad, {}, strict.warning)
    assert "the limit is 50.0%" in sentence


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"max_change": {"rejected": 5}}, "max_change must be numbers of 0 to 1"),
        ({"max_shift": ["words"]}, "max_shift must be numbers of 0 to 1"),
        ({"warn": {"warn": {}}}, "warn must hold some of max_change"),
        ({"warn": None}, "warn must hold"),
        ({"warn": {"nope": 1}}, "warn must hold"),
        ({"max_unreadable": "x"}, "max_unreadable must be a number"),
        ({"max_rejected_share": "10%"}, "max_rejected_share must be a number"),
    ],
)
def test_wrong_limits_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        DataGate(**values)
