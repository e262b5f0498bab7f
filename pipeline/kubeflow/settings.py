"""What a cluster gives the tasks of a pipeline: images, resources, volumes, secrets, retries."""

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sigline.schemas import strict

DEFAULT = "default"
_UNITS = {"Gi": 2**30, "Mi": 2**20, "G": 10**9, "M": 10**6}
_CPU = re.compile(r"\d+(\.\d+)?|\d+m")
_MEMORY = re.compile(rf"(\d+)({'|'.join(_UNITS)})")


@dataclass(frozen=True)
class Resources:
    """What one task gets.

    Attributes:
        cpu: Cores, such as `"2"` or `"500m"`; empty for no request.
        memory: Such as `8Gi`; empty for no request.
        accelerator: Kubernetes' name of an accelerator, such as `google.com/tpu` or
            `nvidia.com/gpu`; on Vertex AI its type, such as `NVIDIA_L4`. Empty for none.
        accelerators: How many.
        node_selector: Labels of the nodes that it may run on, such as
            `cloud.google.com/gke-tpu-topology: 2x4`.
        tolerations: Keys of taints that it tolerates.
        image: Image of its own; empty for the one of all.
    """

    cpu: str = ""
    memory: str = ""
    accelerator: str = ""
    accelerators: int = 0
    node_selector: dict[str, str] = field(default_factory=dict)
    tolerations: tuple[str, ...] = ()
    image: str = ""

    def __post_init__(self) -> None:
        if bool(self.accelerator) != (self.accelerators > 0):
            raise ValueError(
                "accelerator and accelerators must be given together. Received: "
                f"accelerator={self.accelerator!r}, accelerators={self.accelerators}"
            )
        if self.cpu and not _CPU.fullmatch(self.cpu):
            raise ValueError(f"cpu must be cores, such as 2 or 500m. Received: cpu={self.cpu!r}")
        if self.memory and not _MEMORY.fullmatch(self.memory):
            raise ValueError(
                f"memory must be a whole number of {', '.join(_UNITS)}. "
                f"Received: memory={self.memory!r}"
            )

    @property
    def cores(self) -> float:
        """The cores as a number; 0 for no request."""
        return float(self.cpu[:-1]) / 1000 if self.cpu.endswith("m") else float(self.cpu or 0)

    @property
    def gigabytes(self) -> float:
        """The memory in units of 10^9 bytes; 0 for no request."""
        match = _MEMORY.fullmatch(self.memory)
        return int(match[1]) * _UNITS[match[2]] / 1e9 if match else 0.0


@dataclass(frozen=True)
class Settings:
    """The `kubeflow` section of an environment.

    Attributes:
        image: Container image with sigline in it.
        claim: PersistentVolumeClaim, readable and writable by many, mounted at `mount` in every
            task; the environment's `root` lies in it. Empty where folders of the image lead to
            storage by themselves, as `/gcs` does on Vertex AI.
        mount: Where the claim is mounted.
        pipeline_root: Where the backend puts artifacts: `gs://`, `s3://` or `minio://`; empty for
            its own default. With a claim nothing but small files gets there.
        image_pull_secrets: Kubernetes secrets for the registry of the image.
        secrets: `SECRET/KEY` by the name of the environment variable that shows it to every task.
        secret_files: Names of secrets by the folder that shows their keys as files.
        retries: How often a failed task starts again. Training goes on from its checkpoint.
        backoff_seconds: Time before the first retry; it doubles with each.
        resources: `Resources` by the name of the task; `default` for all others.
    """

    image: str
    claim: str = ""
    mount: str = "/mnt/sigline"
    pipeline_root: str = ""
    image_pull_secrets: tuple[str, ...] = ()
    secrets: dict[str, str] = field(default_factory=dict)
    secret_files: dict[str, str] = field(default_factory=dict)
    retries: int = 2
    backoff_seconds: int = 60
    resources: dict[str, Resources] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.image:
            raise ValueError("kubeflow.image must name a container image. Received: image=''")
        if self.retries < 0 or self.backoff_seconds < 0:
            raise ValueError(
                "kubeflow.retries and kubeflow.backoff_seconds must not be negative. Received: "
                f"retries={self.retries}, backoff_seconds={self.backoff_seconds}"
            )
        for name, value in self.secrets.items():
            if value.count("/") != 1 or not all(value.split("/")):
                raise ValueError(
                    "kubeflow.secrets must be SECRET/KEY by the variable's name. "
                    f"Received: {name}: {value}"
                )

    def resources_of(self, task: str) -> Resources:
        """Returns what a task gets; what its own entry leaves out is as in `default`."""
        default = self.resources.get(DEFAULT, Resources())
        own = self.resources.get(task)
        if own is None:
            return default
        unset = Resources()
        changed = {
            item.name: getattr(own, item.name)
            for item in dataclasses.fields(Resources)
            if getattr(own, item.name) != getattr(unset, item.name)
        }
        return dataclasses.replace(default, **changed)


def read(section: Mapping[str, Any] | None) -> Settings:
    """Returns the settings that a section of an environment asks for.

    Raises:
        ValueError: If there is no section, or a key or a value in it is wrong.
    """
    if section is None:
        raise ValueError(
            "The environment has no `kubeflow` section. Add one, with at least `image`; "
            "docs/kubeflow.md says what it may hold. Received: kubeflow=None"
        )
    return strict.build(Settings, section, "kubeflow.", number_as_text=True)
