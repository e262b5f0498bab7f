"""Starts and follows runs on a cluster with Kubeflow Pipelines, by its own client.

Needs the extra `kfp`.
"""

import datetime
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sigline.pipeline.kubeflow import packages

# Environment variable with a token, which must not stand in a command line.
TOKEN_VARIABLE = "SIGLINE_KUBEFLOW_TOKEN"
# Of releases up to 2, and of those after.
_LOGS = (
    "/apis/v1alpha1/runs/{run}/nodes/{pod}/log",
    "/apis/v2beta1/runs/{run}/nodes/{pod}/log",
)
_POD_PART = "executor"


@dataclass(frozen=True)
class Access:
    """How the API of Kubeflow Pipelines is reached.

    Attributes:
        host: Its address, such as `http://localhost:8080`; empty for `$KF_PIPELINES_ENDPOINT`, or
            the one of the cluster that this runs in.
        namespace: Of the user, where there are several; empty for none.
        ca_certificate: File of who signed the certificate of the host; empty for the usual ones.
        cookie: File with a session's cookie, as Dex and other login pages give it; empty for none.
        in_cluster: Whether the token is that of the pod's service account.
    """

    host: str = ""
    namespace: str = ""
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
    given = {
        "host": access.host or None,
        "namespace": access.namespace or "kubeflow",
        "ssl_ca_cert": access.ca_certificate or None,
        "existing_token": os.environ.get(TOKEN_VARIABLE) or None,
        "cookies": Path(access.cookie).read_text().strip() if access.cookie else None,
    }
    if access.in_cluster:
        given["credentials"] = set_volume_credentials.ServiceAccountTokenVolumeCredentials()
    try:
        client = kfp.Client(**given)
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
) -> str:
    """Starts a run of a package and returns its ID.

    Args:
        client: What `connect` returned.
        path: The package.
        parameters: Parameters of the run by name, as text.
        experiment: Where the run is listed; the name of the pipeline if empty.
        service_account: Which it acts as; empty for the backend's default.
        namespace: Of the user; empty for none.

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
        ValueError: If the package or a parameter is wrong, or the backend refuses the schedule.
    """
    package = packages.read(path)
    name = package.spec["pipelineInfo"]["name"]
    try:
        listed = client.create_experiment(experiment or name, namespace=namespace or None)
        made = client.create_recurring_run(
            listed.experiment_id,
            name,
            cron_expression=cron,
            max_concurrency=1,
            no_catchup=True,
            params=package.parameters(parameters),
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
    found = _run(client, run)
    tasks = [
        (task.display_name, task.state or "PENDING", (task.error and task.error.message) or "")
        for task in sorted(_tasks(found), key=lambda task: str(task.start_time))
    ]
    return found.state or "PENDING", tasks


def logs(client: Any, run: str, task: str) -> str:
    """Returns what a task of a run has printed.

    Raises:
        ValueError: If there is no such run or task, or its pod and log are gone.
    """
    found = [item for item in _tasks(_run(client, run)) if item.display_name == task]
    pods = [
        child.pod_name for item in found for child in item.child_tasks or () if child.pod_name
    ] + [item.pod_name for item in found if item.pod_name]
    if not pods:
        raise ValueError(f"The run has no pod of that task. Received: run={run}, task={task}")
    import kfp_server_api

    api = client._run_api.api_client
    # The pod that ran the command, not the one that prepared it.
    pod = next((name for name in pods if _POD_PART in name), pods[0])
    failure = None
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
