"""A model as the server tracks it: its versions, labels, and the folder that replaces its own."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

import grpc

from sigline.serving.server import version_files
from sigline.serving.server.failures import RequestFailed
from sigline.serving.server.model_config import ModelConfig
from sigline.serving.server.served_version import ServedVersion, State, VersionStatus


@dataclass
class Version:
    """A version that the model's folder holds or held.

    Attributes:
        state: Its state, from START to END.
        served: The loaded version while it is available.
        error: Why it could not be loaded.
        note: That its files were overwritten; see `VersionStatus`.
        files: Snapshot of its files when it was loaded or last checked.
        failures: How many attempts to load these files have failed.
        retry_at: Time of `time.monotonic` before which loading is not tried again.
    """

    state: State = State.START
    served: ServedVersion | None = None
    error: str = ""
    note: str = ""
    files: tuple = ()
    failures: int = 0
    retry_at: float = 0.0

    def status(self, number: int) -> VersionStatus:
        """Returns its status as clients see it."""
        return VersionStatus(number, self.state, self.error, self.note)


@dataclass
class Model:
    """A model of the config, in one folder.

    Attributes:
        successor: The model in the folder that the config names now, until it takes over.
        is_removed: Whether the config no longer names it. It serves until the models that the
            config names do.
        problem: The problem with its folder that was logged last.
    """

    config: ModelConfig
    versions: dict[int, Version] = field(default_factory=dict)
    # The labels that requests can use. A label moves only once its new version is available.
    labels: dict[str, int] = field(default_factory=dict)
    successor: "Model | None" = None
    is_removed: bool = False
    problem: str = ""

    @property
    def target(self) -> "Model":
        """The model in the folder that the config names."""
        return self.successor or self

    def available(self) -> list[int]:
        """Returns the versions that serve, ascending."""
        return sorted([n for n, v in self.versions.items() if v.state is State.AVAILABLE])

    def can_replace(self, old: "Model") -> bool:
        """Returns whether it has an available version, and every label that `old` answers to."""
        labels = {label for label in self.config.labels if label in old.labels}
        return bool(self.available()) and labels <= self.labels.keys()


class ConfigChange:
    """A model config that is waiting to be applied, and then its outcome."""

    def __init__(self, models: Sequence[ModelConfig]):
        """Begins with a config that has not been applied."""
        self.models = tuple(models)
        self.failure: RequestFailed | None = None
        self.done = threading.Event()

    def end(self, code: grpc.StatusCode = grpc.StatusCode.OK, message: str = "") -> None:
        """Sets the outcome; only the first call counts. Without a message it was applied."""
        if not self.done.is_set():
            self.failure = RequestFailed(code, message) if message else None
            self.done.set()


def with_config(model: Model | None, config: ModelConfig) -> Model:
    """Returns the model with a new config, or a new model if the config names another folder."""
    if model is None or not version_files.is_same_folder(model.config.base_path, config.base_path):
        return Model(config)
    model.config = config
    return model


def why_nothing_serves(model: Model) -> str:
    """Returns the reasons for which no version of a model serves."""
    reasons = [
        f"version {number}: {version.error}"
        for number, version in sorted(model.versions.items())
        if version.error
    ]
    if reasons:
        return f"No version of {model.config.name} can be served: " + "; ".join(reasons)
    return why_empty(model.config)


def why_empty(config: ModelConfig) -> str:
    """Returns the error message for a model whose folder holds no versions."""
    return (
        "base_path must hold a version directory such as 1/saved_model.pb. "
        f"Received: base_path={config.base_path} of model {config.name}"
    )
