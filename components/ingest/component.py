"""The ingest component."""

import dataclasses

import apache_beam as beam
from tfx.components.util import examples_utils
from tfx.dsl.component.experimental.annotations import (
    BeamComponentParameter,
    InputArtifact,
    OutputArtifact,
    Parameter,
)
from tfx.dsl.component.experimental.decorators import component
from tfx.proto import example_gen_pb2
from tfx.types import artifact_utils
from tfx.types.standard_artifacts import Examples

from sigline.components.ingest import input_files, transforms
from sigline.components.ingest.options import config_from_json
from sigline.components.shared.artifact_types import IngestReport
from sigline.schemas import record


@component(use_beam=True)
def IngestExamples(
    examples: OutputArtifact[Examples],
    report: OutputArtifact[IngestReport],
    input_base: Parameter[str],
    config: Parameter[str],
    span: Parameter[int],
    version: Parameter[int],
    input_digest: Parameter[str],
    code_digest: Parameter[str],
    earlier: InputArtifact[list[Examples]] = None,
    beam_pipeline: BeamComponentParameter[beam.Pipeline] = None,
):
    """Reads `input_base` into records; the digests are there for the cache only."""
    del input_digest, code_digest
    settings = config_from_json(config)
    paths = (*settings.earlier, *(artifact.uri for artifact in earlier or ()))
    with beam_pipeline as pipeline:
        _ = pipeline | transforms.Ingest(
            input_base, examples.uri, report.uri, dataclasses.replace(settings, earlier=paths)
        )
    input_files.copy_classes(input_base, examples.uri)
    examples.span, examples.version = span, version
    examples.split_names = artifact_utils.encode_split_names(list(record.SPLITS))
    examples_utils.set_payload_format(examples, example_gen_pb2.FORMAT_TF_EXAMPLE)
    examples_utils.set_file_format(examples, "tfrecords_gzip")
