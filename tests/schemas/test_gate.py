"""Thresholds that an environment or a run changes."""

import pytest

from sigline.schemas.gate import Gate

GATE = Gate(
    minimum={"accuracy": 0.5, "recall": 0.3},
    slice_minimum={"recall": {"language": 0.1}},
    confidence=0.9,
)


def test_what_changes_leave_out_stays():
    found = GATE.changed(
        {
            "minimum": {"accuracy": 0.7},
            "maximum": {"leaked_share": 0.0},
            "slice_minimum": {"recall": {"source": 0.2}},
            "confidence": 0.95,
        }
    )
    assert found.minimum == {"accuracy": 0.7, "recall": 0.3}
    assert found.maximum == {"leaked_share": 0.0}
    assert found.slice_minimum == {"recall": {"language": 0.1, "source": 0.2}}
    assert found.confidence == 0.95
    assert GATE.minimum["accuracy"] == 0.5


def test_null_takes_a_threshold_away():
    found = GATE.changed({"minimum": {"accuracy": None}, "slice_minimum": None})
    assert found.minimum == {"recall": 0.3}
    assert found.slice_minimum == {}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"minimun": {"a": 1}}, r"Unknown key gate\.minimun\. .* Did you mean gate\.minimum\?"),
        ({"minimum": {"a": "high"}}, "gate.minimum.a must be a number. Received: "),
        ({"minimum": None, "slice_minimum": None}, "at least one threshold"),
        (["minimum"], "gate must be a mapping"),
    ],
)
def test_wrong_changes_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        GATE.changed(changes)
