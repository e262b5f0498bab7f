"""Runs the pipeline on this machine and turns the outcome into an exit code."""

import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from sigline.pipeline import build, report
from sigline.pipeline.environment import Environment

EXIT_OK = 0
EXIT_NOT_BLESSED = 1
EXIT_FAILED = 2


def run(environment: Environment, dag_runner: Any = None) -> report.RunReport | None:
    """Runs the pipeline and returns its report; nodes that are done already are not run again.

    Args:
        environment: What to run.
        dag_runner: A TFX runner; `LocalDagRunner` if not given.

    Returns:
        The report; None where nothing ran, as under `tfx pipeline create`, which only compiles.
    """
    from tfx.orchestration.local.local_dag_runner import LocalDagRunner

    os.makedirs(environment.root, exist_ok=True)
    before = report.num_runs(environment.metadata_path)
    (dag_runner or LocalDagRunner()).run(build.build(environment))
    if report.num_runs(environment.metadata_path) == before:
        return None
    return report.read_report(environment.metadata_path)


def main(load: Callable[[], Environment], dag_runner: Any = None) -> int:
    """Runs, prints the verdict and returns the exit code.

    0: published (or published before); 1: refused by a gate; 2: the pipeline failed.
    """
    try:
        outcome = run(load(), dag_runner)
    except Exception as error:  # The border to the user: one message, and a failing exit code.
        if os.environ.get("SIGLINE_TRACEBACK"):
            raise
        print(f"The pipeline failed: {_root_message(error)}", file=sys.stderr)
        print("Set SIGLINE_TRACEBACK=1 for the traceback.", file=sys.stderr)
        return EXIT_FAILED
    return EXIT_OK if outcome is None else print_outcome(outcome)


def print_outcome(outcome: report.RunReport, extra_rows: Sequence[tuple[str, str]] = ()) -> int:
    """Prints the summary and the verdict and returns the exit code."""
    print(report.table([*report.rows(outcome), *extra_rows]), flush=True)
    if outcome.released:
        state = "published as" if outcome.published["copied"] else "published before as"
        print(f"Blessed; {state} {outcome.published['path']}")
        return EXIT_OK
    print("Not blessed; nothing was published:", file=sys.stderr)
    for reason in outcome.refusals():
        print(f"  - {reason}", file=sys.stderr)
    return EXIT_NOT_BLESSED


def _root_message(error: BaseException) -> str:
    while error.__cause__ is not None or error.__context__ is not None:
        error = error.__cause__ or error.__context__  # type: ignore[assignment]  # One is not None.
    return str(error) or type(error).__name__
