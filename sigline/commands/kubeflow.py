"""`sigline kubeflow`: compiles, tries, starts and follows runs of the pipeline on a cluster."""

import argparse
import sys
from pathlib import Path

from sigline.commands.dataclass_options import add_options, from_arguments


def add_parser(commands) -> None:
    """Adds the command."""
    kubeflow = commands.add_parser(
        "kubeflow", help="compile the pipeline for Kubeflow or Vertex AI, try and run it there"
    )
    actions = kubeflow.add_subparsers(dest="action", required=True)

    compiling = actions.add_parser("compile", help="write a package that can be uploaded")
    compiling.add_argument("--environment", default="local", help="YAML file or a packaged name")
    compiling.add_argument("--output", type=Path, help="by default NAME.yaml, or NAME.json")
    compiling.add_argument("--engine", choices=("kubeflow", "vertex"), default="kubeflow")
    compiling.set_defaults(run=_compile)

    trying = actions.add_parser("dry-run", help="run a package's tasks on this machine")
    trying.add_argument("package", type=Path)
    trying.add_argument(
        "--volume", type=Path, required=True, help="folder that stands for the tasks' volume"
    )
    trying.add_argument(
        "--logs", type=Path, default=Path("runs/dry-run"), help="folder of the tasks' logs"
    )
    trying.add_argument(
        "--preload",
        action="store_true",
        help="import libraries once for all tasks, not in each as a container would",
    )
    _add_parameters(trying)
    trying.set_defaults(run=_dry_run)

    starting = actions.add_parser("submit", help="start a run of a package, or a schedule of runs")
    starting.add_argument("package", type=Path)
    starting.add_argument("--experiment", default="", help="by default the pipeline's name")
    starting.add_argument("--service-account", default="", help="service account of the run")
    starting.add_argument("--cron", default="", help="start runs at these times, as `0 0 3 * * *`")
    starting.add_argument(
        "--no-cache", action="store_true", help="run every task, without Kubeflow's cache"
    )
    starting.add_argument(
        "--namespace", default="", help="namespace of the user, if there are several"
    )
    _add_parameters(starting)
    _add_access(starting)
    starting.set_defaults(run=_submit)

    asking = actions.add_parser("status", help="print the state of a run and of its tasks")
    asking.add_argument("run_id", metavar="RUN")
    _add_access(asking)
    asking.set_defaults(run=_status)

    reading = actions.add_parser("logs", help="print what a task of a run has printed")
    reading.add_argument("run_id", metavar="RUN")
    reading.add_argument("task", nargs="?", default="ReportRun")
    _add_access(reading)
    reading.set_defaults(run=_logs)


def _add_parameters(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--parameter",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="parameter of the run, such as span=7; repeat it for others",
    )


def _add_access(parser: argparse.ArgumentParser) -> None:
    add_options(
        parser,
        "sigline.pipeline.kubeflow.cluster.Access",
        host={"help": "address of Kubeflow Pipelines' API"},
    )


def _access(arguments: argparse.Namespace):
    from sigline.pipeline.kubeflow import cluster

    return from_arguments(cluster.Access, arguments)


def _parameters(assignments: list[str]) -> dict[str, str]:
    pairs = [assignment.partition("=") for assignment in assignments]
    if wrong := [name for name, sign, _ in pairs if not sign or not name]:
        raise ValueError(f"--parameter must be NAME=VALUE. Received: --parameter {wrong[0]}")
    return {name: value for name, _, value in pairs}


def _compile(arguments: argparse.Namespace) -> int:
    from sigline.pipeline import checks
    from sigline.pipeline import environment as environments
    from sigline.pipeline.kubeflow import packages, settings

    environment = environments.load(arguments.environment)
    checks.settings(environment)
    suffix = "json" if arguments.engine == "vertex" else "yaml"
    output = arguments.output or Path(f"{environment.pipeline_name}.{suffix}")
    # Checks before the import of TFX, which takes half a minute.
    settings.read(environment.kubeflow)
    packages.check_output(output)
    from sigline.pipeline.kubeflow import compiling

    spec = compiling.compile_pipeline(environment, output, engine=arguments.engine)
    tasks = spec["components"][packages.GRAPH]["dag"]["tasks"]
    print(f"{output}: {len(tasks)} tasks and a report at the end")
    return 0


def _dry_run(arguments: argparse.Namespace) -> int:
    from sigline import arguments as checks
    from sigline.pipeline.kubeflow import dry_run, packages, records

    checks.check_file(arguments.package, "PACKAGE")

    def show(task: dry_run.TaskRun) -> None:
        again = f", {task.attempts} attempts" if task.attempts > 1 else ""
        reason = f": {task.reason}" if task.reason else ""
        print(f"{task.name}: {task.state.lower()}, {task.seconds:.0f} s{again}{reason}", flush=True)

    package = packages.read(arguments.package).on(arguments.volume)
    run = dry_run.DryRun(
        package,
        arguments.logs,
        parameters=_parameters(arguments.parameter),
        report=show,
        preload=arguments.preload,
    )
    succeeded = run.run() == dry_run.SUCCEEDED
    reporter = run.tasks.get("ReportRun")
    if reporter is not None and reporter.log is not None:
        # The run's own report, which is the end of the log.
        text = reporter.log.read_text(errors="replace")
        print(text[text.rfind("\nRun ") + 1 :].rstrip())
    print(f"Logs: {arguments.logs / run.name / 'logs'}", file=sys.stderr)
    if not succeeded:
        return 2
    verdict = run.tasks.get("RecordVerdict")
    refused = verdict is not None and verdict.parameters.get("verdict") == records.REFUSED
    return 1 if refused else 0


def _submit(arguments: argparse.Namespace) -> int:
    from sigline.pipeline.kubeflow import cluster

    client = cluster.connect(_access(arguments))
    options = {
        "parameters": _parameters(arguments.parameter),
        "experiment": arguments.experiment,
        "service_account": arguments.service_account,
        "namespace": arguments.namespace,
    }
    if arguments.cron:
        schedule = cluster.schedule(client, arguments.package, cron=arguments.cron, **options)
        print(f"Schedule {schedule}: {arguments.cron}")
    else:
        run = cluster.submit(client, arguments.package, cache=not arguments.no_cache, **options)
        print(f"Run {run}")
    return 0


def _status(arguments: argparse.Namespace) -> int:
    from sigline.pipeline.kubeflow import cluster

    state, tasks = cluster.status(cluster.connect(_access(arguments)), arguments.run_id)
    for name, task_state, error in tasks:
        print(f"{name}: {task_state.lower()}" + (f": {error}" if error else ""))
    print(f"Run {arguments.run_id}: {state.lower()}")
    return 2 if state in ("FAILED", "CANCELED") else 0


def _logs(arguments: argparse.Namespace) -> int:
    from sigline.pipeline.kubeflow import cluster

    client = cluster.connect(_access(arguments))
    print(cluster.logs(client, arguments.run_id, arguments.task).rstrip())
    return 0
