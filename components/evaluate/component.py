"""The evaluation component: metrics, verdict and blessing."""

import json
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
from tfx.types.standard_artifacts import Examples, Model, ModelBlessing, ModelEvaluation
from tfx.utils import path_utils

from sigline.components.evaluate import gate as gate_rules
from sigline.components.evaluate import transforms
from sigline.schemas import artifacts, record
from sigline.schemas.gate import Gate


@component(use_beam=True)
def EvaluateModel(
    examples: InputArtifact[Examples],
    model: InputArtifact[Model],
    evaluation: OutputArtifact[ModelEvaluation],
    blessing: OutputArtifact[ModelBlessing],
    gate: Parameter[str],
    code_digest: Parameter[str],
    baseline: InputArtifact[Model] = None,
    beam_pipeline: BeamComponentParameter[beam.Pipeline] = None,
):
    """Evaluates the model and the last blessed one on the eval split, and blesses or refuses.

    The blessing has the properties that TFX's Pusher and LatestBlessedModelStrategy read. This is
    the pipeline's only producer of ModelBlessing: with two, a resolver takes whichever said yes.
    """
    del code_digest
    split_dir = artifact_utils.get_split_uri([examples], record.EVAL_SPLIT)
    paths = {"Candidate": (model, artifacts.METRICS_FILE)}
    if baseline is not None:
        paths["Baseline"] = (baseline, artifacts.BASELINE_METRICS_FILE)
    with beam_pipeline as pipeline:
        for label, (artifact, name) in paths.items():
            _ = pipeline | label >> transforms.EvaluateSplit(
                split_dir,
                path_utils.serving_model_path(artifact.uri),
                os.path.join(evaluation.uri, name),
            )
    metrics = {}
    for label, (_, name) in paths.items():
        with open(os.path.join(evaluation.uri, name)) as handle:
            metrics[label] = json.load(handle)
    verdict = gate_rules.judge(metrics["Candidate"], metrics.get("Baseline"), Gate.from_json(gate))
    with open(os.path.join(evaluation.uri, artifacts.VERDICT_FILE), "w") as handle:
        json.dump(verdict.to_dict(), handle, indent=1)
    blessing.set_string_custom_property("current_model", model.uri)
    blessing.set_int_custom_property("current_model_id", model.id)
    if baseline is not None:
        blessing.set_string_custom_property("baseline_model", baseline.uri)
        blessing.set_int_custom_property("baseline_model_id", baseline.id)
    blessing.set_int_custom_property(artifacts.BLESSED_PROPERTY, int(verdict.blessed))
    mark = "BLESSED" if verdict.blessed else "NOT_BLESSED"
    open(os.path.join(blessing.uri, mark), "w").close()
