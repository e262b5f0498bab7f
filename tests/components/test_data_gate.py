import pytest

from sigline.components.validate.gate import DataGate, data_problems

COUNTS = {
    "input": 100,
    "written": 95,
    "rejected": 5,
    "rejected_by_reason": {"corrupt_image": 5},
    "splits": {"train": 80, "eval": 15},
}


def test_good_data_has_no_problems():
    assert data_problems(COUNTS, {"train": {}, "eval": {}}, DataGate()) == []


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
    (problem,) = data_problems(COUNTS | changes, anomalies, gate)
    assert sentence in problem


def test_reasons_have_limits_of_their_own():
    counts = COUNTS | {
        "written": 95,
        "rejected": 5,
        "rejected_by_reason": {"leak": 1, "duplicate": 4},
    }
    limits = DataGate(max_shares={"leak": 0, "duplicate": 0.05, "too_small": 0})
    (problem,) = data_problems(counts, {}, limits)
    assert problem == "1 of 100 pairs were rejected as leak, 1.0%; the limit is 0.0%"
