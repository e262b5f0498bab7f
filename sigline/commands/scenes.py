"""`sigline data scenes`: generates scenes with captions, and plants faults in them."""

import argparse
from pathlib import Path

from sigline.schemas import progress


def add_parser(data) -> None:
    """Adds the command."""
    scenes = data.add_parser("scenes", help="generate scenes with captions as WebDataset shards")
    scenes.add_argument("--output", required=True, type=Path, help="folder to write to")
    scenes.add_argument("--count", type=int, default=4000, help="number of pairs")
    scenes.add_argument("--seed", type=int, default=0)
    scenes.add_argument("--faults", default="", help="NAME=SHARE,... to plant")
    scenes.set_defaults(run=_scenes)


def _scenes(arguments: argparse.Namespace) -> int:
    from sigline.components.scenes import generate

    faults = generate.parse_faults(arguments.faults)
    with progress.part("generate scenes"):
        planted = generate.write_scenes(
            arguments.output, count=arguments.count, seed=arguments.seed, faults=faults
        )
    faults = ", ".join(f"{count} {name}" for name, count in planted.items() if count) or "none"
    print(f"Wrote {arguments.count} pairs to {arguments.output}; planted faults: {faults}")
    return 0
