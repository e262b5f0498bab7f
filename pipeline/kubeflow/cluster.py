"""Starts and follows runs on a cluster with Kubeflow Pipelines, by its own client.

Needs the extra `kfp`.
"""

import datetime
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sigline.pipeline.kubeflow import packages

# Environment variable with a token, which must not stand in a command line.
TOKEN_VARIABLE = "SIGLINE_KUBEFLOW_TOKEN"
# Addresses of logs in releases up to 2, and in later ones.
_LOGS = (
    "/apis/v1alpha1/runs/{run}/nodes/{pod}/log",
    "/apis/v2beta1/runs/{run}/nodes/{pod}/log",
)
# What the backend calls the pods of a task's command: by the workflow, and by the node's number.
_PODS = (
    "{workflow}-system-container-impl-{number}",
    "{workflow}-retry-system-container-impl-{number}",
)
# Nodes of the backend that are no tasks of the pipeline.
_INNER = re.compile(r"executor|.*-driver|.*\(\d+\)|root|.*\.(onExit|hooks).*")


@dataclass(frozen=True)
class Access:
    """How the API of Kubeflow Pipelines is reached.

    Attributes:
        host: Its address, such as `http://localhost:8080`; empty for `$KF_PIPELINES_ENDPOINT`, or
            the one of the cluster that this runs in.
        ca_certificate: File of who signed the certificate of the host; empty for the usual ones.
        cookie: File with a session's cookie, as Dex and other login pages give it; empty for none.
        in_cluster: Whether the token is that of the pod's service account.
    """

    host: str = ""
    ca_certificate: str = ""
    cookie: str = ""
    in_cluster: bool = False


def connect(access: Access) -> Any:
    """Returns a `kfp.Client`; a token is taken from `$SIGLINE_KUBEFLOW_TOKEN`.

    Raises:
        ValueError: If the extra is not installed, or the host does not answer.
    """
    try:
        import kfp
        from kfp.client import set_volume_credentials
    except ImportError as error:
        raise ValueError(
            f"Kubeflow's client is not installed; `pip install sigline[kfp]`. {error}"
        ) from None
    options: dict[str, Any] = {
        "host": access.host or None,
        "ssl_ca_cert": access.ca_certificate or None,
        "existing_token": os.environ.get(TOKEN_VARIABLE) or None,
        "cookies": Path(access.cookie).read_text().strip() if access.cookie else None,
    }
    if access.in_cluster:
        options["credentials"] = set_volume_credentials.ServiceAccountTokenVolumeCredentials()
    try:
        client = kfp.Client(**options)
        client.get_kfp_healthz()
    except Exception as error:  # Whatever the client's layers raise: it is not reached.
        raise ValueError(
            f"host must be reachable. Received: host={access.host or 'none'}: {_why(error)}"
        ) from None
    return client


def submit(
    client: Any,
    path: str | Path,
    *,
    parameters: Mapping[str, str],
    experiment: str = "",
    service_account: str = "",
    namespace: str = "",
    cache: bool = True,
) -> str:
    """Starts a run of a package and returns its ID.

    Args:
        client: What `connect` returned.
        path: The package.
        parameters: Parameters of the run by name, as text.
        experiment: Where the run is listed; the name of the pipeline if empty.
        service_account: Which it acts as; empty for the backend's default.
        namespace: Of the user, where there are several; empty for none.
        cache: Whether Kubeflow's cache may answer for the tasks that it may answer for at all.

    Raises:
        ValueError: If the package or a parameter is wrong, or the backend refuses the run.
    """
    package = packages.read(path)
    values = package.parameters(parameters)
    name = package.spec["pipelineInfo"]["name"]
    stamp = datetime.datetime.now(datetime.UTC).strftime("%Y%m%d-%H%M%S")
    try:
        run = client.create_run_from_pipeline_package(
            str(path),
            arguments=values,
            run_name=f"{name}-{stamp}",
            experiment_name=experiment or name,
            namespace=namespace or None,
            service_account=service_account or None,
            # None leaves the cache as the package has it.
            enable_caching=None if cache else False,
        )
    except Exception as error:
        raise ValueError(f"Kubeflow refused the run: {_why(error)}") from None
    return run.run_id


def schedule(
    client: Any,
    path: str | Path,
    *,
    cron: str,
    parameters: Mapping[str, str],
    experiment: str = "",
    service_account: str = "",
    namespace: str = "",
) -> str:
    """Has runs of a package start by themselves, one at a time; returns the schedule's ID.

    A run that should have started while another went on is left out: the next one takes the newest
    span anyway.

    Args:
        client: What `connect` returned.
        path: The package.
        cron: When, in six fields, seconds first.
        parameters: As of `submit`; so are the others.
        experiment: Where the runs are listed.
        service_account: Which they act as.
        namespace: Of the user.

    Raises:
        ValueError: If the package or a parameter is wrong, there is a schedule of the pipeline
            already, or the backend refuses this one.
    """
    package = packages.read(path)
    name, values = package.spec["pipelineInfo"]["name"], package.parameters(parameters)
    if len(cron.split()) != 6:
        raise ValueError(
            f"cron must have six fields, seconds first, such as `0 0 3 * * *`. Received: {cron!r}"
        )
    try:
        listed = client.create_experiment(experiment or name, namespace=namespace or None)
        known = client.list_recurring_runs(experiment_id=listed.experiment_id)
        before = [x for x in known.recurring_runs or () if x.display_name == name]
    except Exception as error:
        raise ValueError(f"Kubeflow refused the schedule: {_why(error)}") from None
    if before:
        raise ValueError(
            f"There is a schedule of {name}; delete it first, or both start runs. "
            f"Received: schedule={before[0].recurring_run_id}"
        )
    try:
        made = client.create_recurring_run(
            listed.experiment_id,
            name,
            cron_expression=cron,
            max_concurrency=1,
            no_catchup=True,
            params=values,
            pipeline_package_path=str(path),
            service_account=service_account or None,
        )
    except Exception as error:
        raise ValueError(f"Kubeflow refused the schedule: {_why(error)}") from None
    return made.recurring_run_id


def status(client: Any, run: str) -> tuple[str, list[tuple[str, str, str]]]:
    """Returns the state of a run, and of each of its tasks the name, state and error.

    Raises:
        ValueError: If there is no such run.
    """
    run_detail = _run(client, run)
    tasks = [
        (task.display_name, task.state or "PENDING", (task.error and task.error.message) or "")
        for task in sorted(_tasks(run_detail), key=lambda task: str(task.start_time))
        if not _INNER.fullmatch(task.display_name or "")
    ]
    return run_detail.state or "PENDING", tasks


def logs(client: Any, run: str, task: str) -> str:
    """Returns what a task of a run has printed.

    Raises:
        ValueError: If there is no such run or task, or its pod and log are gone.
    """
    tasks = _tasks(_run(client, run))
    if not (pods := _pods(tasks, task)):
        raise ValueError(f"The run has no pod of that task. Received: run={run}, task={task}")
    import kfp_server_api

    api, failure = client._run_api.api_client, None
    for pod in pods:
        for path in _LOGS:
            try:
                text, _, _ = api.call_api(
                    path.format(run=run, pod=pod),
                    "GET",
                    header_params={"Accept": "*/*"},
                    response_type="str",
                    auth_settings=["Bearer"],
                )
                return text
            except kfp_server_api.ApiException as error:
                failure = error
    raise ValueError(f"There is no log of {task} any more: {_why(failure)}")


def _pods(tasks: list[Any], name: str) -> list[str]:
    """Returns what the pods of a task may be called, those of its command first.

    Newer releases name a task's pods. Older ones list the nodes of the workflow, each with those
    that follow it, of which the last one is the command's.
    """
    by_id = {item.task_id: item for item in tasks if item.task_id}
    nodes: list[str] = []
    waiting = [item for item in tasks if item.display_name == name]
    while waiting:
        item = waiting.pop(0)
        for own in [child.pod_name for child in item.child_tasks or ()] + [item.pod_name]:
            if own and own not in nodes:
                nodes.append(own)
                waiting += [by_id[own]] if own in by_id else []
    guessed = []
    for node in reversed(nodes):
        workflow, _, number = node.rpartition("-")
        guessed += [pattern.format(workflow=workflow, number=number) for pattern in _PODS]
    commands = [pod for pod in nodes if "-impl-" in pod]
    return [*commands, *guessed, *(pod for pod in nodes if pod not in commands)]


def _run(client: Any, run: str) -> Any:
    try:
        return client.get_run(run)
    except Exception as error:
        raise ValueError(f"There must be such a run. Received: run={run}: {_why(error)}") from None


def _tasks(run: Any) -> list[Any]:
    return list((run.run_details and run.run_details.task_details) or ())


def _why(error: BaseException | None) -> str:
    """Returns what an error of the client's layers says, in one line."""
    status, reason = getattr(error, "status", None), getattr(error, "reason", None)
    if status and reason:
        return f"{status} {reason}"
    return " ".join(str(error).split()) or type(error).__name__
