"""What a run did, read from the metadata store: nodes, verdict, published version."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ml_metadata.metadata_store import metadata_store
from ml_metadata.proto import metadata_store_pb2

from sigline.schemas import artifacts

# Kinds of passed-over things that the summary names.
_GROUPS = 12
# The type of the context that all executions of a run are in.
_RUN_TYPE = "pipeline_run"
_STATES = {
    metadata_store_pb2.Execution.COMPLETE: "done",
    metadata_store_pb2.Execution.CACHED: "cached",
    metadata_store_pb2.Execution.FAILED: "failed",
    metadata_store_pb2.Execution.RUNNING: "running",
}


@dataclass(frozen=True)
class NodeRun:
    """One node of a run: its state, its duration and the URIs of what it put out.

    Attributes:
        name: Its name.
        state: `done`, `cached`, `failed` or `running`.
        seconds: How long it took.
        outputs: URIs by the names of outputs.
        properties: Their properties.
        error: Why it failed, a sentence; empty if it did not, or where that is not known.
        refused: Whether it failed because a gate refused.
    """

    name: str
    state: str
    seconds: float
    outputs: dict[str, str]
    properties: dict[str, dict[str, Any]]
    error: str = ""
    refused: bool = False


@dataclass(frozen=True)
class RunReport:
    """A run of a pipeline.

    Attributes:
        nodes: Its nodes in the order they ran.
        counts: Ingest's counts.
        training: Figures of the training node.
        metrics: The candidate's metrics, each with its interval, and the baseline beside it.
        verdict: The gate's verdict.
        infra: The infra check's report.
        published: `path`, `version` and `copied` of the published version; empty if none.
        index: The same of the published index.
    """

    nodes: tuple[NodeRun, ...]
    counts: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, dict[str, float]] = field(default_factory=dict)
    verdict: dict[str, Any] = field(default_factory=dict)
    infra: dict[str, Any] = field(default_factory=dict)
    published: dict[str, Any] = field(default_factory=dict)
    index: dict[str, Any] = field(default_factory=dict)

    @property
    def model_report(self) -> str:
        """Path of the report of the evaluation; empty if there was none."""
        uris = [n.outputs.get("evaluation") for n in self.nodes if n.name == "EvaluateModel"]
        return os.path.join(uris[0], artifacts.REPORT_FILE) if uris and uris[0] else ""

    def reports(self) -> list[tuple[str, str]]:
        """Returns the pages that the run left, a name and a path each."""
        places = (
            ("data report", "ReportData", "report", artifacts.REPORT_FILE),
            ("model report", "EvaluateModel", "evaluation", artifacts.REPORT_FILE),
            ("model card", "DescribeModel", "card", artifacts.CARD_PAGE),
        )
        outputs = {node.name: node.outputs for node in self.nodes}
        paths = (
            (name, os.path.join(outputs.get(node, {}).get(output, ""), file))
            for name, node, output, file in places
        )
        return [(name, path) for name, path in paths if os.path.isfile(path)]

    @property
    def released(self) -> bool:
        """Whether the run ended with the model in the serving folder."""
        return bool(self.published)

    def refusals(self) -> list[str]:
        """Returns why the model was not published, a sentence each."""
        reasons = list(self.verdict.get("failures", []))
        if "error" in self.infra:
            reasons.append(f"the infra check failed: {self.infra['error']}")
        return reasons


def run_ids(metadata_path: str) -> set[str]:
    """Returns the names of the runs that a metadata store holds; none where there is no store."""
    if not os.path.exists(metadata_path):
        return set()
    return {run.name for run in open_store(metadata_path).get_contexts_by_type(_RUN_TYPE)}


def read_report(metadata_path: str, run_id: str) -> RunReport:
    """Returns the report of one run in a metadata store, whatever other runs it holds.

    Args:
        metadata_path: The store.
        run_id: The run's name, that of its context.

    Raises:
        ValueError: If the store does not hold the run.
    """
    store = open_store(metadata_path)
    run = store.get_context_by_type_and_name(_RUN_TYPE, run_id)
    if run is None:
        raise ValueError(
            "The metadata store does not hold this run. "
            f"Received: run_id={run_id}, metadata_path={metadata_path}"
        )
    executions = store.get_executions_by_context(run.id)
    return of_nodes([_node(store, item) for item in sorted(executions, key=lambda item: item.id)])


def of_nodes(nodes: Sequence[NodeRun]) -> RunReport:
    """Returns the report of a run of these nodes, in the order in which they ran."""
    by_name = {node.name: node for node in nodes}
    return RunReport(
        nodes=tuple(nodes),
        counts=_json(by_name, "IngestExamples", "report", artifacts.COUNTS_FILE),
        training=_json(by_name, "Trainer", "model_run", artifacts.TRAINING_FILE),
        metrics=_json(by_name, "EvaluateModel", "evaluation", artifacts.METRICS_FILE),
        verdict=_json(by_name, "EvaluateModel", "evaluation", artifacts.VERDICT_FILE),
        infra=_json(by_name, "CheckServing", "blessing", artifacts.INFRA_REPORT_FILE),
        published=_published(by_name, "PublishModel", "pushed_model"),
        index=_published(by_name, "PublishIndex", "pushed_index"),
    )


def _published(by_name: dict[str, NodeRun], publisher: str, output: str) -> dict[str, Any]:
    """Returns where a publisher put a version; nothing if it put none anywhere."""
    node = by_name.get(publisher)
    pushed = node.properties.get(output, {}) if node is not None else {}
    if pushed.get("pushed") != 1:
        return {}
    return {
        "path": pushed["pushed_destination"],
        "version": int(pushed["pushed_version"]),
        "copied": bool(pushed["copied"]),
    }


def _passed_over(account: dict[str, Any] | None) -> list[tuple[str, str]]:
    """Returns the lines about what ingest passed over; none for a run of an earlier version."""
    if account is None or not account["groups"]:
        return []
    total = sum(account["by_reason"].values())
    lines = [("things passed over", f"{total}, of which {account['counted']} may hold pairs")]
    for item in account["groups"][:_GROUPS]:
        where = "/".join(part for part in (item["folder"], f"*{item['suffix']}") if part)
        lines.append((f"  {item['reason']}", f"{item['count']} {where}"))
    if (rest := len(account["groups"]) - _GROUPS) > 0:
        lines.append(("  and", f"{rest} other kinds, in the data report"))
    return lines


def rows(outcome: RunReport) -> list[tuple[str, str]]:
    """Returns the summary of a run, a name and a value a line."""
    counts, training, metrics = outcome.counts, outcome.training, outcome.metrics
    splits = " + ".join(f"{count} {name}" for name, count in counts["splits"].items())
    wait = f"{training['data_wait_fraction']:.0%} of the time waiting for data"
    lines = [
        ("pairs in", str(counts["input"])),
        ("pairs written", splits),
        ("pairs rejected", str(counts["rejected"])),
        *((f"  {reason}", str(n)) for reason, n in counts["rejected_by_reason"].items()),
        # Counts of earlier runs have no remarks.
        *((name.replace("_", " "), str(n)) for name, n in counts.get("remarks", {}).items()),
        *_passed_over(counts.get("passed_over")),
        ("steps", f"{training['steps']} of {training['global_batch_size']} pairs"),
        ("images per second", f"{training['images_per_second']:.0f} ({wait})"),
    ]
    prefix = "zero_shot_accuracy/source="
    shown = {
        name: f"zero-shot accuracy, {name.removeprefix(prefix)}"
        for name in sorted(metrics)
        if name.startswith(prefix)
    } or {"zero_shot_accuracy": "zero-shot accuracy"}
    for direction in ("image_to_text", "text_to_image"):
        for k in (1, 10):
            name = f"{direction}_recall@{k}"
            shown[name] = name.replace("_", " ")
    lines += [
        (label, _described(metrics[name])) for name, label in shown.items() if name in metrics
    ]
    blessed = outcome.verdict.get("blessed")
    return [
        *lines,
        ("verdict", "blessed" if blessed else "not blessed"),
        ("model report", outcome.model_report or "none"),
        *((name, path) for name, path in outcome.reports() if name != "model report"),
        ("published version", outcome.published.get("path", "none")),
        *([("published index", outcome.index["path"])] if outcome.index else []),
        *(
            (f"seconds: {node.name} ({node.state})", f"{node.seconds:.1f}")
            for node in outcome.nodes
        ),
    ]


def _described(result: dict[str, float]) -> str:
    """Returns a share with its interval, and what guessing has."""
    chance = f", chance {result['chance']:.1%}" if "chance" in result else ""
    return f"{result['value']:.1%} ({result['low']:.1%} to {result['high']:.1%}{chance})"


def table(lines: list[tuple[str, str]]) -> str:
    """Returns names and values as two aligned columns between rules."""
    width = max(len(name) for name, _ in lines)
    rule = "-" * (width + 34)
    return "\n".join(["", rule, *(f"{name:<{width}}  {value}" for name, value in lines), rule])


def open_store(metadata_path: str) -> metadata_store.MetadataStore:
    """Returns a metadata store; a new one where there is none."""
    config = metadata_store_pb2.ConnectionConfig()
    config.sqlite.filename_uri = metadata_path
    return metadata_store.MetadataStore(config)


def _node(store: metadata_store.MetadataStore, execution) -> NodeRun:
    contexts = store.get_contexts_by_execution(execution.id)
    name = next(item.name for item in contexts if item.type == "node").rsplit(".", 1)[-1]
    outputs, properties = {}, {}
    events = store.get_events_by_execution_ids([execution.id])
    output_types = (metadata_store_pb2.Event.OUTPUT, metadata_store_pb2.Event.INTERNAL_OUTPUT)
    keys = {
        event.artifact_id: event.path.steps[0].key
        for event in events
        if event.type in output_types and event.path.steps
    }
    for artifact in store.get_artifacts_by_id(list(keys)):
        key = keys[artifact.id]
        outputs[key] = artifact.uri
        properties[key] = {
            k: getattr(v, v.WhichOneof("value")) for k, v in artifact.custom_properties.items()
        }
    spent = execution.last_update_time_since_epoch - execution.create_time_since_epoch
    return NodeRun(
        name=name,
        state=_STATES.get(execution.last_known_state, "unknown"),
        seconds=spent / 1000,
        outputs=outputs,
        properties=properties,
    )


def _json(nodes: dict[str, NodeRun], node: str, output: str, file: str) -> dict[str, Any]:
    uri = nodes[node].outputs.get(output) if node in nodes else None
    path = os.path.join(uri, file) if uri else ""
    if not os.path.isfile(path):
        return {}
    with open(path) as handle:
        return json.load(handle)
