"""`sigline lineage`: the data, configuration, code and models that a model was made from."""

import argparse
import json
from pathlib import Path

from sigline import arguments as checks


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
    checks.check_folder(arguments.model, "MODEL")
    checks.check_file(arguments.metadata, "--metadata")
    from sigline.pipeline import lineage, run_report

    metadata = arguments.metadata or _above(arguments.model)
    if metadata is None:
        return _show_card(arguments.model, as_json=arguments.json)
    trace = lineage.trace(arguments.model, metadata)
    if arguments.json:
        print(json.dumps(trace, indent=1, sort_keys=True))
    else:
        print(run_report.table(lineage.lines(trace)))
    return 0


def _above(model: Path) -> Path | None:
    """Returns the nearest metadata store in a folder above the model; None if there is none."""
    stores = (folder / "metadata.sqlite" for folder in model.resolve().parents)
    return next((path for path in stores if path.is_file()), None)


def _show_card(model: Path, *, as_json: bool) -> int:
    """Prints the model card that was published with a model."""
    from sigline.schemas import artifacts, signatures, versions

    page, data = (
        model / signatures.ASSETS_DIR / name for name in (artifacts.CARD_PAGE, artifacts.CARD_FILE)
    )
    if not page.is_file():
        raise ValueError(
            "There is no metadata.sqlite above the model, and no card in it; give --metadata. "
            f"Received: {model}"
        )
    if versions.verify(model) is None:
        raise ValueError(
            "The model's files must be those that were published, or its card may be wrong; "
            f"`sigline verify` names the files that differ. Received: {model}"
        )
    print((data if as_json else page).read_text().rstrip())
    return 0
