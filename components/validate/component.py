"""The curated schema as an artifact, and the data gate."""

import json
import os
import shutil

from tensorflow_metadata.proto.v0 import anomalies_pb2
from tfx.dsl.component.experimental.annotations import InputArtifact, OutputArtifact, Parameter
from tfx.dsl.component.experimental.decorators import component
from tfx.types import artifact_utils
from tfx.types.standard_artifacts import ExampleAnomalies, Schema

from sigline.components.artifact_types import DataReport, IngestReport
from sigline.components.validate import gate
from sigline.components.validate import report as data_report
from sigline.schemas import artifacts

_SCHEMA_FILE = "schema.pbtxt"
_ANOMALIES_FILE = "SchemaDiff.pb"


class DataGateError(RuntimeError):
    """The data is not fit to train on."""


@component
def ProvideSchema(
    schema: OutputArtifact[Schema], schema_file: Parameter[str], schema_digest: Parameter[str]
):
    """Copies the curated schema; the digest is there for the cache only."""
    del schema_digest
    shutil.copyfile(schema_file, os.path.join(schema.uri, _SCHEMA_FILE))


@component
def ReportData(
    ingest_report: InputArtifact[IngestReport],
    anomalies: InputArtifact[ExampleAnomalies],
    report: OutputArtifact[DataReport],
    config: Parameter[str],
    code_digest: Parameter[str],
):
    """Writes what the data gate finds, and the page about the data.

    A component of its own: of one that fails, TFX removes what it has written.
    """
    del code_digest
    counts, profile, samples = (
        _read_json(os.path.join(ingest_report.uri, name))
        for name in (artifacts.COUNTS_FILE, artifacts.PROFILE_FILE, artifacts.SAMPLES_FILE)
    )
    problems = gate.data_problems(
        counts, _read_anomalies(anomalies), gate.DataGate(**json.loads(config))
    )
    with open(os.path.join(report.uri, artifacts.PROBLEMS_FILE), "w") as handle:
        json.dump(problems, handle, indent=1)
    page = os.path.join(report.uri, artifacts.REPORT_FILE)
    with open(page, "w", encoding="utf-8") as handle:
        handle.write(data_report.page(counts, profile, samples, problems))


@component
def CheckData(
    ingest_report: InputArtifact[IngestReport],
    report: InputArtifact[DataReport],
    code_digest: Parameter[str],
):
    """Fails the pipeline, with every reason, if the data is not fit to train on."""
    del code_digest
    problems = _read_json(os.path.join(report.uri, artifacts.PROBLEMS_FILE))
    if problems:
        listed = "\n".join(f"  - {problem}" for problem in problems)
        raise DataGateError(
            f"The data gate stopped the pipeline:\n{listed}\n"
            "The page about the data, with pictures: "
            f"{os.path.join(report.uri, artifacts.REPORT_FILE)}\n"
            "Rejected pairs are listed in "
            f"{os.path.join(ingest_report.uri, artifacts.REJECTED_FOLDER)}"
        )


def _read_json(path: str):
    with open(path) as handle:
        return json.load(handle)


def _read_anomalies(artifact) -> dict[str, dict[str, str]]:
    found = {}
    for split in artifact_utils.decode_split_names(artifact.split_names):
        path = os.path.join(artifact.uri, f"Split-{split}", _ANOMALIES_FILE)
        with open(path, "rb") as handle:
            message = anomalies_pb2.Anomalies.FromString(handle.read())
        found[split] = {
            name: f"{info.short_description}: {info.description}"
            for name, info in message.anomaly_info.items()
        }
        if message.HasField("dataset_anomaly_info"):
            found[split]["(data set)"] = message.dataset_anomaly_info.description
    return found
