"""What runs on a cluster have done, as files below the environment's root.

Kubeflow's backend has a database too, but no task may ask it for what other runs have made. Each
record is a file that appears whole; nothing is ever changed.
"""

import dataclasses
import json
import os
import time
import uuid
from pathlib import Path
from typing import Any

from sigline.pipeline.run_report import NodeRun
from sigline.schemas import atomic

DATA, MODELS = "data", "models"
# What becomes of a run's model.
RELEASED, REFUSED = "released", "refused"
# Environment variable with the name of the run that a task belongs to.
RUN_VARIABLE = "SIGLINE_RUN"
_UNKNOWN_RUN = "unknown"


def run_name() -> str:
    """Returns the name of the run that this task belongs to, as the backend says."""
    return os.path.basename(os.environ.get(RUN_VARIABLE, "")) or _UNKNOWN_RUN


def add(root: str | Path, kind: str, record: dict[str, Any]) -> None:
    """Adds a record of a kind; newer ones sort after older ones."""
    name = f"{time.time_ns():020d}-{run_name()}-{uuid.uuid4().hex[:8]}.json"
    _write(Path(root) / "registry" / kind / name, record)


def read(root: str | Path, kind: str) -> list[dict[str, Any]]:
    """Returns the records of a kind, the oldest first."""
    folder = Path(root) / "registry" / kind
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]


def run_folder(root: str | Path, run: str) -> Path:
    """Returns the folder of what the tasks of a run have written about themselves."""
    return Path(root) / "runs" / run


def add_task(root: str | Path, task: NodeRun, *, order: float) -> None:
    """Records what became of a task of this run; a retry replaces the record before it."""
    record = dataclasses.asdict(task) | {"order": order}
    _write(run_folder(root, run_name()) / "tasks" / f"{task.name}.json", record)


def tasks(root: str | Path, run: str) -> list[NodeRun]:
    """Returns the tasks of a run, in the order in which they began."""
    stored = [
        json.loads(path.read_text()) for path in (run_folder(root, run) / "tasks").glob("*.json")
    ]
    stored.sort(key=lambda item: item["order"])
    return [
        NodeRun(**{key: value for key, value in item.items() if key != "order"}) for item in stored
    ]


def _write(path: Path, record: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic.write_file(path, json.dumps(record, indent=1, sort_keys=True))
