"""`sigline lineage`: what a model was made of."""

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
    from sigline.pipeline import lineage, report

    metadata = arguments.metadata or _above(arguments.model)
    if metadata is None:
        return _show_card(arguments.model, as_json=arguments.json)
    found = lineage.trace(arguments.model, metadata)
    if arguments.json:
        print(json.dumps(found, indent=1, sort_keys=True))
    else:
        print(report.table(lineage.lines(found)))
    return 0


def _above(model: Path) -> Path | None:
    """Returns the metadata store of the pipeline whose folder a model lies in; None without one."""
    stores = (folder / "metadata.sqlite" for folder in model.resolve().parents)
    return next((path for path in stores if path.is_file()), None)


def _show_card(model: Path, *, as_json: bool) -> int:
    """Prints the card that was published with a model, wherever that is now."""
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
        raise ValueError(f"The model's files were changed since it was published: {model}")
    print((data if as_json else page).read_text().rstrip())
    return 0
