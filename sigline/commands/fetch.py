"""`sigline data fetch`: fetches the images of tables of URLs into WebDataset shards."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any, BinaryIO

from sigline import quiet
from sigline.commands.dataclass_options import add_options, from_arguments
from sigline.components.ingest import sources
from sigline.schemas import progress
from sigline.schemas.entries import FILE, Entry, local_entries

# Most skipped files that are named.
_MAX_NAMED = 10
_SOURCE = "sigline.components.ingest.sources.SourceConfig"
_FETCH = "sigline.components.fetch.fetcher.FetchConfig"


def add_parser(commands) -> None:
    """Adds the command."""
    fetch = commands.add_parser(
        "fetch", help="fetch the images of tables of URLs as WebDataset shards"
    )
    fetch.add_argument("--input", required=True, type=Path, help="folder of the tables")
    fetch.add_argument("--output", required=True, type=Path, help="folder to write to, or go on in")
    add_options(
        fetch,
        _SOURCE,
        ("format", "image", "caption", "columns", "delimiter", "quoting"),
        format={"help": "format of the tables; `auto` never picks `list`"},
        image={"option": "--url-column", "help": "column of the URL, if not a usual name"},
        caption={"option": "--caption-column", "help": "columns of captions"},
        columns={"action": "store", "nargs": "+", "metavar": "NAME"},
        quoting={"choices": sources.QUOTING},
    )
    fetch.add_argument("--shard-rows", type=int, default=1000, help="rows of a shard")
    fetch.add_argument("--threads", type=int, default=16, help="requests at a time")
    add_options(
        fetch,
        _FETCH,
        (
            *("per_host", "host_interval_s", "retries", "timeout_s", "max_bytes", "user_agent"),
            "allowed_networks",
        ),
        host_interval_s={"option": "--host-interval"},
        timeout_s={"option": "--timeout"},
        allowed_networks={"option": "--allow-network"},
    )
    fetch.add_argument("--again", action="store_true", help="try again what failed for the moment")
    fetch.set_defaults(run=_run)


class _LocalFiles:
    """Local files, for checks before Beam is imported."""

    def open(self, path: str) -> BinaryIO:
        return open(path, "rb")

    def find(self, folder: str) -> list[str]:
        return [path for path, kind in local_entries(folder) if kind == FILE]

    def entries(self, folder: str) -> list[Entry]:
        return local_entries(folder)


def _run(arguments: argparse.Namespace) -> int:
    settings = _settings(arguments)
    # Checks the tables before the imports below, which take seconds.
    from sigline.components.fetch import url_tables

    folders = settings.pop("input_base"), settings.pop("output_dir")
    tables = url_tables.find(*folders, _LocalFiles(), settings["source"])
    for name in tables.without_captions[:5]:
        print(
            f"sigline: {name} has no column with a usual name for captions; its images come "
            "without any, unless --caption-column names one.",
            file=sys.stderr,
        )
    for name, reason in tables.passed_over[:_MAX_NAMED]:
        print(f"sigline: {name} is passed over ({reason}).", file=sys.stderr)
    if (num_others := len(tables.passed_over) - _MAX_NAMED) > 0:
        print(f"sigline: So are {num_others} other files.", file=sys.stderr)
    quiet.silence()
    import apache_beam as beam

    from sigline.components.fetch import transforms

    transform = transforms.Fetch(*folders, settings.pop("config"), **settings)
    with progress.part("fetch"), beam.Pipeline(argv=["--runner=FnApiRunner"]) as pipeline:
        _ = pipeline | transform
    counts = json.loads((arguments.output / transforms.COUNTS_FILE).read_text())
    for status, number in sorted(counts["by_status"].items(), key=lambda item: -item[1]):
        print(f"{number:>10} {status}")
    print(f"What became of each row is listed beside the shards in {arguments.output}")
    failures = problems(counts)
    for problem in failures:
        print(f"sigline: {problem}", file=sys.stderr)
    return 1 if failures else 0


def _settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """Returns the arguments of the transform.

    Raises:
        ValueError: If one is out of range.
    """
    from sigline.components.fetch.fetcher import FetchConfig

    if not arguments.input.is_dir():
        raise ValueError(f"--input must be a folder with tables. Received: {arguments.input}")
    if arguments.output.exists() and not arguments.output.is_dir():
        raise ValueError(
            f"--output must be a folder, or not exist yet. Received: {arguments.output}"
        )
    for name in ("shard_rows", "threads"):
        if getattr(arguments, name) < 1:
            option = f"--{name.replace('_', '-')}"
            raise ValueError(
                f"{option} must be at least 1. Received: {option} {getattr(arguments, name)}"
            )
    changed: dict[str, Any] = {}
    if arguments.columns is not None:
        names = (name.strip() for item in arguments.columns for name in item.split(","))
        changed["columns"] = tuple(name for name in names if name)
    if arguments.delimiter is not None:
        # Shells pass the two characters on, not a tab.
        changed["delimiter"] = arguments.delimiter.replace("\\t", "\t")
    return {
        "input_base": str(arguments.input.resolve()),
        "output_dir": str(arguments.output.resolve()),
        "config": from_arguments(FetchConfig, arguments),
        "source": from_arguments(sources.SourceConfig, arguments, **changed),
        "shard_rows": arguments.shard_rows,
        "threads": arguments.threads,
        "again": arguments.again,
    }


def problems(counts: dict[str, Any]) -> list[str]:
    """Returns a sentence for each reason for which the command counts as failed."""
    if not counts["input"]:
        return ["the tables hold no rows."]
    reasons = [
        f"no row of {name} names a URL that could be asked for; the list beside its shards says "
        "why, row by row."
        for name in counts["tables_without_urls"]
    ]
    if not counts["by_status"].get("success"):
        reasons.append(f"none of the {counts['input']:,} images was fetched.")
    return reasons
