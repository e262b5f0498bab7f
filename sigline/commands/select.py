"""`sigline data select`: chooses the records of a split to train on."""

import argparse
from pathlib import Path

from sigline import arguments as checks
from sigline import quiet
from sigline.commands.dataclass_options import add_options, from_arguments
from sigline.schemas import atomic, progress

# Options that choose records, and options that only modify these.
_CHOICES = (
    *("similarity_fraction", "min_similarity", "target_limit", "covariance_fraction"),
    *("clusters", "cluster_limit", "entry_limit"),
)
_DETAILS = ("target_stop", "target_clusters", "seed")


def add_parser(data) -> None:
    """Adds the command."""
    select = data.add_parser("select", help="choose which records of a split to train on")
    select.add_argument("--data", required=True, type=Path, help="folder with manifest.json")
    select.add_argument("--output", required=True, type=Path, help="folder to write to")
    select.add_argument("--split", default="train")
    select.add_argument("--model", type=Path, help="SavedModel that embeds the pairs")
    select.add_argument(
        "--target", type=Path, help="examples; images that are near theirs are chosen"
    )
    select.add_argument("--labels", type=Path, help="file with a class's text in each line")
    select.add_argument("--entries", type=Path, help="file with an entry for captions in each line")
    add_options(select, "sigline.components.curate.rules.CurateConfig", (*_CHOICES, *_DETAILS))
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
    if all(getattr(arguments, name) is None for name in _CHOICES):
        options = ", ".join(f"--{name.replace('_', '-')}" for name in _CHOICES)
        raise ValueError(f"At least one of {options} must say what to choose. Received: none")
    if (arguments.entries is None) != (arguments.entry_limit is None):
        raise ValueError(
            "--entries and --entry-limit must be given together. "
            f"Received: --entries {arguments.entries}, --entry-limit {arguments.entry_limit}"
        )
    config = from_arguments(rules.CurateConfig, arguments)
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
            total = sum(shard.records for shard in selection.shards.values())
            raise ValueError(f"None of {total} records was chosen; choose less strictly.")
    folder = arguments.output / name
    total = sum(shard.records for shard in selection.shards.values())
    print(f"Chose {selection.selected} of {total} records; train on them with --data {folder}")
    return 0


def _lines(path: Path | None) -> tuple[str, ...]:
    """Returns the lines of a file that are not empty; none without a file."""
    lines = path.read_text().splitlines() if path else ()
    return tuple(line.strip() for line in lines if line.strip())
