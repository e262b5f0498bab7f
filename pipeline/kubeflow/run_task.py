"""What every container of a compiled pipeline runs: TFX's entrypoint, made to work on Kubeflow 2.

The backend hands over input artifacts without their types, which TFX's own entrypoint needs; it has
no optional inputs, and one artifact for each output. What fails, fails with its reason in one line.

With `--volume`, artifacts lie in a volume that all tasks see, at the path that their URIs have in
the object store, and nothing but a pointer is copied there and back; without, `gs://` is read and
written below `/gcs`, where Vertex AI mounts it.
"""

import argparse
import json
import os
import posixpath
import shutil
import sys
import time
import traceback
from typing import Any

import sigline.quiet

sigline.quiet.import_tfx()

from tfx.orchestration.kubeflow.v2 import compiler_utils
from tfx.orchestration.kubeflow.v2.container import kubeflow_v2_run_executor as tfx_entrypoint
from tfx.types.artifact import Artifact

from sigline.components.shared import artifact_types
from sigline.pipeline.kubeflow import records, tfx_nodes
from sigline.pipeline.run_report import NodeRun

# Folders of the copies that Kubeflow's launcher makes of objects, and of Vertex AI's mounted
# buckets.
_LOCAL = {"gs://": "/gcs/", "s3://": "/s3/", "minio://": "/minio/"}
_POINTER = "volume.json"
# Artifacts that are one file, not a folder.
_VALUES = ("tfx.String", "tfx.Integer", "tfx.Float", "tfx.Boolean")
# Classes of sigline's artifact types, by their names in the specification.
_OWN_TYPES = {
    kind.TYPE_NAME: f"{kind.__module__}.{kind.__name__}"
    for kind in vars(artifact_types).values()
    if isinstance(kind, type) and issubclass(kind, Artifact) and kind.TYPE_NAME
}


def main(argv: list[str]) -> int:
    """Runs a task; returns 0, or 1 if it failed.

    Args:
        argv: `--task NAME`, `--root FOLDER`, `--volume FOLDER` or not, `--objects` where workers
            elsewhere do the work, and TFX's arguments.
    """
    parser = argparse.ArgumentParser(prog="sigline.pipeline.kubeflow.run_task", allow_abbrev=False)
    parser.add_argument("--task", required=True)
    parser.add_argument("--root", required=True)
    parser.add_argument("--volume", default="")
    parser.add_argument("--run", default="", help="name of the run; by default $SIGLINE_RUN")
    parser.add_argument("--objects", action="store_true", help="hand over gs://, not /gcs")
    own, rest = parser.parse_known_args(argv)
    if own.run:
        os.environ[records.RUN_VARIABLE] = own.run
    compiler_utils.TITLE_TO_CLASS_PATH.update(_OWN_TYPES)
    arguments, beam_args = tfx_entrypoint._parse_flags(rest)
    executor_input = json.loads(arguments.json_serialized_invocation_args)
    declared = json.loads(arguments.json_serialized_inputs_spec_args or "{}")
    begin, uris, error, refused = time.time(), {}, "", False
    try:
        prepare_inputs(executor_input, declared, own.volume)
        uris = place_outputs(executor_input, own.volume)
        arguments.json_serialized_invocation_args = json.dumps(
            as_objects(executor_input) if own.objects else executor_input
        )
        _record(own, "running", begin, executor_input)
        tfx_entrypoint.main((arguments, beam_args))
    except BaseException as failure:  # Whatever it is, it is the task's; the run must know why.
        traceback.print_exc()
        error, refused = tfx_nodes.message_of(failure)
    try:
        state = "failed" if error else "done"
        _record(own, state, begin, executor_input, error, refused=refused)
        name_outputs(executor_input["outputs"]["outputFile"], uris)
    except OSError as failure:
        error = error or str(failure)
    if error:
        print(f"{own.task} failed: {error}", file=sys.stderr)
    return 1 if error else 0


def prepare_inputs(executor_input: dict[str, Any], declared: dict[str, Any], volume: str) -> None:
    """Gives input artifacts their types, and puts those in place that others stand for.

    Args:
        executor_input: Kubeflow's `ExecutorInput`; it is changed.
        declared: The component's `ComponentInputsSpec`.
        volume: Folder of the volume that artifacts lie in; empty for none.
    """
    inputs = executor_input.get("inputs", {}).get("artifacts", {})
    for name in list(inputs):
        artifacts = []
        for item in inputs[name].get("artifacts", []):
            others = item.get("metadata", {}).get(tfx_nodes.STANDS_FOR)
            artifacts += [item] if others is None else json.loads(others)
        if not artifacts:
            # An optional input that nothing provides.
            del inputs[name]
            continue
        artifact_type = declared.get("artifacts", {}).get(name, {}).get("artifactType")
        for item in artifacts:
            if artifact_type is not None and not _has_type(item.get("type") or {}):
                item["type"] = artifact_type
            item["uri"] = path_of(item.get("uri", ""), volume)
        inputs[name]["artifacts"] = artifacts
    values = executor_input.get("inputs", {}).get("parameterValues", {})
    for name, value in values.items():
        # The status of a run, which some backends hand over as a structure.
        if isinstance(value, dict):
            values[name] = json.dumps(value)


def _has_type(kind: dict[str, str]) -> bool:
    title = kind.get("schemaTitle", "")
    return bool(kind.get("instanceSchema") or (title and not title.startswith("system.")))


def place_outputs(executor_input: dict[str, Any], volume: str) -> dict[str, str]:
    """Says where output artifacts, and what tells of them, are written.

    What a try before this has left there is removed: no task reads what it has half written.

    Args:
        executor_input: Kubeflow's `ExecutorInput`; it is changed.
        volume: Folder of the volume that artifacts lie in; empty for none.

    Returns:
        The URIs that the backend knows artifacts by, by their paths.
    """
    uris, outputs = {}, executor_input.get("outputs", {})
    if "outputFile" in outputs:
        outputs["outputFile"] = path_of(outputs["outputFile"], "")
    for output in outputs.get("artifacts", {}).values():
        for item in output.get("artifacts", []):
            path = path_of(item["uri"], volume)
            uris[path] = item["uri"]
            item["uri"] = path
            if os.path.isdir(path):
                shutil.rmtree(path)
            is_value = any(f"title: {title}" in json.dumps(item["type"]) for title in _VALUES)
            os.makedirs(os.path.dirname(path) if is_value else path, exist_ok=True)
    return uris


def path_of(uri: str, volume: str) -> str:
    """Returns where an artifact lies: in the volume, or where object stores are mounted.

    Args:
        uri: Such as `minio://BUCKET/v2/artifacts/RUN/TASK/KEY`, or a path already.
        volume: Folder of the volume; empty for none.
    """
    scheme = next((name for name in _LOCAL if uri.startswith(name)), None)
    if scheme is None:
        return uri
    rest = uri.removeprefix(scheme)
    if not volume:
        return _LOCAL[scheme] + rest
    return volume.rstrip("/") + posixpath.normpath("/" + rest.partition("/")[2])


def as_objects(executor_input: dict[str, Any]) -> dict[str, Any]:
    """Returns what a task is handed with objects in place of the folders that stand for them.

    Workers elsewhere see no mounted bucket. What the task itself writes for the backend stays.
    """
    mount = _LOCAL["gs://"]
    objects = json.loads(json.dumps(executor_input).replace(f'"{mount}', '"gs://'))
    if "outputFile" in executor_input.get("outputs", {}):
        objects["outputs"]["outputFile"] = executor_input["outputs"]["outputFile"]
    return objects


def name_outputs(path: str, uris: dict[str, str]) -> None:
    """Names artifacts by their URIs again, by which the backend knows them.

    The launcher uploads what lies at its own path for a URI, and some releases forget an artifact
    of which nothing lies there: that is where a pointer to the volume goes.

    Args:
        path: The task's `ExecutorOutput`.
        uris: As `place_outputs` returned them.
    """
    for place, uri in uris.items():
        copy = path_of(uri, "")
        if copy != place and os.path.isdir(os.path.dirname(copy)) and not os.path.exists(copy):
            os.makedirs(copy, exist_ok=True)
            with open(os.path.join(copy, _POINTER), "w") as handle:
                json.dump({"path": place}, handle)
    if not os.path.isfile(path):
        return
    with open(path) as handle:
        content = json.load(handle)
    for output in content.get("artifacts", {}).values():
        for item in output.get("artifacts", []):
            item["uri"] = uris.get(item.get("uri", ""), item.get("uri", ""))
    with open(path, "w") as handle:
        json.dump(content, handle)


def _record(
    own: argparse.Namespace,
    state: str,
    begin: float,
    executor_input: dict,
    error: str = "",
    *,
    refused: bool = False,
) -> None:
    """Writes what became of the task, for the report of the run."""
    outputs, properties = {}, {}
    path = executor_input["outputs"]["outputFile"]
    done = {}
    if state == "done" and os.path.isfile(path):
        with open(path) as handle:
            done = json.load(handle).get("artifacts", {})
    for name, output in executor_input["outputs"].get("artifacts", {}).items():
        outputs[name] = output["artifacts"][0]["uri"]
        properties[name] = next(
            (item.get("metadata", {}) for item in done.get(name, {}).get("artifacts", [])), {}
        )
    seconds = time.time() - begin
    task = NodeRun(own.task, state, seconds, outputs, properties, error, refused)
    records.add_task(own.root, task, order=begin)


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    # Libraries of the stack end threads in destructors, which can abort a process that has done
    # all its work.
    os._exit(code)
