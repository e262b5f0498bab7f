"""`sigline demo`: generates data, runs the pipeline, serves and asks."""

import argparse
from pathlib import Path

from sigline import quiet


def add_parser(commands) -> None:
    """Adds the command."""
    demo = commands.add_parser("demo", help="generate data, run the pipeline, serve and ask")
    demo.add_argument("--output", type=Path, default=Path("runs/demo"))
    demo.add_argument("--shuffle-captions", action="store_true", help="plant data the gate refuses")
    demo.set_defaults(run=_demo)


def _demo(arguments: argparse.Namespace) -> int:
    quiet.silence()
    if arguments.output.is_file():
        raise ValueError(f"--output must be a folder. Received: --output {arguments.output}")
    from sigline import demo

    return demo.run(arguments.output, shuffle_captions=arguments.shuffle_captions)
