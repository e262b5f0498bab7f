"""Runs the pipeline on this machine and turns the outcome into an exit code."""

import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from sigline.components.validate.component import DataGateError
from sigline.pipeline import run_lock, run_report, wiring
from sigline.pipeline.environment import Environment
from sigline.pipeline.narrated_runner import NarratedRunner
from sigline.schemas import full_disk, ownership, progress, run_reports, strength

EXIT_OK = 0
EXIT_NOT_BLESSED = 1
EXIT_FAILED = 2


def run(environment: Environment, dag_runner: Any = None) -> run_report.RunReport | None:
    """Runs the pipeline and returns its report; nodes that are done already are not run again.

    Args:
        environment: What to run.
        dag_runner: A TFX runner; one that says what it is at if not given.

    Returns:
        The report of this run; None where nothing ran, as under `tfx pipeline create`, which only
        compiles.

    Raises:
        ValueError: If another run is at work on the same root.
    """
    os.makedirs(environment.root, exist_ok=True)
    with run_lock.alone(environment.root):
        before = run_report.run_ids(environment.metadata_path)
        with progress.part("plan the run"):
            pipeline = wiring.build(environment)
        runner = dag_runner or NarratedRunner()
        runner.run(pipeline)
        new = run_report.run_ids(environment.metadata_path) - before
        if not new:
            return None
        outcome = run_report.read_report(environment.metadata_path, _own(runner, new))
        _write_links(environment, outcome)
    return outcome


def _own(runner: Any, new: set[str]) -> str:
    """Returns the name of the run that a runner has just done.

    Raises:
        RuntimeError: If another runner does not say, and somebody else ran meanwhile.
    """
    if isinstance(runner, NarratedRunner) and runner.run_id is not None:
        return runner.run_id
    if len(new) > 1:
        raise RuntimeError(
            "The metadata store got several runs at once, and the runner does not say which is "
            f"its own. Run again; nothing is done twice. Received: {', '.join(sorted(new))}"
        )
    (name,) = new
    return name


def _write_links(environment: Environment, outcome: run_report.RunReport) -> None:
    """Writes the page of the run's folder that links its reports, unless one is in the way."""
    folder = ownership.OutputFolder(environment.root, "sigline run", option="`root`")
    try:
        folder.check([run_reports.PAGE])
    except ValueError as error:
        print(f"sigline: {error}", file=sys.stderr)
        return
    state = "Blessed" if outcome.verdict.get("blessed") else "Not blessed"
    words = strength.sentence(outcome.metrics)
    links = [(name, os.path.relpath(path, environment.root)) for name, path in outcome.reports()]
    page = run_reports.page(
        environment.pipeline_name,
        time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        [f"{state}; {words}." if words else f"{state}.", *outcome.refusals()],
        links,
    )
    with open(os.path.join(environment.root, run_reports.PAGE), "w", encoding="utf-8") as handle:
        handle.write(page)
    folder.record([run_reports.PAGE])


def main(load: Callable[[], Environment], dag_runner: Any = None) -> int:
    """Runs, prints the summary and the verdict and returns the exit code.

    0: published (or published before); 1: refused by a gate; 2: the pipeline failed.
    """

    def _run() -> int:
        outcome = run(load(), dag_runner)
        return EXIT_OK if outcome is None else print_outcome(outcome)

    with progress.shown():
        return guarded(_run)


def guarded(work: Callable[[], int]) -> int:
    """Returns what `work` returns; an exception becomes one message and a failing exit code."""
    try:
        return work()
    except Exception as error:  # The border to the user.
        if os.environ.get("SIGLINE_TRACEBACK"):
            raise
        refusal = find(error, DataGateError)
        if refusal is not None:
            print(refusal, file=sys.stderr)
            return EXIT_NOT_BLESSED
        print(f"The pipeline failed: {message(error)}", file=sys.stderr)
        print("Set SIGLINE_TRACEBACK=1 for the traceback.", file=sys.stderr)
        return EXIT_FAILED


def print_outcome(outcome: run_report.RunReport, extra_rows: Sequence[tuple[str, str]] = ()) -> int:
    """Prints the summary and the verdict and returns the exit code."""
    print(run_report.table([*run_report.rows(outcome), *extra_rows]), flush=True)
    if outcome.released:
        if words := strength.sentence(outcome.metrics):
            print(f"Blessed; {words}")
        state = "published as" if outcome.published["copied"] else "published before as"
        print(f"Blessed; {state} {outcome.published['path']}")
        return EXIT_OK
    print("Not blessed; nothing was published:", file=sys.stderr)
    for reason in outcome.refusals():
        print(f"  - {reason}", file=sys.stderr)
    return EXIT_NOT_BLESSED


def find(error: BaseException | None, kind: type[BaseException]) -> BaseException | None:
    """Returns the first exception of a type along the chain of causes."""
    while error is not None and not isinstance(error, kind):
        error = error.__cause__ or error.__context__
    return error


def message(error: BaseException) -> str:
    """Returns the message of an exception; Beam's hold a traceback, whose last line counts."""
    if full := full_disk.sentence(error):
        return full
    lines = str(error).strip().splitlines() or [type(error).__name__]
    if any("Traceback (most recent call last)" in line for line in lines):
        return lines[-1]
    return "\n".join(lines)
