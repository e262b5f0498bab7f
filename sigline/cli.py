"""The `sigline` command. Heavy libraries are imported by the commands that need them."""

import argparse
import signal
import sys

import sigline
from sigline import arguments as checks
from sigline.commands import (
    ask,
    demo,
    embed,
    export,
    fetch,
    gate,
    kubeflow,
    lineage,
    new,
    recipes,
    run,
    scenes,
    schema,
    search,
    seeds,
    select,
    serve,
    soup,
    train,
    versions,
    weights,
)
from sigline.schemas import full_disk, progress

_SUBCOMMANDS = argparse._SubParsersAction
# The commands, in the order of the help text: those of `sigline data`, and all others.
_DATA = (scenes, fetch, schema, select, embed)
_COMMANDS = (
    run,
    train,
    recipes,
    weights,
    export,
    gate,
    soup,
    seeds,
    serve,
    versions,
    lineage,
    kubeflow,
    new,
    ask,
    search,
    demo,
)


def main(argv: list[str] | None = None) -> int:
    """Parses the command line, runs the command and returns the exit code."""
    arguments = _parser().parse_args(argv)
    from sigline.trainer.training.preemption import Preempted

    try:
        with progress.shown(quiet=arguments.quiet):
            return arguments.run(arguments)
    except Preempted as notice:
        print(f"sigline: {notice}", file=sys.stderr)
        return 128 + signal.SIGTERM
    except Exception as error:
        # A full disk also raises errors of TensorFlow and SQLite, whose types are not known here.
        disk_full = full_disk.sentence(error)
        if disk_full is None and not isinstance(error, ValueError | OSError | RuntimeError):
            raise
        print(f"sigline: {disk_full or error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = checks.Parser(prog="sigline", description="Train, gate and ship image-text models.")
    parser.add_argument("--version", action="version", version=sigline.__version__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    data = commands.add_parser("data", help="make and choose data").add_subparsers(required=True)
    for module in _DATA:
        module.add_parser(data)
    for module in _COMMANDS:
        module.add_parser(commands)
    _add_quiet(parser)
    return parser


def _add_quiet(parser: argparse.ArgumentParser) -> None:
    """Adds `--quiet` to the commands that have no subcommands."""
    subcommands = [action for action in parser._actions if isinstance(action, _SUBCOMMANDS)]
    if not subcommands:
        parser.add_argument("--quiet", action="store_true", help="print no progress")
    for action in subcommands:
        for command in action.choices.values():
            _add_quiet(command)


if __name__ == "__main__":
    sys.exit(main())
