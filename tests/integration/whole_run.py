"""A run of a tiny model's pipeline: what makes it, and what it has left."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from tiny_model import OVERRIDES

from sigline.components.scenes import generate


class WholeRun(NamedTuple):
    """What a run has left.

    Attributes:
        folder: Where its environment, data and root are.
        report: Its report.
        model: The metadata of the model that it published.
    """

    folder: Path
    report: Any
    model: dict[str, Any]

    @classmethod
    def read(cls, facts: Path) -> "WholeRun":
        """Reads what was written about it when it was done."""
        from sigline.pipeline import run_report

        written = json.loads((facts / "report.json").read_text())
        nodes = tuple(run_report.NodeRun(**node) for node in written.pop("nodes"))
        return cls(
            Path((facts / "folder").read_text()),
            run_report.RunReport(nodes=nodes, **written),
            json.loads((facts / "model.json").read_text()),
        )


def write_environment(folder: Path, name: str = "e2e", **changes) -> Path:
    """Writes an environment with a tiny model and returns its path."""
    values = {
        "pipeline_name": name,
        "root": str(folder / "root"),
        "input_base": str(folder / "data"),
        "recipe": "siglip_small",
        "overrides": OVERRIDES,
        "ingest": {"eval_sources": [generate.HELD_OUT_SOURCE], "eval_share": 0.2},
        "index": {"top": 20},
    }
    path = folder / "environment.yaml"
    path.write_text(yaml.safe_dump(values | changes))
    return path
