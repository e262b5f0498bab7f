"""`sigline lineage`: what a model was made of."""

import argparse
import json
from pathlib import Path


def add_parser(commands) -> None:
    """Adds the command."""
    parser = commands.add_parser(
        "lineage", help="tell what data, config, code and models a model was made of"
    )
    parser.add_argument("model", type=Path, help="published version, or folder of a model artifact")
    parser.add_argument(
        "--metadata", type=Path, help="the pipeline's metadata.sqlite; searched above MODEL"
    )
    parser.add_argument("--json", action="store_true", help="print all of it as JSON")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from sigline.pipeline import lineage, report

    metadata = arguments.metadata or _above(arguments.model)
    found = lineage.trace(arguments.model, metadata)
    if arguments.json:
        print(json.dumps(found, indent=1, sort_keys=True))
    else:
        print(report.table(lineage.lines(found)))
    return 0


def _above(model: Path) -> Path:
    for folder in model.resolve().parents:
        if (folder / "metadata.sqlite").is_file():
            return folder / "metadata.sqlite"
    raise ValueError(
        f"There is no metadata.sqlite above the model; give --metadata. Received: {model}"
    )
