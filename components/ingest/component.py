"""The ingest component."""

import dataclasses
import json
from typing import Any

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

from sigline.components.artifact_types import IngestReport
from sigline.components.ingest import images, rules, transforms
from sigline.components.ingest.filters import FilterConfig
from sigline.components.ingest.sources import SourceConfig
from sigline.components.ingest.tags import TagConfig
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
    transforms.copy_classes(input_base, examples.uri)
    examples.span, examples.version = span, version
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
    source = _section(SourceConfig, "source", data.pop("source", {}))
    limits = _section(images.ImageLimits, "limits", data.pop("limits", {}))
    storage = _section(images.ImageStorage, "storage", data.pop("storage", {}))
    duplicates = _section(rules.DuplicateConfig, "duplicates", data.pop("duplicates", {}))
    filters = _section(FilterConfig, "filters", data.pop("filters", {}))
    tags = _section(TagConfig, "tags", data.pop("tags", {}))
    data |= {
        "eval_sources": tuple(sources),
        "source": source,
        "limits": limits,
        "storage": storage,
        "duplicates": duplicates,
        "filters": filters,
        "tags": tags,
    }
    return _section(rules.IngestConfig, "ingest", data)


def _section(cls: type, name: str, data: Any) -> Any:
    """Returns a dataclass from the values of its fields; lists of texts may be one text."""
    if not isinstance(data, dict):
        raise ValueError(f"{name} must be keys and values. Received: {name}={data!r}")
    fields = {item.name: item.type for item in dataclasses.fields(cls)}
    for key, value in data.items():
        if fields.get(key) == tuple[str, ...] and not isinstance(value, tuple):
            data = data | {key: tuple([value] if isinstance(value, str) else value)}
    try:
        return cls(**data)
    except TypeError as error:
        message = f"{name} has a wrong key or value: {error}. Known keys: {', '.join(fields)}"
        raise ValueError(message) from error
