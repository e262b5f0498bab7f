"""`sigline data select`: which records of a split to train on."""

import argparse
import dataclasses
from pathlib import Path

from sigline import arguments as checks
from sigline import quiet
from sigline.schemas import atomic, progress


def add_parser(data) -> None:
    """Adds the command."""
    select = data.add_parser("select", help="choose which records of a split to train on")
    select.add_argument("--data", required=True, type=Path, help="folder with manifest.json")
    select.add_argument("--output", required=True, type=Path, help="folder to write to")
    select.add_argument("--split", default="train")
    select.add_argument("--model", type=Path, help="SavedModel that embeds the pairs")
    select.add_argument("--similarity-fraction", type=float, help="share to keep, most similar")
    select.add_argument("--min-similarity", type=float, help="least cosine to keep instead")
    select.add_argument("--target", type=Path, help="examples whose images to choose near ones of")
    select.add_argument("--target-limit", type=int, help="pairs to choose near them, at most")
    select.add_argument("--target-stop", type=float, help="least similarity, of the nearest's")
    select.add_argument("--target-clusters", type=int, help="centres of the target's images")
    select.add_argument("--labels", type=Path, help="file with a class's text in each line")
    select.add_argument(
        "--covariance-fraction", type=float, help="share of each class that varies as all do"
    )
    select.add_argument("--clusters", type=int, help="number of clusters of images")
    select.add_argument("--cluster-limit", type=int, help="pairs to keep of each, about")
    select.add_argument("--entries", type=Path, help="file with an entry for captions in each line")
    select.add_argument("--entry-limit", type=int, help="pairs to keep of each entry, about")
    select.add_argument("--seed", type=int, default=0)
    select.set_defaults(run=_select)


def _select(arguments: argparse.Namespace) -> int:
    from sigline.components.curate import rules
    from sigline.schemas import record
    from sigline.schemas.selection import SELECTION_FILE, Selection

    checks.check_folder(arguments.data, "--data", holds=record.MANIFEST_FILE)
    checks.check_folder(arguments.model, "--model", holds="saved_model.pb")
    checks.check_folder(arguments.target, "--target")
    for path, option in ((arguments.entries, "--entries"), (arguments.labels, "--labels")):
        checks.check_file(path, option)
    checks.check_absent(arguments.output, "--output")
    fields = {item.name for item in dataclasses.fields(rules.CurateConfig)}
    given = {name: value for name, value in vars(arguments).items() if name in fields}
    chosen = {name: value for name, value in given.items() if value is not None}
    if not set(chosen) - {"seed", "target_stop", "target_clusters"}:
        raise ValueError("select needs at least one of the options that say what to choose.")
    if (arguments.entries is None) != (arguments.entry_limit is None):
        raise ValueError("--entries and --entry-limit must be given together.")
    config = rules.CurateConfig(**chosen)
    quiet.import_tensorflow()
    import apache_beam as beam

    from sigline.components.curate import transforms

    name = f"Split-{arguments.split}"
    with atomic.new_folder(arguments.output) as scratch:
        transform = transforms.Curate(
            str(arguments.data.resolve()),
            str(scratch),
            config,
            model_dir=str(arguments.model) if arguments.model else None,
            entries=_lines(arguments.entries),
            labels=_lines(arguments.labels),
            target_dir=str(arguments.target.resolve()) if arguments.target else None,
            split=arguments.split,
        )
        with progress.part("select"), beam.Pipeline(argv=["--runner=FnApiRunner"]) as pipeline:
            _ = pipeline | transform
        selection = Selection.from_json((scratch / name / SELECTION_FILE).read_text())
        if not selection.selected:
            raise ValueError("No record was chosen; choose less strictly.")
    folder = arguments.output / name
    total = sum(shard.records for shard in selection.shards.values())
    print(f"Chose {selection.selected} of {total} records; train on them with --data {folder}")
    return 0


def _lines(path: Path | None) -> tuple[str, ...]:
    """Returns the lines of a file that are not empty; none of none."""
    lines = path.read_text().splitlines() if path else ()
    return tuple(line.strip() for line in lines if line.strip())
