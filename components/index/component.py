"""The index component: makes the examples searchable by a blessed model."""

import json
import posixpath

import apache_beam as beam
from tfx.dsl.component.experimental.annotations import (
    BeamComponentParameter,
    InputArtifact,
    OutputArtifact,
    Parameter,
)
from tfx.dsl.component.experimental.decorators import component
from tfx.types.standard_artifacts import (
    Examples,
    InfraBlessing,
    Model,
    ModelBlessing,
)
from tfx.utils import path_utils

from sigline.components.index import build, transforms
from sigline.components.index.options import IndexConfig
from sigline.components.shared.artifact_types import EmbeddingIndex
from sigline.schemas import artifacts, strict


@component(use_beam=True)
def IndexCorpus(
    examples: InputArtifact[list[Examples]],
    model: InputArtifact[Model],
    model_blessing: InputArtifact[ModelBlessing],
    infra_blessing: InputArtifact[InfraBlessing],
    index: OutputArtifact[EmbeddingIndex],
    config: Parameter[str],
    corpus_root: Parameter[str],
    code_digest: Parameter[str],
    beam_pipeline: BeamComponentParameter[beam.Pipeline] = None,
):
    """Embeds the examples and builds their index, if both gates blessed the model.

    Embeddings are kept below `corpus_root`, so that a run that was stopped goes on. An index that
    does not find what texts ask for fails the run.
    """
    del code_digest
    blessings = (model_blessing, infra_blessing)
    blessed = all(b.get_int_custom_property(artifacts.BLESSED_PROPERTY) == 1 for b in blessings)
    index.set_int_custom_property(artifacts.BUILT_PROPERTY, int(blessed))
    # TFX fails if a component does not enter its Beam pipeline.
    with beam_pipeline as pipeline:
        if not blessed:
            return
        options = strict.build(IndexConfig, json.loads(config), "index.")
        directory = path_utils.serving_model_path(model.uri)
        corpora = []
        # By artifact id: the oldest span comes first.
        for item in sorted(examples, key=lambda item: item.id):
            # One folder per model and artifact, since a folder holds one manifest; files in it are
            # reused by their digests.
            corpora.append(posixpath.join(corpus_root, f"{model.id}-{item.id}"))
            embed = transforms.EmbedCorpus(
                item.uri,
                directory,
                corpora[-1],
                splits=options.splits,
                thumbnails=options.thumbnails,
            )
            _ = pipeline | f"Embed-{item.id}" >> embed
    target = posixpath.join(index.uri, artifacts.INDEX_FOLDER)
    about = build.build(corpora, directory, target, options)
    index.set_int_custom_property("records", about["records"])
    index.set_float_custom_property("recall", about["recall"])
    index.set_string_custom_property("model_digest", about["model_digest"])
