"""The curated schema as an artifact, and the data gate."""

import json
import os
import shutil
import sys
import time
from collections.abc import Collection

from google.protobuf import text_format
from tensorflow_metadata.proto.v0 import anomalies_pb2, schema_pb2
from tensorflow_metadata.proto.v0.statistics_pb2 import DatasetFeatureStatisticsList
from tfx.components.statistics_gen import stats_artifact_utils
from tfx.dsl.component.experimental.annotations import InputArtifact, OutputArtifact, Parameter
from tfx.dsl.component.experimental.decorators import component
from tfx.types import artifact_utils
from tfx.types.standard_artifacts import ExampleAnomalies, Examples, ExampleStatistics, Schema

from sigline.components.shared.artifact_types import DataAcceptance, DataReport, IngestReport
from sigline.components.validate import drift, gate, schema_anomalies
from sigline.components.validate import report as data_report
from sigline.schemas import artifacts, record, run_reports, strict

_SCHEMA_FILE = "schema.pbtxt"
_ANOMALIES_FILE = "SchemaDiff.pb"


class DataGateError(RuntimeError):
    """The data is not fit to train on."""


@component
def ProvideSchema(
    schema: OutputArtifact[Schema], schema_file: Parameter[str], schema_digest: Parameter[str]
):
    """Copies the curated schema, the packaged one without a file; the digest is for the cache."""
    del schema_digest
    shutil.copyfile(schema_file or artifacts.SCHEMA, os.path.join(schema.uri, _SCHEMA_FILE))


@component
def ReportData(
    ingest_report: InputArtifact[IngestReport],
    anomalies: InputArtifact[ExampleAnomalies],
    statistics: InputArtifact[ExampleStatistics],
    schema: InputArtifact[Schema],
    report: OutputArtifact[DataReport],
    config: Parameter[str],
    code_digest: Parameter[str],
    earlier_report: InputArtifact[IngestReport] = None,
    earlier_statistics: InputArtifact[ExampleStatistics] = None,
):
    """Writes what the data gate finds, and the page about the data.

    A component of its own: of one that fails, TFX removes what it has written.
    """
    del code_digest
    data = _described(ingest_report)
    earlier = None if earlier_report is None else _described(earlier_report)
    limits = strict.build(gate.DataGate, json.loads(config), "data_gate.")
    with open(os.path.join(schema.uri, _SCHEMA_FILE)) as handle:
        parsed = text_format.Parse(handle.read(), schema_pb2.Schema())
    numbers = _read_statistics(statistics)
    before = {} if earlier_statistics is None else _read_statistics(earlier_statistics)
    sentences = {}
    # The schema requires captions, though ingest may be configured not to.
    optional = (record.TEXT, record.LANGUAGE) if data.captions_are_optional else ()
    for name, thresholds, described in (
        (artifacts.PROBLEMS_FILE, limits, _read_anomalies(anomalies, optional)),
        (artifacts.WARNINGS_FILE, limits.warning, {}),
    ):
        compared = drift.anomalies(
            numbers, before, parsed, max_drift=thresholds.max_drift, max_skew=thresholds.max_skew
        )
        for split, features in compared.items():
            described[split] = described.get(split, {}) | features
        sentences[name] = gate.data_problems(data, described, thresholds, earlier)
        with open(os.path.join(report.uri, name), "w") as handle:
            json.dump(sentences[name], handle, indent=1)
    report.set_int_custom_property(
        artifacts.BLESSED_PROPERTY, int(not sentences[artifacts.PROBLEMS_FILE])
    )
    samples = _read_json(os.path.join(ingest_report.uri, artifacts.SAMPLES_FILE))
    page = os.path.join(report.uri, artifacts.REPORT_FILE)
    with open(page, "w", encoding="utf-8") as handle:
        date = time.strftime("%Y-%m-%d", time.gmtime())
        reports = run_reports.address(report.uri)
        handle.write(
            data_report.page(data, samples, *sentences.values(), date=date, reports=reports)
        )


@component
def CheckData(
    examples: InputArtifact[Examples],
    statistics: InputArtifact[ExampleStatistics],
    ingest_report: InputArtifact[IngestReport],
    report: InputArtifact[DataReport],
    acceptance: OutputArtifact[DataAcceptance],
    spans: Parameter[str],
    code_digest: Parameter[str],
):
    """Fails the pipeline, with every reason, if the data is not fit to train on.

    What passes is accepted: later data is compared with it, and it may be trained on again.
    `spans` is the pattern that the data is a span of, empty for none.
    """
    del code_digest
    problems = _read_json(os.path.join(report.uri, artifacts.PROBLEMS_FILE))
    if problems:
        listed = "\n".join(f"  - {problem}" for problem in problems)
        raise DataGateError(
            f"The data gate stopped the pipeline:\n{listed}\n"
            "The page about the data, with pictures: "
            f"{os.path.join(report.uri, artifacts.REPORT_FILE)}\n"
            "Rejected pairs are listed in "
            f"{os.path.join(ingest_report.uri, artifacts.REJECTED_FOLDER)}, and what was passed "
            f"over in {os.path.join(ingest_report.uri, artifacts.PASSED_OVER_FOLDER)}"
        )
    for warning in _read_json(os.path.join(report.uri, artifacts.WARNINGS_FILE)):
        print(f"The data gate warns: {warning}", file=sys.stderr)
    for name, artifact in (
        (artifacts.ACCEPTED_EXAMPLES, examples),
        (artifacts.ACCEPTED_STATISTICS, statistics),
        (artifacts.ACCEPTED_REPORT, ingest_report),
    ):
        acceptance.set_int_custom_property(name, artifact.id)
    acceptance.set_string_custom_property(artifacts.ACCEPTED_SPANS, spans)


def _described(report) -> gate.Described:
    """Returns what an ingest report says of the data."""
    counts, profile = (
        _read_json(os.path.join(report.uri, name))
        for name in (artifacts.COUNTS_FILE, artifacts.PROFILE_FILE)
    )
    return gate.Described(counts, profile)


def _read_statistics(artifact) -> dict[str, DatasetFeatureStatisticsList]:
    return {
        split: stats_artifact_utils.load_statistics(artifact, split).proto()
        for split in artifact_utils.decode_split_names(artifact.split_names)
    }


def _read_json(path: str):
    with open(path) as handle:
        return json.load(handle)


def _read_anomalies(artifact, optional: Collection[str] = ()) -> dict[str, dict[str, str]]:
    by_split = {}
    for split in artifact_utils.decode_split_names(artifact.split_names):
        path = os.path.join(artifact.uri, f"Split-{split}", _ANOMALIES_FILE)
        with open(path, "rb") as handle:
            message = anomalies_pb2.Anomalies.FromString(handle.read())
        by_split[split] = schema_anomalies.described(message, optional=optional)
    return by_split
