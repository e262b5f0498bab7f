"""The image tower that a recipe freezes, exported for `EmbedExamples`."""

import os

from tfx.dsl.component.experimental.annotations import OutputArtifact, Parameter
from tfx.dsl.component.experimental.decorators import component
from tfx.types.standard_artifacts import Model
from tfx.utils import path_utils


@component
def ExportFrozenTower(
    model: OutputArtifact[Model],
    config: Parameter[str],
    weights: Parameter[str],
    weights_digest: Parameter[str],
    code_digest: Parameter[str],
):
    """Writes the SavedModel of the image tower; the digests are there for the cache only."""
    from sigline.trainer import config as trainer_config
    from sigline.trainer.training import start

    del weights_digest, code_digest
    directory = path_utils.serving_model_dir(model.uri)
    os.makedirs(os.path.dirname(directory), exist_ok=True)
    start.export_frozen_tower(directory, trainer_config.from_json(config), weights)
