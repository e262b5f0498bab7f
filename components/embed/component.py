"""The embedding component: examples whose images are embedded by a model's image tower."""

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
from tfx.types.standard_artifacts import Examples, Model
from tfx.utils import path_utils

from sigline.components.embed import transforms
from sigline.schemas import record


@component(use_beam=True)
def EmbedExamples(
    examples: InputArtifact[Examples],
    model: InputArtifact[Model],
    embedded: OutputArtifact[Examples],
    code_digest: Parameter[str],
    beam_pipeline: BeamComponentParameter[beam.Pipeline] = None,
):
    """Embeds the images of the training split; the digest is there for the cache only."""
    del code_digest
    with beam_pipeline as pipeline:
        _ = pipeline | transforms.EmbedImages(
            examples.uri, path_utils.serving_model_path(model.uri), embedded.uri
        )
    embedded.split_names = artifact_utils.encode_split_names([record.TRAIN_SPLIT])
    examples_utils.set_payload_format(embedded, example_gen_pb2.FORMAT_TF_EXAMPLE)
    examples_utils.set_file_format(embedded, "tfrecords_gzip")
