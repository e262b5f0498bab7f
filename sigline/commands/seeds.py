"""`sigline seeds`: metrics over runs with other seeds, and differences between two recipes."""

import argparse
import json
import math
from pathlib import Path

from sigline.schemas import artifacts, atomic


def add_parser(commands) -> None:
    """Adds the command to those of the command line."""
    parser = commands.add_parser(
        "seeds",
        help="metrics over runs with other seeds: means, intervals, differences",
        description="Takes what `sigline gate` or the pipeline wrote of runs that differ by seed.",
    )
    parser.add_argument(
        "runs", nargs="+", type=Path, help="metrics.json of each run, or the folders they are in"
    )
    parser.add_argument("--against", nargs="+", type=Path, default=[], help="runs to compare with")
    parser.add_argument(
        "--metric", action="append", default=[], help="metrics to show; by default all but slices"
    )
    parser.add_argument("--output", type=Path, help="JSON file to write")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Prints a table and the gate's `seed_std`, and returns the exit code."""
    from sigline.components.evaluate import seeds, slices

    if arguments.output is not None and arguments.output.exists():
        raise ValueError(f"--output must not exist yet. Received: --output {arguments.output}")
    paths = [path.resolve() for path in (*arguments.runs, *arguments.against)]
    if len(set(paths)) < len(paths):
        repeated = sorted({str(path) for path in paths if paths.count(path) > 1})
        raise ValueError(
            "Runs must each come once; the same run again says nothing of seeds. "
            f"Received: {repeated[0]} again"
        )
    runs, others = ([_read(path) for path in x] for x in (arguments.runs, arguments.against))
    aggregates = seeds.aggregate(runs, others)
    partly = seeds.incomplete([*runs, *others])
    unknown = sorted(set(arguments.metric) - set(aggregates))
    if unknown:
        raise ValueError(
            f"--metric must be one that all runs have: {', '.join(aggregates)}. "
            f"Received: {', '.join(unknown)}"
        )
    metrics = arguments.metric or [name for name in aggregates if not slices.is_part(name)]
    header = ("metric", "mean", "interval", "std")
    rows: list[tuple[str, ...]] = [header]
    if others:
        rows = [(*header, "against", "difference", "interval", "")]
    for name in metrics:
        item = aggregates[name]
        row: tuple[str, ...] = (
            name,
            _number(item.mean.value),
            _interval(item.mean),
            _number(item.std),
        )
        if item.other is not None and item.difference is not None:
            change = item.difference
            is_significant = change.low > 0 or change.high < 0
            difference = f"{change.value:+.4g}"
            row += (_number(item.other.value), difference, _interval(change, sign="+"))
            row += ("told apart" if is_significant else "",)
        rows.append(row)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip())
    if partly:
        print(f"Left out, since some runs lack them: {', '.join(partly)}")
    print(f"\nFor the gate, of {len(runs)} runs:\nseed_std:")
    for name in metrics:
        if aggregates[name].examples and "/" not in name:
            print(f"  {name}: {_number(aggregates[name].std)}")
    if arguments.output is not None:
        atomic.write_file(arguments.output, json.dumps(_to_dict(aggregates), indent=1) + "\n")
    return 0


def _read(path: Path) -> dict:
    if path.is_dir():
        path = path / artifacts.METRICS_FILE
    try:
        metrics = json.loads(path.read_text())
        for item in metrics.values():
            item.setdefault("value", None)
            if type(item["examples"]) is not int or not _is_number(item["value"]):
                raise TypeError
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        raise ValueError(
            f"Runs must be what `sigline gate --output` wrote as {artifacts.METRICS_FILE}, or its "
            f"folder. Received: {path}"
        ) from None
    return metrics


def _is_number(value) -> bool:
    return value is None or (type(value) in (int, float) and math.isfinite(value))


def _number(value: float) -> str:
    return f"{value:.4g}"


def _interval(estimate, *, sign: str = "") -> str:
    return f"{estimate.low:{sign}.4g} to {estimate.high:{sign}.4g}"


def _to_dict(aggregates) -> dict:
    content = {}
    for name, item in aggregates.items():
        content[name] = {"std": item.std}
        for key in ("mean", "other", "difference"):
            value = getattr(item, key)
            if value is not None:
                content[name][key] = {"value": value.value, "low": value.low, "high": value.high}
    return content
