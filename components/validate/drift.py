"""Compares statistics with earlier ones and between splits, by TFDV's comparators."""

from collections.abc import Mapping

from tensorflow_metadata.proto.v0 import schema_pb2
from tensorflow_metadata.proto.v0.statistics_pb2 import DatasetFeatureStatisticsList

from sigline.schemas import record


def anomalies(
    statistics: Mapping[str, DatasetFeatureStatisticsList],
    earlier: Mapping[str, DatasetFeatureStatisticsList],
    schema: schema_pb2.Schema,
    *,
    max_drift: Mapping[str, float],
    max_skew: Mapping[str, float],
) -> dict[str, dict[str, str]]:
    """Returns TFDV's descriptions of what differs too much, by feature, by split.

    Texts differ by the largest difference of the shares of their values (the L-infinity norm),
    numbers by the Jensen-Shannon divergence.

    Args:
        statistics: Statistics of this data, by split.
        earlier: Statistics of earlier data, by split; empty where there is none.
        schema: Schema of the records.
        max_drift: Largest difference of a feature from the same split earlier.
        max_skew: Largest difference of a feature of the training split from the eval split.

    Raises:
        ValueError: If the schema has no such feature.
    """
    by_split: dict[str, dict[str, str]] = {}
    for split, own in sorted(statistics.items()):
        before = earlier.get(split) if max_drift else None
        against = statistics.get(record.EVAL_SPLIT) if split == record.TRAIN_SPLIT else None
        against = against if max_skew else None
        if before is None and against is None:
            continue
        comparing = schema_pb2.Schema()
        comparing.CopyFrom(schema)
        if before is not None:
            _compare(comparing, "drift_comparator", max_drift)
        if against is not None:
            _compare(comparing, "skew_comparator", max_skew)
        described = _described(own, before, against, comparing)
        if described:
            by_split[split] = described
    return by_split


def _compare(schema: schema_pb2.Schema, comparator: str, limits: Mapping[str, float]) -> None:
    features = {feature.name: feature for feature in schema.feature}
    if unknown := sorted(set(limits) - set(features)):
        limit = "max_drift" if comparator == "drift_comparator" else "max_skew"
        raise ValueError(
            f"data_gate.{limit} must name features of records. Received: {unknown}; known: "
            f"{', '.join(features)}"
        )
    for name, limit in limits.items():
        feature = features[name]
        of_texts = feature.type == schema_pb2.BYTES
        norm = "infinity_norm" if of_texts else "jensen_shannon_divergence"
        getattr(getattr(feature, comparator), norm).threshold = limit


def _described(
    own: DatasetFeatureStatisticsList,
    before: DatasetFeatureStatisticsList | None,
    against: DatasetFeatureStatisticsList | None,
    schema: schema_pb2.Schema,
) -> dict[str, str]:
    # Imported here: TFDV is slow to import, and installed for pipelines only.
    import tensorflow_data_validation as tfdv
    from tensorflow_metadata.proto.v0 import anomalies_pb2

    result = tfdv.validate_statistics(
        own, schema, previous_statistics=before, serving_statistics=against
    )
    kinds = anomalies_pb2.AnomalyInfo
    # Only drift and skew are reported; the example validator reports all other anomalies.
    comparisons = {
        kinds.COMPARATOR_L_INFTY_HIGH,
        kinds.COMPARATOR_JENSEN_SHANNON_DIVERGENCE_HIGH,
        kinds.COMPARATOR_CONTROL_DATA_MISSING,
        kinds.COMPARATOR_TREATMENT_DATA_MISSING,
    }
    return {
        name: "; ".join(
            f"{reason.short_description}: {reason.description}"
            for reason in info.reason
            if reason.type in comparisons
        )
        for name, info in sorted(result.anomaly_info.items())
        if any(reason.type in comparisons for reason in info.reason)
    }
