"""TFDV's anomalies as sentences by feature."""

from collections.abc import Collection

from tensorflow_metadata.proto.v0 import anomalies_pb2

_KINDS = anomalies_pb2.AnomalyInfo
# Anomalies of features that some or all records have no value of.
_ABSENT = frozenset(
    (
        _KINDS.SCHEMA_MISSING_COLUMN,
        _KINDS.FEATURE_TYPE_LOW_FRACTION_PRESENT,
        _KINDS.FEATURE_TYPE_LOW_NUMBER_PRESENT,
        _KINDS.FEATURE_TYPE_LOW_NUMBER_VALUES,
    )
)


def described(
    message: anomalies_pb2.Anomalies, *, optional: Collection[str] = ()
) -> dict[str, str]:
    """Returns what is wrong with each feature of a split.

    Args:
        message: The anomalies that ExampleValidator reports.
        optional: Features that a record may lack, whatever the schema says: their absence is left
            out.
    """
    sentences = {}
    for name, info in message.anomaly_info.items():
        reasons = list(info.reason)
        if name in optional:
            reasons = [reason for reason in reasons if reason.type not in _ABSENT]
        if len(reasons) == len(info.reason):
            sentences[name] = f"{info.short_description}: {info.description}"
        elif reasons:
            sentences[name] = "; ".join(f"{x.short_description}: {x.description}" for x in reasons)
    if message.HasField("dataset_anomaly_info"):
        sentences["(data set)"] = message.dataset_anomaly_info.description
    return sentences
