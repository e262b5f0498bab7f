"""What the tasks of a package get, as Kubeflow's specification and Kubernetes say it."""

from typing import Any

from google.protobuf import json_format
from kfp.kubernetes import kubernetes_executor_config_pb2

from sigline.pipeline.kubeflow import packages, records
from sigline.pipeline.kubeflow.settings import Resources, Settings


def resources(asked: Resources) -> dict[str, Any]:
    """Returns a `ResourceSpec`, in the fields of newer backends and of older ones."""
    fields: dict[str, Any] = {}
    if asked.cpu:
        fields |= {"cpuLimit": asked.cores, "cpuRequest": asked.cores}
        fields |= {"resourceCpuLimit": asked.cpu, "resourceCpuRequest": asked.cpu}
    if asked.memory:
        fields |= {"memoryLimit": asked.gigabytes, "memoryRequest": asked.gigabytes}
        fields |= {"resourceMemoryLimit": asked.memory, "resourceMemoryRequest": asked.memory}
    if asked.accelerator:
        fields["accelerator"] = {
            "type": asked.accelerator,
            "count": str(asked.accelerators),
            "resourceType": asked.accelerator,
            "resourceCount": str(asked.accelerators),
        }
    return fields


def platform(spec: dict[str, Any], asked: Settings) -> dict[str, Any]:
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
        if asked.claim:
            message.pvc_mount.add(
                constant=asked.claim,
                mount_path=asked.mount,
            )
        for variable, where in asked.secrets.items():
            secret, key = where.split("/")
            message.secret_as_env.add(
                secret_name=secret,
                key_to_env=[{"secret_key": key, "env_var": variable}],
            )
        for folder, secret in asked.secret_files.items():
            message.secret_as_volume.add(
                secret_name=secret,
                mount_path=folder,
            )
        for secret in asked.image_pull_secrets:
            message.image_pull_secret.add(
                secret_name=secret,
            )
        task_resources = asked.resources_of(name)
        if task_resources.node_selector:
            message.node_selector.labels.update(task_resources.node_selector)
        for key in task_resources.tolerations:
            message.tolerations.add(key=key, operator="Exists")
        executors[component["executorLabel"]] = json_format.MessageToDict(message)
    return {"deploymentSpec": {"executors": executors}}
