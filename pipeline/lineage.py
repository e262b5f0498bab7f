"""What a model was made of, read from the metadata store: data, config, code, weights, verdict."""

import datetime
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_metadata.metadata_store import metadata_store
from ml_metadata.proto import metadata_store_pb2

from sigline.pipeline import run_report
from sigline.schemas import artifacts, signatures, versions

_OUTPUT = (metadata_store_pb2.Event.OUTPUT, metadata_store_pb2.Event.INTERNAL_OUTPUT)
_INPUT = (metadata_store_pb2.Event.INPUT, metadata_store_pb2.Event.INTERNAL_INPUT)
_TRAINER, _EVALUATOR, _INGEST = "Trainer", "EvaluateModel", "IngestExamples"


def trace(model: str | Path, metadata_path: str | Path) -> dict[str, Any]:
    """Returns what a model was made of.

    Args:
        model: A published version, or a model in the pipeline's artifacts.
        metadata_path: The metadata store of the pipeline that made it.

    Returns:
        `model`, `training`, `data` (a list), `parents` (models that it started from, was taught by
        or was judged against) and `evaluation`, as JSON can hold it.

    Raises:
        ValueError: If there is no store, or it does not know the model.
    """
    if not os.path.isfile(metadata_path):
        raise ValueError(
            f"metadata must be the pipeline's metadata.sqlite. Received: {metadata_path}"
        )
    graph = _Graph(run_report.open_store(str(metadata_path)))
    path = Path(model).resolve()
    artifact, blessing = _find(graph, path)
    trainer = graph.producer(artifact.id)
    # A model may be judged in several runs: what counts is the verdict by which it was published.
    if blessing is not None:
        evaluator = graph.producer(blessing.id)
    else:
        evaluator = graph.newest_consumer(artifact.id, _EVALUATOR, "model")
    inputs = graph.inputs(trainer.id)
    examples = [
        source for item in inputs.get("examples", []) for source in graph.sources(item, _INGEST)
    ]
    return {
        "model": {"path": str(path), "artifact": artifact.uri, **_own_metadata(path)},
        "training": _training(trainer),
        "data": [_data(graph, item) for item in examples],
        "parents": _parents(graph, trainer, evaluator),
        "evaluation": _evaluation(graph, evaluator),
    }


def lines(lineage: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Returns a lineage as names and values, a line each."""
    model, training = lineage["model"], lineage["training"]
    rows = [
        ("model", model["path"]),
        ("  digest", model.get("model_digest", "unknown")),
        ("  recipe", f"{model.get('recipe', 'unknown')}, config {_short(model, 'config_digest')}"),
        ("trained", f"{training['finished']}, {training['seconds']:.0f} s"),
        (
            "  code",
            f"sigline {model.get('sigline_version', 'unknown')}, {_short(training, 'code')}",
        ),
    ]
    for item in lineage["data"]:
        span = f", span {item['span']} version {item['version']}" if item["spans"] else ""
        rows += [
            ("data", f"{item['input_base']}{span}"),
            ("  bytes", item["input_digest"]),
            ("  pairs", ", ".join(f"{n} {name}" for name, n in item["records"].items())),
        ]
    rows += [
        (f"parent: {item['role']}", f"{item['path']}, {_short(item, 'digest')}")
        for item in lineage["parents"]
    ]
    evaluation = lineage["evaluation"]
    if evaluation:
        rows.append(("verdict", "blessed" if evaluation["blessed"] else "not blessed"))
        rows.append(("  evaluation", evaluation["uri"]))
    return rows


def _short(item: Mapping[str, Any], name: str) -> str:
    return str(item.get(name) or "unknown")[:12]


class _Graph:
    """Artifacts and the executions between them."""

    def __init__(self, store: metadata_store.MetadataStore):
        self.store = store

    def producer(self, artifact_id: int):
        """Returns the execution that put an artifact out."""
        events = self.store.get_events_by_artifact_ids([artifact_id])
        ids = [event.execution_id for event in events if event.type in _OUTPUT]
        # A result from the cache is an output of that run, too; the first execution is the one that
        # made it.
        (execution,) = self.store.get_executions_by_id([min(ids)])
        return execution

    def newest_consumer(self, artifact_id: int, node: str, key: str):
        """Returns the last execution of a node that took an artifact as an input; else None."""
        events = self.store.get_events_by_artifact_ids([artifact_id])
        ids = sorted(
            event.execution_id
            for event in events
            if event.type in _INPUT and event.path.steps and event.path.steps[0].key == key
        )
        consumers = [x for x in self.store.get_executions_by_id(ids) if self.node(x) == node]
        return max(consumers, key=lambda item: item.id) if consumers else None

    def node(self, execution) -> str:
        """Returns the name of an execution's node."""
        contexts = self.store.get_contexts_by_execution(execution.id)
        names = [item.name for item in contexts if item.type == "node"]
        return names[0].rsplit(".", 1)[-1] if names else ""

    def inputs(self, execution_id: int) -> dict[str, list]:
        """Returns the artifacts that an execution took, by input."""
        return self._by_key(execution_id, _INPUT)

    def outputs(self, execution_id: int) -> dict[str, list]:
        """Returns the artifacts that it put out, by output."""
        return self._by_key(execution_id, _OUTPUT)

    def sources(self, artifact, node: str) -> list:
        """Returns the artifacts of a node that one was made of, or itself if it is of that node."""
        execution = self.producer(artifact.id)
        if self.node(execution) == node:
            return [artifact]
        made_of = self.inputs(execution.id).get("examples", [])
        return [source for item in made_of for source in self.sources(item, node)]

    def _by_key(self, execution_id: int, types: tuple) -> dict[str, list]:
        events = self.store.get_events_by_execution_ids([execution_id])
        keys = {
            event.artifact_id: event.path.steps[0].key
            for event in events
            if event.type in types and event.path.steps
        }
        by_key: dict[str, list] = {}
        for artifact in self.store.get_artifacts_by_id(sorted(keys)):
            by_key.setdefault(keys[artifact.id], []).append(artifact)
        return by_key


def _find(graph: _Graph, path: Path) -> tuple:
    """Returns the artifact of a model, and of the blessing by which it was published.

    By its manifest if it was published, else by its place; then there is no such blessing.
    """
    digest = versions.verify(path) if path.is_dir() else None
    pushed = graph.store.get_artifacts_by_type("PushedModel") if digest else []
    same = [x for x in pushed if x.custom_properties["model_digest"].string_value == digest]
    if same:
        return _published(graph, max(same, key=lambda item: _standing(item, path.name)))
    places = {str(path), *(str(parent) for parent in path.parents)}
    for item in graph.store.get_artifacts_by_type("Model"):
        if os.path.realpath(item.uri) in places:
            return item, None
    raise ValueError(
        f"The metadata store does not know this model, or its files were changed. Received: {path}"
    )


def _standing(pushed, version: str) -> tuple[bool, bool, int]:
    """Returns how well a publication answers for a version: best the one that put it there."""
    properties = pushed.custom_properties
    return (
        properties["pushed_version"].string_value == version,
        properties["copied"].int_value == 1,
        pushed.id,
    )


def _published(graph: _Graph, pushed) -> tuple:
    """Returns the model that was published, or whose index was, and its blessing."""
    inputs = graph.inputs(graph.producer(pushed.id).id)
    if "model" in inputs:
        return inputs["model"][0], inputs["model_blessing"][0]
    return _published(graph, inputs["pushed_model"][0])


def _own_metadata(path: Path) -> dict[str, Any]:
    """Returns what the model says of itself."""
    folders = [path, *sorted(path.glob("Format-*"))]
    for folder in folders:
        file = folder / signatures.ASSETS_DIR / signatures.METADATA_FILE
        if file.is_file():
            return json.loads(file.read_text())
    return {}


def _parameters(execution) -> dict[str, Any]:
    return {
        name: getattr(value, value.WhichOneof("value"))
        for name, value in execution.custom_properties.items()
        if value.WhichOneof("value")
    }


def _training(trainer) -> dict[str, Any]:
    parameters = _parameters(trainer)
    end = trainer.last_update_time_since_epoch / 1000
    return {
        "finished": datetime.datetime.fromtimestamp(end, datetime.UTC).isoformat(
            timespec="seconds"
        ),
        "seconds": end - trainer.create_time_since_epoch / 1000,
        "code": parameters.get("code_digest"),
        "config": json.loads(parameters["config"]) if "config" in parameters else None,
    }


def _data(graph: _Graph, examples) -> dict[str, Any]:
    execution = graph.producer(examples.id)
    parameters = _parameters(execution)
    counts: dict[str, Any] = {}
    for item in graph.outputs(execution.id).get("report", []):
        path = Path(item.uri) / artifacts.COUNTS_FILE
        counts = json.loads(path.read_text()) if path.is_file() else {}
    return {
        "examples": examples.uri,
        "input_base": parameters.get("input_base"),
        "input_digest": parameters.get("input_digest"),
        "code": parameters.get("code_digest"),
        "spans": bool(parameters.get("span") or parameters.get("version")),
        "span": parameters.get("span"),
        "version": parameters.get("version"),
        "records": counts.get("splits", {}),
        "rejected": counts.get("rejected"),
    }


def _parents(graph: _Graph, trainer, evaluator) -> list[dict[str, Any]]:
    parameters = _parameters(trainer)
    parents = []
    if parameters.get("weights"):
        parents.append(_parent("weights", parameters["weights"], parameters.get("weights_digest")))
    teachers = json.loads(parameters.get("teachers") or "{}")
    teacher_digests = json.loads(parameters.get("teacher_digests") or "{}")
    parents += [
        _parent(f"teacher {name}", path, teacher_digests.get(name))
        for name, path in sorted(teachers.items())
    ]
    if evaluator is not None:
        for item in graph.inputs(evaluator.id).get("baseline", []):
            digest = _own_metadata(Path(item.uri)).get("model_digest")
            parents.append(_parent("judged against", item.uri, digest))
    return parents


def _parent(role: str, path: str, digest: str | None) -> dict[str, Any]:
    return {"role": role, "path": path, "digest": digest}


def _evaluation(graph: _Graph, evaluator) -> dict[str, Any]:
    if evaluator is None:
        return {}
    outputs = graph.outputs(evaluator.id)
    blessing = outputs["blessing"][0].custom_properties[artifacts.BLESSED_PROPERTY]
    return {
        "uri": outputs["evaluation"][0].uri,
        "blessed": blessing.int_value == 1,
        "code": _parameters(evaluator).get("code_digest"),
        "gate": json.loads(_parameters(evaluator).get("gate") or "{}"),
    }
