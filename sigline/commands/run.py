"""`sigline run`: the whole pipeline on this machine."""

import argparse

from sigline import quiet
from sigline.schemas import progress


def add_parser(commands) -> None:
    """Adds the command."""
    run = commands.add_parser("run", help="run the whole pipeline on this machine")
    run.add_argument("--environment", default=None, help="YAML file, or name of a packaged one")
    run.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from sigline.pipeline import environment

    name = arguments.environment
    loaded = environment.load(name) if name else environment.active()
    environment.check_root(loaded)
    from sigline.pipeline import checks as environment_checks

    environment_checks.check(loaded)
    quiet.import_tfx()
    with progress.part("import the pipeline"):
        from sigline.pipeline import local_run

    return local_run.main(lambda: loaded)
