"""What a server knows of its models: their versions, labels, and the folder that comes next."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

import grpc

from sigline.serving.server import version_files
from sigline.serving.server.failures import RequestFailed
from sigline.serving.server.model_config import ModelConfig
from sigline.serving.server.served_version import Served, State, VersionStatus


@dataclass
class Version:
    """A version that has been seen in a folder.

    Attributes:
        state: Where it is between START and END.
        served: The loaded version while it is available.
        error: Why it could not be loaded.
        note: That its files were overwritten; see `VersionStatus`.
        files: Its files when it was loaded, or looked at last.
        failures: How often it could not be loaded.
        again_at: Time of `time.monotonic` before which it is not tried again.
    """

    state: State = State.START
    served: Served | None = None
    error: str = ""
    note: str = ""
    files: tuple = ()
    failures: int = 0
    again_at: float = 0.0

    def status(self, number: int) -> VersionStatus:
        """Returns what a client may know of it."""
        return VersionStatus(number, self.state, self.error, self.note)


@dataclass
class Model:
    """A model of the config, in one folder.

    Attributes:
        successor: The model in the folder that the config names now, until it takes over.
        is_leaving: Whether the config names it no more. It serves until those that it names do.
        problem: What was logged last of its folder.
    """

    config: ModelConfig
    versions: dict[int, Version] = field(default_factory=dict)
    # Labels as requests see them: one moves when the version that it is to name serves.
    labels: dict[str, int] = field(default_factory=dict)
    successor: "Model | None" = None
    is_leaving: bool = False
    problem: str = ""

    @property
    def target(self) -> "Model":
        """The model in the folder that the config names."""
        return self.successor or self

    def available(self) -> list[int]:
        """Returns the versions that serve, ascending."""
        return sorted([n for n, v in self.versions.items() if v.state is State.AVAILABLE])

    def can_replace(self, old: "Model") -> bool:
        """Returns whether requests to another folder's versions find what they need here."""
        labels = {label for label in self.config.labels if label in old.labels}
        return bool(self.available()) and labels <= self.labels.keys()


class Change:
    """A model config that is to be taken up, and what became of it."""

    def __init__(self, models: Sequence[ModelConfig]):
        """Begins with a config whose turn is to come."""
        self.models = tuple(models)
        self.failure: RequestFailed | None = None
        self.done = threading.Event()

    def end(self, code: grpc.StatusCode = grpc.StatusCode.OK, message: str = "") -> None:
        """Says what became of it, once; without a message it was taken up."""
        if not self.done.is_set():
            self.failure = RequestFailed(code, message) if message else None
            self.done.set()


def kept(model: Model | None, config: ModelConfig) -> Model:
    """Returns a model with a config; in the same folder it is the one that is known."""
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
    """Returns what is wrong with a folder without versions."""
    return (
        "base_path must hold a version directory such as 1/saved_model.pb. "
        f"Received: base_path={config.base_path} of model {config.name}"
    )
