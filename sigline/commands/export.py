"""`sigline export`: exports weights as a SavedModel."""

import argparse
from pathlib import Path

from sigline import arguments as checks
from sigline import quiet
from sigline.commands import loading
from sigline.schemas import progress


def add_parser(commands) -> None:
    """Adds the command."""
    export = commands.add_parser("export", help="write the SavedModel of weights")
    export.add_argument("--weights", required=True, type=Path, help="folder of weights")
    export.add_argument("--output", required=True, type=Path, help="folder of the SavedModel")
    export.add_argument("--labels", type=Path, help="classes.json for the classify signature")
    export.set_defaults(run=_export)


def _export(arguments: argparse.Namespace) -> int:
    checks.check_weights(arguments.weights, "--weights")
    checks.check_absent(arguments.output, "--output")
    labels = loading.labels(arguments.labels)
    quiet.import_tensorflow()
    from sigline.trainer.training import start

    weights = loading.weights(arguments.weights)
    with progress.part("export the model"):
        metadata = start.export_weights(arguments.output, weights, labels)
    print(f"Exported {metadata['num_parameters']:,} parameters to {arguments.output}")
    return 0
