"""The evaluation component: metrics, verdict and blessing."""

import os

import apache_beam as beam
from tfx.dsl.component.experimental.annotations import (
    BeamComponentParameter,
    InputArtifact,
    OutputArtifact,
    Parameter,
)
from tfx.dsl.component.experimental.decorators import component
from tfx.types import artifact_utils
from tfx.types.standard_artifacts import (
    Examples,
    Model,
    ModelBlessing,
    ModelEvaluation,
    ModelRun,
)
from tfx.utils import path_utils

from sigline.components.evaluate import judge
from sigline.components.evaluate.inputs import Inputs
from sigline.components.evaluate.options import Options
from sigline.schemas import artifacts, record
from sigline.schemas.gate import Gate


@component(use_beam=True)
def EvaluateModel(
    examples: InputArtifact[Examples],
    trained_on: InputArtifact[list[Examples]],
    model: InputArtifact[Model],
    model_run: InputArtifact[ModelRun],
    evaluation: OutputArtifact[ModelEvaluation],
    blessing: OutputArtifact[ModelBlessing],
    gate: Parameter[str],
    options: Parameter[str],
    embedding_cache: Parameter[str],
    code_digest: Parameter[str],
    baseline: InputArtifact[Model] = None,
    beam_pipeline: BeamComponentParameter[beam.Pipeline] = None,
):
    """Evaluates the model and the last blessed one on the eval split, and blesses or refuses.

    The blessing has the properties that TFX's Pusher and LatestBlessedModelStrategy read. This is
    the pipeline's only producer of ModelBlessing: with two, a resolver takes whichever said yes.
    """
    del code_digest
    trained = [artifact_utils.get_split_uri([item], record.TRAIN_SPLIT) for item in trained_on]
    parity = os.path.join(model_run.uri, artifacts.PARITY_FILE)
    chosen = Options.from_json(options)
    support = artifact_utils.get_split_uri([examples], record.TRAIN_SPLIT)
    inputs = Inputs(
        split_dir=artifact_utils.get_split_uri([examples], record.EVAL_SPLIT),
        model_dir=path_utils.serving_model_path(model.uri),
        baseline_dir=path_utils.serving_model_path(baseline.uri) if baseline else None,
        cache_dir=embedding_cache,
        train_dirs=tuple(sorted(trained)),
        support_dir=support if chosen.probes else None,
        corruptions=chosen.corruptions,
        labels=chosen.labels,
        logs_dir=model_run.uri,
        parity_file=parity if os.path.exists(parity) else None,
    )
    verdict = judge.judge(
        inputs, Gate.from_json(gate), evaluation.uri, beam_pipeline, with_tfma=True
    ).verdict
    blessing.set_string_custom_property("current_model", model.uri)
    blessing.set_int_custom_property("current_model_id", model.id)
    if baseline is not None:
        blessing.set_string_custom_property("baseline_model", baseline.uri)
        blessing.set_int_custom_property("baseline_model_id", baseline.id)
    blessing.set_int_custom_property(artifacts.BLESSED_PROPERTY, int(verdict.blessed))
    mark = "BLESSED" if verdict.blessed else "NOT_BLESSED"
    open(os.path.join(blessing.uri, mark), "w").close()
