"""What the pipeline's resolvers take of what runs before have made."""

import pytest

from sigline.schemas import artifacts

pytestmark = pytest.mark.tfx

SPANS = "/data/span-{SPAN}"


def _artifact(kind, number, span=None):
    from tfx.types import standard_artifacts

    from sigline.components.shared import artifact_types

    cls = getattr(standard_artifacts, kind, None) or getattr(artifact_types, kind)
    found = cls()
    found.id = number
    if span is not None:
        found.span = span
    return found


def _acceptance(number, examples, spans=SPANS, statistics=0, report=0):
    found = _artifact("DataAcceptance", number)
    found.set_int_custom_property(artifacts.ACCEPTED_EXAMPLES, examples)
    found.set_int_custom_property(artifacts.ACCEPTED_STATISTICS, statistics)
    found.set_int_custom_property(artifacts.ACCEPTED_REPORT, report)
    found.set_string_custom_property(artifacts.ACCEPTED_SPANS, spans)
    return found


def _window(examples, acceptances, last, num_spans, candidate=()):
    from sigline.pipeline import history

    strategy = history.AcceptedSpans(SPANS, last, num_spans)
    found = {"examples": examples, "acceptance": acceptances, "candidate": list(candidate)}
    return [item.id for item in strategy.resolve_artifacts(None, found)["examples"]]


def test_newest_accepted_spans_are_taken():
    examples = [_artifact("Examples", 10 + span, span) for span in (1, 2, 3, 4, 5)]
    accepted = [_acceptance(100 + i, 10 + i) for i in (1, 2, 4, 5)]
    assert _window(examples, accepted, 5, 3) == [12, 14, 15]
    assert _window(examples, accepted, 4, 9) == [11, 12, 14]
    assert _window(examples, accepted, 0, 3) == []


def test_span_that_was_ingested_again_counts_as_last_accepted():
    examples = [_artifact("Examples", number, 1) for number in (10, 20, 30)]
    # Not the newest, which was refused.
    accepted = [_acceptance(100, 10), _acceptance(101, 20)]
    assert _window(examples, accepted, 1, 2) == [20]


def test_this_runs_examples_are_those_of_its_span():
    """Also where the cache answers with older ones, as after a change that was taken back."""
    examples = [_artifact("Examples", number, 2) for number in (10, 20)]
    accepted = [_acceptance(100, 10), _acceptance(101, 20)]
    assert _window(examples, accepted, 2, 2, candidate=[examples[0]]) == [10]


def test_data_without_spans_or_of_others_is_no_span():
    examples = [
        _artifact("Examples", 3, 0),
        _artifact("Examples", 4, 1),
        _artifact("Examples", 5, 2),
    ]
    accepted = [_acceptance(100, 3, ""), _acceptance(101, 4, "/x/{SPAN}"), _acceptance(102, 5)]
    assert _window(examples, accepted, 2, 4) == [5]


def _last(spans, current, *accepted):
    """Returns the ids of the statistics and the report that are compared with."""
    from sigline.pipeline import history

    found = history.LastAcceptedData(spans).resolve_artifacts(
        None,
        {
            "candidate": [current],
            "statistics": [
                current,
                *(_artifact("ExampleStatistics", n, s) for n, s, _ in accepted),
            ],
            "ingest_report": [_artifact("IngestReport", n + 1) for n, _, _ in accepted],
            "acceptance": [
                _acceptance(n + 2, 0, of, statistics=n, report=n + 1) for n, _, of in accepted
            ],
        },
    )
    return [item.id for name in ("statistics", "ingest_report") for item in found[name]]


def test_last_accepted_data_is_of_the_span_before():
    current = _artifact("ExampleStatistics", 99, 3)
    assert _last(SPANS, current, (10, 1, SPANS), (20, 2, SPANS), (30, 4, SPANS)) == [20, 21]
    # The same span, ingested before, is no earlier data; neither is other data.
    assert _last(SPANS, current, (10, 3, SPANS), (20, 0, "")) == []
    first = _artifact("ExampleStatistics", 99, 0)
    assert _last(SPANS, first, (10, 1, SPANS), (20, 2, SPANS)) == []


def test_without_spans_the_last_other_data_is_taken():
    current = _artifact("ExampleStatistics", 99, 0)
    assert _last("", current, (10, 0, ""), (20, 0, ""), (30, 1, SPANS)) == [20, 21]
    assert _last("", current, (99, 0, "")) == []
