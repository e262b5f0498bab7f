"""The comparators and the inference of TFDV, on statistics that it makes of small tables."""

import pytest

from sigline import quiet
from sigline.components.validate import drift, infer

pytestmark = pytest.mark.tfx


def _statistics(languages, widths):
    quiet.import_tfx()
    import pyarrow as pa
    from tensorflow_data_validation.statistics import stats_impl

    columns = {"language": [[x.encode()] for x in languages], "width": [[x] for x in widths]}
    batch = pa.RecordBatch.from_pydict(columns)
    return stats_impl.generate_statistics_in_memory(batch)


@pytest.fixture(scope="module")
def schema():
    from google.protobuf import text_format
    from tensorflow_metadata.proto.v0 import schema_pb2

    text = """
      feature { name: "language" type: BYTES }
      feature { name: "width" type: INT int_domain { min: 1 } }
      feature { name: "height" type: INT presence { min_fraction: 1 } }
    """
    return text_format.Parse(text, schema_pb2.Schema())


@pytest.fixture(scope="module")
def english():
    return _statistics(["en"] * 90 + ["de"] * 10, [64] * 50 + [128] * 50)


@pytest.fixture(scope="module")
def german():
    return _statistics(["en"] * 40 + ["de"] * 60, [64] * 50 + [128] * 50)


@pytest.fixture(scope="module")
def wide():
    return _statistics(["en"] * 90 + ["de"] * 10, [640] * 100)


def _found(schema, statistics, earlier=None, max_drift=None, max_skew=None):
    return drift.anomalies(
        statistics, earlier or {}, schema, max_drift=max_drift or {}, max_skew=max_skew or {}
    )


def test_texts_and_numbers_drift(schema, english, german, wide):
    limits = {"language": 0.2, "width": 0.2}
    before = {"train": english}
    assert _found(schema, {"train": english}, before, limits) == {}
    found = _found(schema, {"train": german}, before, limits)
    assert list(found["train"]) == ["language"]
    assert "0.5" in found["train"]["language"]
    found = _found(schema, {"train": wide}, before, limits)
    assert list(found["train"]) == ["width"]
    assert "Jensen-Shannon" in found["train"]["width"]
    assert _found(schema, {"train": german}, before, {"language": 0.6}) == {}


def test_other_anomalies_are_left_to_the_validator(schema, english):
    # There is no height, which the schema asks for.
    assert _found(schema, {"train": english}, {"train": english}, {"width": 0.1}) == {}


def test_training_is_skewed_from_evaluation(schema, english, german):
    splits = {"train": german, "eval": english}
    found = _found(schema, splits, max_skew={"language": 0.2})
    assert list(found) == ["train"]
    assert list(found["train"]) == ["language"]
    assert _found(schema, splits, max_skew={"language": 0.6}) == {}
    assert _found(schema, splits) == {}


def test_without_earlier_data_nothing_drifts(schema, german):
    assert _found(schema, {"train": german}, {}, {"language": 0.0}) == {}


def test_schema_is_inferred_from_what_is_there(schema, english, wide):
    import tensorflow_data_validation as tfdv

    found = infer.infer(schema, [english, wide])
    features = {feature.name: feature for feature in found.feature}
    assert list(features["language"].string_domain.value) == ["de", "en"]
    assert (features["width"].int_domain.min, features["width"].int_domain.max) == (64, 640)
    # What was not seen stays as it was curated.
    assert features["height"] == schema.feature[2]
    del found.feature[2]
    assert not tfdv.validate_statistics(english, found).anomaly_info
    other = _statistics(["en"] * 90 + ["fr"] * 10, [32] * 100)
    assert sorted(tfdv.validate_statistics(other, found).anomaly_info) == ["language", "width"]


def test_unknown_feature_is_refused(schema, english):
    with pytest.raises(ValueError, match=r"max_drift must name features.*sides.*language"):
        _found(schema, {"train": english}, {"train": english}, {"sides": 0.1})
