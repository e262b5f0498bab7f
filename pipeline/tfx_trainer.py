"""The training component: from records and a vocabulary to an exported model."""

import json
import os
import shutil

from tfx.dsl.component.experimental.annotations import InputArtifact, OutputArtifact, Parameter
from tfx.dsl.component.experimental.decorators import component
from tfx.types import artifact_utils
from tfx.types.standard_artifacts import Examples, Model, ModelRun
from tfx.utils import path_utils

from sigline.components.artifact_types import Vocabulary
from sigline.schemas import artifacts, record
from sigline.schemas.labels import LabelSet


@component
def TrainModel(
    examples: InputArtifact[list[Examples]],
    vocabulary: InputArtifact[Vocabulary],
    model: OutputArtifact[Model],
    model_run: OutputArtifact[ModelRun],
    config: Parameter[str],
    weights: Parameter[str],
    weights_digest: Parameter[str],
    teachers: Parameter[str],
    teacher_digests: Parameter[str],
    checkpoint_root: Parameter[str],
    code_digest: Parameter[str],
):
    """Trains and exports.

    A killed node starts again in a new artifact directory, so checkpoints live below
    `checkpoint_root` in a folder that configuration, data, vocabulary and code name: the same run
    finds its own checkpoints, and no other run's.
    """
    import tensorflow as tf

    from sigline.trainer import config as trainer_config
    from sigline.trainer import data, parity
    from sigline.trainer.job import Job
    from sigline.trainer.weights import checkpoint

    # For the cache only: the digests are those of what is read here.
    del weights_digest, teacher_digests
    train_config = trainer_config.from_json(config)
    with open(os.path.join(vocabulary.uri, artifacts.VOCABULARY_FILE), "rb") as handle:
        vocabulary_bytes = handle.read()
    job = Job(
        config=train_config,
        folders=_train_folders(examples),
        vocabulary=vocabulary_bytes,
        code_digest=code_digest,
        weights=checkpoint.load(weights) if weights else None,
        teachers={name: checkpoint.load(path) for name, path in json.loads(teachers).items()},
        labels=_labels(max(examples, key=lambda item: item.span).uri),
    )
    run_dir = os.path.join(checkpoint_root, job.key)
    result, metadata = job.run(run_dir, path_utils.serving_model_dir(model.uri))
    shutil.copytree(os.path.join(run_dir, "logs"), model_run.uri, dirs_exist_ok=True)
    newest = max(examples, key=lambda item: item.span)
    if (
        train_config.text is not None
        and data.embeddings(_split(newest, record.TRAIN_SPLIT)) is None
    ):
        # Of a GPU, which a serving machine does not have.
        tf.config.experimental.enable_tensor_float_32_execution(False)
        parity.write(
            os.path.join(model_run.uri, artifacts.PARITY_FILE),
            result.model,
            train_config,
            vocabulary_bytes,
            _split(newest, record.EVAL_SPLIT),
        )
    training = {
        "steps": train_config.steps,
        "first_step": result.first_step,
        "global_batch_size": train_config.global_batch_size,
        "images_per_second": result.images_per_second,
        "data_wait_fraction": result.data_wait_fraction,
        "final_loss": result.final_loss,
        "checkpoint_dir": run_dir,
        "model": metadata,
    }
    with open(os.path.join(model_run.uri, artifacts.TRAINING_FILE), "w") as handle:
        json.dump(training, handle, indent=1, sort_keys=True)


def _train_folders(examples: list[Examples]) -> str | list[str]:
    """Returns the training splits, of several spans weighted by their records."""
    # TFX keeps no order of artifacts.
    ordered = sorted(examples, key=lambda item: item.span)
    folders = [_split(item, record.TRAIN_SPLIT) for item in ordered]
    return folders if len(folders) > 1 else folders[0]


def _split(examples: Examples, name: str) -> str:
    return artifact_utils.get_split_uri([examples], name)


def _labels(examples_dir: str) -> LabelSet | None:
    path = os.path.join(examples_dir, record.CLASSES_FILE)
    if not os.path.exists(path):
        return None
    with open(path) as handle:
        return LabelSet.from_json(handle.read())
