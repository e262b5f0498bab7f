"""The tasks that only a cluster needs: what the local runner does before, between and after."""

import dataclasses
import json
import os
import sys

from google.protobuf import json_format
from tfx.dsl.component.experimental.annotations import (
    InputArtifact,
    OutputArtifact,
    OutputDict,
    Parameter,
)
from tfx.dsl.component.experimental.decorators import component
from tfx.orchestration.kubeflow.decorators import exit_handler
from tfx.orchestration.kubeflow.v2.container import kubeflow_v2_entrypoint_utils
from tfx.types.artifact import Artifact
from tfx.types.standard_artifacts import (
    Examples,
    ExampleStatistics,
    InfraBlessing,
    Model,
    ModelBlessing,
)
from tfx.utils import path_utils

from sigline.components.shared import served_model
from sigline.components.shared.artifact_types import DataAcceptance, IngestReport
from sigline.components.validate.component import DataGateError
from sigline.pipeline import checks, local_run, planning, run_report
from sigline.pipeline import environment as environments
from sigline.pipeline.kubeflow import records
from sigline.pipeline.run_report import NodeRun
from sigline.schemas import artifacts

# Property of an artifact that stands for others: earlier ones, or none. `run_task` puts them in
# its place, since a task has exactly one artifact for each of its outputs.
STANDS_FOR = "stands_for"
INGEST, REPORT = "IngestExamples", "ReportRun"
# How releases of Kubeflow call a run whose tasks were all done.
_ENDED_WELL = ("SUCCEEDED", "COMPLETE", "CACHED")
_PLANNED = {item.name: item.type for item in dataclasses.fields(planning.Plan)}


@component
def PlanRun(
    environment: Parameter[str],
    recipe: Parameter[str],
    chosen_span: Parameter[int],
    overrides: Parameter[str],
    steps: Parameter[int],
    thresholds: Parameter[str],
) -> OutputDict(**_PLANNED):
    """Works out what this run is to do, where its data is.

    `environment` is what the pipeline was compiled for, as JSON. The others are what whoever starts
    a run may change: the recipe, the span (negative for the newest), `KEY=VALUE` overrides with a
    semicolon between them, the steps (0 for the recipe's), and thresholds as JSON.
    """
    compiled_for = environments.from_json(environment)
    changed = [item.strip() for item in overrides.split(";") if item.strip()]
    changed += [f"steps={steps}"] if steps else []
    try:
        changes = json.loads(thresholds)
    except ValueError as error:
        raise ValueError(f"gate must be JSON. Received: gate={thresholds!r}: {error}") from None
    requested = dataclasses.replace(
        compiled_for,
        recipe=recipe,
        span=compiled_for.span if chosen_span < 0 else chosen_span,
        overrides=(*compiled_for.overrides, *changed),
    )
    if checks.reads_texts(requested) != checks.reads_texts(compiled_for):
        raise ValueError(
            "The recipe of a run must have a text tower if that of the package has one, and none "
            "if that has none: the tasks differ. Compile a package for it. "
            f"Received: recipe={recipe}, compiled for recipe={compiled_for.recipe}"
        )
    return dataclasses.asdict(planning.plan(requested, thresholds=changes))


@component
def FindEarlierSpans(
    root: Parameter[str],
    spans: Parameter[str],
    span: Parameter[int],
    num_spans: Parameter[int],
    examples: OutputArtifact[Examples],
):
    """Finds the examples of the newest accepted spans before one."""
    accepted = _accepted_examples(root, spans, span - 1)
    _stand_for(examples, [accepted[x] for x in sorted(accepted)[-num_spans:]])


@component
def FindWindow(
    root: Parameter[str],
    spans: Parameter[str],
    span: Parameter[int],
    num_spans: Parameter[int],
    candidate: InputArtifact[Examples],
    examples: OutputArtifact[Examples],
):
    """Finds the examples of the newest accepted spans up to this run's own, which are `candidate`.

    Its own are those that were just made, not those of an earlier run of the same span.
    """
    accepted = _accepted_examples(root, spans, span) | {candidate.span: _packed(candidate)}
    _stand_for(examples, [accepted[x] for x in sorted(accepted)[-num_spans:]])


@component
def FindAcceptedData(
    root: Parameter[str],
    spans: Parameter[str],
    span: Parameter[int],
    candidate: InputArtifact[ExampleStatistics],
    statistics: OutputArtifact[ExampleStatistics],
    ingest_report: OutputArtifact[IngestReport],
):
    """Finds the last data that was accepted before this: of the span before, if there are spans."""
    earlier = [
        item
        for item in records.read(root, records.DATA)
        if item["spans"] == spans
        and all(_is_there(item[name]) for name in ("statistics", "ingest_report"))
        and (item["span"] < span if spans else item["statistics"]["uri"] != candidate.uri)
    ]
    # The registry is in order of time, and `max` takes the first of equal spans, so look from the
    # newest.
    newest = max(reversed(earlier), key=lambda item: item["span"], default=None)
    _stand_for(statistics, [newest["statistics"]] if newest else [])
    _stand_for(ingest_report, [newest["ingest_report"]] if newest else [])


@component
def FindBlessedModel(
    root: Parameter[str], candidate: InputArtifact[Model], model: OutputArtifact[Model]
):
    """Finds the newest model that both gates blessed and that is not the candidate itself.

    One that was trained again from the same is itself, wherever it lies.
    """
    own = _model_digest(candidate)
    blessed = [
        item["model"]
        for item in records.read(root, records.MODELS)
        if item["digest"] != own and _is_there(item["model"])
    ]
    _stand_for(model, blessed[-1:])


@component
def RecordData(
    root: Parameter[str],
    spans: Parameter[str],
    acceptance: InputArtifact[DataAcceptance],
    examples: InputArtifact[Examples],
    statistics: InputArtifact[ExampleStatistics],
    ingest_report: InputArtifact[IngestReport],
):
    """Records data that the gate has accepted, for later runs to be compared with."""
    del acceptance
    record = {
        "spans": spans,
        "span": examples.span,
        "examples": _packed(examples),
        "statistics": _packed(statistics),
        "ingest_report": _packed(ingest_report),
    }
    records.add(root, records.DATA, record)
    run = records.run_name()
    if not any(task.name == INGEST for task in records.tasks(root, run)):
        # The task left no record, since the cache answered for it.
        task = NodeRun(INGEST, "cached", 0.0, {"report": ingest_report.uri}, {})
        records.add_task(root, task, order=0.0)


@component
def RecordVerdict(
    root: Parameter[str],
    model: InputArtifact[Model],
    model_blessing: InputArtifact[ModelBlessing],
    infra_blessing: InputArtifact[InfraBlessing],
) -> OutputDict(verdict=str):
    """Says whether the model is to be published, and records one that is for later comparisons."""
    blessings = (model_blessing, infra_blessing)
    if not all(b.get_int_custom_property(artifacts.BLESSED_PROPERTY) == 1 for b in blessings):
        return {"verdict": records.REFUSED}
    records.add(root, records.MODELS, {"model": _packed(model), "digest": _model_digest(model)})
    return {"verdict": records.RELEASED}


@exit_handler
def ReportRun(final_status: Parameter[str], root: Parameter[str]):
    """Reports the verdict of a run, whatever became of it, into its log and its folder."""
    run = records.run_name()
    tasks = [task for task in records.tasks(root, run) if task.name != REPORT]
    outcome = run_report.of_nodes(tasks)
    failures, refusals = _reasons(tasks, json.loads(final_status or "{}"))
    refusals += outcome.refusals()
    lines, verdict = [], "failed"
    if not failures:
        verdict = records.RELEASED if outcome.released else records.REFUSED
        if outcome.counts and outcome.training:
            lines = [run_report.table(run_report.rows(outcome))]
    summary = {
        "run": run,
        "verdict": verdict,
        "failures": failures,
        "refusals": refusals,
        "published": outcome.published,
        "counts": outcome.counts,
        "training": outcome.training,
        "metrics": outcome.metrics,
    }
    folder = records.run_folder(root, run)
    os.makedirs(folder, exist_ok=True)
    with open(folder / "verdict.json", "w") as handle:
        json.dump(summary, handle, indent=1, sort_keys=True)
    lines += [f"Run {run}: {verdict}"]
    lines += [f"  - {reason}" for reason in (*failures, *refusals)]
    if outcome.published:
        lines.append(f"Published as {outcome.published['path']}")
    print("\n".join(lines), file=sys.stderr)


def _reasons(tasks: list[NodeRun], status: dict) -> tuple[list[str], list[str]]:
    """Returns why a run failed, and why data was refused, a line each.

    Args:
        tasks: What tasks have said of themselves.
        status: What the backend says of the run; releases differ in how they call what is done.
    """
    failed = [task for task in tasks if task.state == "failed"]
    refusals = [task.error for task in failed if task.refused]
    failures = [f"{task.name}: {task.error}" for task in failed if not task.refused]
    # A task that was killed could not record a reason.
    failures += [
        f"{task.name}: ended without saying why" for task in tasks if task.state == "running"
    ]
    state = status.get("state", "SUCCEEDED")
    if state not in _ENDED_WELL and not failures and not refusals:
        message = (status.get("error") or {}).get("message", "")
        failures = [message or f"the run ended as {state}, and no task says why"]
    return failures, refusals


def message_of(error: BaseException) -> tuple[str, bool]:
    """Returns why a task failed, in one line, and whether that is the data gate's refusal."""
    refusal = local_run.find(error, DataGateError)
    return " ".join(local_run.message(refusal or error).split()), refusal is not None


def _accepted_examples(root: str, spans: str, last: int) -> dict[int, dict]:
    """Returns the examples of each accepted span up to one, as it was last accepted."""
    return {
        item["span"]: item["examples"]
        for item in records.read(root, records.DATA)
        if item["spans"] == spans and item["span"] <= last and _is_there(item["examples"])
    }


def _is_there(packed: dict) -> bool:
    """Returns whether what was recorded still lies where it was: people clear volumes."""
    return os.path.isdir(packed["uri"])


def _model_digest(model: Artifact) -> str:
    return served_model.metadata(path_utils.serving_model_path(model.uri))["model_digest"]


def _packed(artifact: Artifact) -> dict:
    """Returns an artifact as Kubeflow writes it, by which it can be handed on."""
    message = kubeflow_v2_entrypoint_utils.to_runtime_artifact(artifact, {})
    fields = json_format.MessageToDict(message)
    # The name identifies the artifact: its id is made of it.
    return fields | {"name": fields.get("name") or artifact.uri}


def _stand_for(artifact: Artifact, others: list[dict]) -> None:
    artifact.set_string_custom_property(STANDS_FOR, json.dumps(others))
