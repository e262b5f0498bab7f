"""Compiled pipelines as files: what is in them, and the parameters that a run of one takes."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from sigline.schemas import digests, ownership

# The graph of all tasks but the last, as TFX calls it.
GRAPH = "tfx-dag"
# Placeholder for the name of the run, and the field of a pod that holds it.
RUN_ID, RUN_LABEL = "{{$.pipeline_job_uuid}}", "metadata.labels['pipeline/runid']"
COMMAND = "sigline kubeflow compile"
# Vertex AI's labels have at most 63 characters.
_LABEL, _LABEL_LENGTH = "sigline-digest", 40
_KINDS = {
    "STRING": (str, str),
    "NUMBER_INTEGER": (int, int),
    "NUMBER_DOUBLE": (float, float | int),
    "BOOLEAN": (lambda text: {"true": True, "false": False}[text.lower()], bool),
}


@dataclass(frozen=True)
class Package:
    """A compiled pipeline.

    Attributes:
        spec: Its PipelineSpec.
        executors: What Kubernetes gives each executor, by its label; empty for Vertex AI.
    """

    spec: dict[str, Any]
    executors: dict[str, Any]

    def parameters(self, changes: Mapping[str, str]) -> dict[str, Any]:
        """Returns the parameters of a run.

        Args:
            changes: Those that differ from their defaults, by name, as text.

        Raises:
            ValueError: If there is no such parameter, or it is of another type.
        """
        defined = self.spec["root"].get("inputDefinitions", {}).get("parameters", {})
        if unknown := sorted(set(changes) - set(defined)):
            raise ValueError(
                f"The package has the parameters {', '.join(sorted(defined)) or 'none'}. "
                f"Received: {', '.join(unknown)}"
            )
        values = {
            name: item["defaultValue"] for name, item in defined.items() if "defaultValue" in item
        }
        for name, text in changes.items():
            kind = defined[name]["parameterType"]
            try:
                values[name] = _KINDS[kind][0](text)
            except (KeyError, ValueError):
                raise ValueError(f"{name} must be a {kind}. Received: {name}={text!r}") from None
        for name, item in defined.items():
            # YAML and JSON have one kind of number.
            if item["parameterType"] == "NUMBER_INTEGER" and name in values:
                values[name] = int(values[name])
        return values

    def on(self, volume: str | Path) -> "Package":
        """Returns the package with a folder of this machine in place of its tasks' volume.

        Args:
            volume: Folder that stands for the mounted claim.

        Raises:
            ValueError: If its tasks have no volume, as those for Vertex AI.
        """
        mounts = {
            mount["mountPath"]
            for item in self.executors.values()
            for mount in item.get("pvcMount", [])
        }
        spec = self.spec
        if not mounts:
            raise ValueError(
                "A dry run needs a package with a volume, which one for Vertex AI has not; compile "
                "the pipeline for Kubeflow. "
                f"Received: executors={sorted(self.executors)}"
            )
        for mount in mounts:
            spec = _moved(spec, mount.rstrip("/"), str(Path(volume).absolute()))
        return Package(spec, self.executors)


def read(path: str | Path) -> Package:
    """Reads what `compiling.compile_pipeline` wrote, of either kind.

    Raises:
        ValueError: If it is no compiled pipeline.
    """
    text = Path(path).read_text()
    documents = list(yaml.safe_load_all(text))
    first = documents[0] if documents else None
    spec = first.get("pipelineSpec", first) if isinstance(first, dict) else None
    if not isinstance(spec, dict) or "deploymentSpec" not in spec or "root" not in spec:
        raise ValueError(f"package must be a compiled pipeline. Received: package={path}")
    platform = documents[1]["platforms"]["kubernetes"] if len(documents) > 1 else {}
    executors = platform.get("deploymentSpec", {}).get("executors", {})
    return Package(spec, executors)


def marked_yaml(text: str) -> str:
    """Returns a package for Kubeflow with the mark by which `check_output` knows it again."""
    return ownership.stamped(text, COMMAND)


def marked_json(job: Mapping[str, Any]) -> str:
    """Returns a package for Vertex AI as text, with the mark as one of the job's labels."""
    labels = {_LABEL: digests.json_digest(job)[:_LABEL_LENGTH]}
    return json.dumps({**job, "labels": labels}, indent=1, sort_keys=True)


def check_output(path: str | Path) -> None:
    """Refuses to write a package over a file that is none, or that was changed since.

    Raises:
        ValueError: With the path.
    """
    path = Path(path)
    if path.suffix != ".json" or not path.exists():
        ownership.check_stamped(path, COMMAND)
        return
    try:
        job = json.loads(path.read_bytes())
        labels = job.pop("labels")
        own = labels == {_LABEL: digests.json_digest(job)[:_LABEL_LENGTH]}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        own = False
    if not own or path.is_symlink():
        raise ownership.not_own(path, COMMAND)


def is_of(kind: str, value: Any) -> bool:
    """Returns whether a value is of a type of parameters; of structures nothing is known."""
    return kind not in _KINDS or isinstance(value, _KINDS[kind][1])


def _moved(value: Any, mount: str, volume: str) -> Any:
    """Returns the same with a folder in place of a mount, in every path in every text."""
    if isinstance(value, dict):
        return {key: _moved(item, mount, volume) for key, item in value.items()}
    if isinstance(value, list):
        return [_moved(item, mount, volume) for item in value]
    if isinstance(value, str):
        return re.sub(rf"(?<![\w/.-]){re.escape(mount)}(?![\w.-])", lambda _: volume, value)
    return value
