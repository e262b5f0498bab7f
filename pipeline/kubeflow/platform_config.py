"""What the tasks of a package get, as Kubeflow's specification and Kubernetes say it."""

from typing import Any

from google.protobuf import json_format
from kfp.kubernetes import kubernetes_executor_config_pb2

from sigline.pipeline.kubeflow import packages, records
from sigline.pipeline.kubeflow.settings import Resources, Settings


def resources(request: Resources) -> dict[str, Any]:
    """Returns a `ResourceSpec`, in the fields of newer backends and of older ones."""
    fields: dict[str, Any] = {}
    if request.cpu:
        fields |= {"cpuLimit": request.cores, "cpuRequest": request.cores}
        fields |= {"resourceCpuLimit": request.cpu, "resourceCpuRequest": request.cpu}
    if request.memory:
        fields |= {"memoryLimit": request.gigabytes, "memoryRequest": request.gigabytes}
        fields |= {"resourceMemoryLimit": request.memory, "resourceMemoryRequest": request.memory}
    if request.accelerator:
        fields["accelerator"] = {
            "type": request.accelerator,
            "count": str(request.accelerators),
            "resourceType": request.accelerator,
            "resourceCount": str(request.accelerators),
        }
    return fields


def platform(spec: dict[str, Any], options: Settings) -> dict[str, Any]:
    """Returns what Kubernetes gives the tasks.

    As Kubeflow's SDK writes it, but with names as plain constants: backends before 2.3 refuse the
    fields that its newer releases write, and newer backends read both.
    """
    executors = {}
    for name, component in spec["components"].items():
        if "executorLabel" not in component:
            continue
        message = kubernetes_executor_config_pb2.KubernetesExecutorConfig()
        message.field_path_as_env.add(name=records.RUN_VARIABLE, field_path=packages.RUN_LABEL)
        if options.claim:
            message.pvc_mount.add(
                constant=options.claim,
                mount_path=options.mount,
            )
        for variable, where in options.secrets.items():
            secret, key = where.split("/")
            message.secret_as_env.add(
                secret_name=secret,
                key_to_env=[{"secret_key": key, "env_var": variable}],
            )
        for folder, secret in options.secret_files.items():
            message.secret_as_volume.add(
                secret_name=secret,
                mount_path=folder,
            )
        for secret in options.image_pull_secrets:
            message.image_pull_secret.add(
                secret_name=secret,
            )
        task_resources = options.resources_of(name)
        if task_resources.node_selector:
            message.node_selector.labels.update(task_resources.node_selector)
        for key in task_resources.tolerations:
            message.tolerations.add(key=key, operator="Exists")
        executors[component["executorLabel"]] = json_format.MessageToDict(message)
    return {"deploymentSpec": {"executors": executors}}
