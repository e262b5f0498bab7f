"""The ingest component."""

import dataclasses
import json

import apache_beam as beam
from tfx.components.util import examples_utils
from tfx.dsl.component.experimental.annotations import (
    BeamComponentParameter,
    OutputArtifact,
    Parameter,
)
from tfx.dsl.component.experimental.decorators import component
from tfx.proto import example_gen_pb2
from tfx.types import artifact_utils
from tfx.types.standard_artifacts import Examples

from sigline.components.artifact_types import IngestReport
from sigline.components.ingest import images, rules, transforms
from sigline.schemas import record


@component(use_beam=True)
def IngestExamples(
    examples: OutputArtifact[Examples],
    report: OutputArtifact[IngestReport],
    input_base: Parameter[str],
    config: Parameter[str],
    input_digest: Parameter[str],
    code_digest: Parameter[str],
    beam_pipeline: BeamComponentParameter[beam.Pipeline] = None,
):
    """Reads `input_base` into records; the digests are there for the cache only."""
    del input_digest, code_digest
    with beam_pipeline as pipeline:
        _ = pipeline | transforms.Ingest(
            transforms.input_files(input_base), examples.uri, report.uri, config_from_json(config)
        )
    transforms.copy_classes(input_base, examples.uri)
    examples.split_names = artifact_utils.encode_split_names(list(record.SPLITS))
    examples_utils.set_payload_format(examples, example_gen_pb2.FORMAT_TF_EXAMPLE)
    examples_utils.set_file_format(examples, "tfrecords_gzip")


def config_from_json(text: str) -> rules.IngestConfig:
    """Reads an `IngestConfig` from the JSON of its fields.

    Raises:
        ValueError: If a field is unknown or a value is of a wrong type or out of range.
    """
    data = json.loads(text)
    sources = data.pop("eval_sources", [])
    if not isinstance(sources, list):
        raise ValueError(f"eval_sources must be a list. Received: eval_sources={sources!r}")
    try:
        limits = images.ImageLimits(**data.pop("limits", {}))
        return rules.IngestConfig(eval_sources=tuple(sources), limits=limits, **data)
    except TypeError as error:
        known = [item.name for item in dataclasses.fields(rules.IngestConfig)]
        message = f"ingest has a wrong key or value: {error}. Known keys: {', '.join(known)}"
        raise ValueError(message) from error
