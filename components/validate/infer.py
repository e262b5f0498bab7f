"""Infers a schema from data: the curated one, narrowed to the values that occur."""

from collections.abc import Iterable

from tensorflow_metadata.proto.v0 import schema_pb2
from tensorflow_metadata.proto.v0.statistics_pb2 import DatasetFeatureStatisticsList

from sigline.schemas import record

# Features whose domain is the set of values that occur, if there are at most `_MAX_VALUES`.
_CATEGORIES = (record.LANGUAGE, record.SOURCE)
_MAX_VALUES = 500
# Features bounded by the least and the largest value that occur.
_BOUNDED = (record.WIDTH, record.HEIGHT, record.LABEL)
# Features that records without captions have no values of.
_OF_CAPTIONS = (record.TEXT, record.LANGUAGE)


def infer(
    curated: schema_pb2.Schema, statistics: Iterable[DatasetFeatureStatisticsList]
) -> schema_pb2.Schema:
    """Returns a schema that the data fulfils and other languages, sources, sides or labels do not.

    TFDV's inference alone would also take the number of captions, or a key made of digits, for a
    rule; what has none in the curated schema gets none here. Where a record has no caption,
    captions are optional in the schema.

    Args:
        curated: The schema of all records.
        statistics: Statistics of the splits.
    """
    # Imported here: TFDV is slow to import, and installed for pipelines only.
    import tensorflow_data_validation as tfdv

    narrowed = schema_pb2.Schema()
    narrowed.CopyFrom(curated)
    statistics = list(statistics)
    inferred = [
        tfdv.infer_schema(item, infer_feature_shape=False, max_string_domain_size=_MAX_VALUES)
        for item in statistics
    ]
    for feature in narrowed.feature:
        if feature.name in _OF_CAPTIONS and _is_absent(feature.name, statistics):
            feature.ClearField("presence")
            feature.value_count.ClearField("min")
        if feature.name in _CATEGORIES:
            domains = [
                domain
                for schema in inferred
                for domain in schema.string_domain
                if domain.name == feature.name
            ]
            if len(domains) == len(inferred):
                feature.ClearField("domain_info")
                values = {value for domain in domains for value in domain.value}
                feature.string_domain.value.extend(sorted(values))
        elif feature.name in _BOUNDED:
            ranges = [
                (int(item.num_stats.min), int(item.num_stats.max))
                for data in statistics
                for item in data.datasets[0].features
                if item.path.step[0] == feature.name and item.num_stats.common_stats.num_non_missing
            ]
            if ranges:
                feature.int_domain.min = min(low for low, _ in ranges)
                feature.int_domain.max = max(high for _, high in ranges)
    return narrowed


def _is_absent(name: str, statistics: Iterable[DatasetFeatureStatisticsList]) -> bool:
    """Whether some record has no value of a feature."""
    for data in statistics:
        split = data.datasets[0]
        features = [item for item in split.features if item.path.step[0] == name]
        if split.num_examples and not features:
            return True
        for item in features:
            common = getattr(item, item.WhichOneof("stats")).common_stats
            if common.num_missing or (common.num_non_missing and not common.min_num_values):
                return True
    return False
