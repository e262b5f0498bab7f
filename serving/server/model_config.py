"""TF Serving's model config: which models, versions and labels a server serves."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from google.protobuf import text_format
from tensorflow_serving.config import model_server_config_pb2

from sigline.schemas import atomic

_PLATFORM = "tensorflow"
_LABEL = re.compile(r"[A-Za-z0-9_]+")


@dataclass(frozen=True)
class VersionPolicy:
    """Which versions of a folder are served.

    Attributes:
        latest: Number of newest versions to serve; None for another policy.
        specific: The versions to serve. If it is empty and `latest` None, all are served.
    """

    latest: int | None = 1
    specific: tuple[int, ...] = ()

    def select(self, available: Iterable[int]) -> list[int]:
        """Returns the versions to serve, ascending; specific ones even if they do not exist."""
        if self.specific:
            return sorted(self.specific)
        versions = sorted(available)
        return versions if self.latest is None else versions[-self.latest :]


@dataclass(frozen=True)
class ModelConfig:
    """A model that is served.

    Attributes:
        name: Its name in requests.
        base_path: Folder of its version folders.
        policy: Which versions are served.
        labels: Versions by label, such as `canary` and `stable`.
    """

    name: str
    base_path: str
    policy: VersionPolicy = VersionPolicy()
    labels: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.name or not self.base_path:
            raise ValueError(
                "A model must have a name and a base_path. "
                f"Received: name={self.name!r}, base_path={self.base_path!r}"
            )
        for label in self.labels:
            if not _LABEL.fullmatch(label):
                raise ValueError(
                    f"Labels must be made of letters, digits and underscores. Received: {label!r}"
                )


def from_proto(message: model_server_config_pb2.ModelServerConfig) -> tuple[ModelConfig, ...]:
    """Reads a `ModelServerConfig`.

    Raises:
        ValueError: If it has no list of models, or a model of another platform than TensorFlow.
    """
    kind = message.WhichOneof("config")
    if kind != "model_config_list":
        raise ValueError(
            "A model config must have a model_config_list, even an empty one. "
            f"Received: {kind or 'an empty config'}"
        )
    models = []
    for item in message.model_config_list.config:
        if item.model_platform not in ("", _PLATFORM):
            raise ValueError(
                f'model_platform must be "{_PLATFORM}". Received: {item.model_platform!r}, '
                f"model {item.name!r}"
            )
        models.append(
            ModelConfig(
                item.name,
                item.base_path,
                _policy(item.model_version_policy),
                dict(item.version_labels),
            )
        )
    names = [model.name for model in models]
    if len(set(names)) != len(names):
        raise ValueError(f"Models must have different names. Received: {', '.join(names)}")
    return tuple(models)


def _policy(message: Any) -> VersionPolicy:
    kind = message.WhichOneof("policy_choice")
    if kind == "specific":
        if not message.specific.versions:
            raise ValueError(
                "A specific version policy must name a version, as `versions: 1`. Received: none"
            )
        return VersionPolicy(None, tuple(message.specific.versions))
    if kind == "all":
        return VersionPolicy(None)
    return VersionPolicy(message.latest.num_versions or 1 if kind == "latest" else 1)


def to_proto(models: Iterable[ModelConfig]) -> model_server_config_pb2.ModelServerConfig:
    """Returns the `ModelServerConfig` of models; the inverse of `from_proto`."""
    message = model_server_config_pb2.ModelServerConfig()
    message.model_config_list.SetInParent()
    for model in models:
        item = message.model_config_list.config.add(
            name=model.name, base_path=model.base_path, model_platform=_PLATFORM
        )
        policy = item.model_version_policy
        if model.policy.specific:
            policy.specific.versions.extend(model.policy.specific)
        elif model.policy.latest is None:
            policy.all.SetInParent()
        else:
            policy.latest.num_versions = model.policy.latest
        for label, version in sorted(model.labels.items()):
            item.version_labels[label] = version
    return message


def load(path: str | Path) -> tuple[ModelConfig, ...]:
    """Reads the text file that TF Serving takes as `--model_config_file`.

    Raises:
        ValueError: If it is not such a file.
    """
    return from_proto(_parsed(path))


def _parsed(path: str | Path) -> model_server_config_pb2.ModelServerConfig:
    message = model_server_config_pb2.ModelServerConfig()
    try:
        return text_format.Parse(Path(path).read_text(), message)
    except text_format.ParseError as error:
        raise ValueError(
            f"{path} must be a model config of TF Serving in text format. Received: {error}"
        ) from None


def replace(path: str | Path, model: ModelConfig) -> None:
    """Writes a model into a model config file, in place of the one with its name.

    Other models of the file stay as they are. Concurrent writers wait for each other; readers see
    the file from before or after the change.

    Raises:
        ValueError: If the file exists and is not a model config.
    """
    path = Path(path)
    with atomic.locked(path.with_name(f".{path.name}.lock")):
        message = _parsed(path) if path.is_file() else to_proto(())
        from_proto(message)
        _merge(message, model)
        atomic.write_file(path, text_format.MessageToString(message))


def _merge(message: model_server_config_pb2.ModelServerConfig, model: ModelConfig) -> None:
    (entry,) = to_proto([model]).model_config_list.config
    items = message.model_config_list.config
    for item in items:
        if item.name == model.name:
            # Fields that `ModelConfig` does not have, such as those of logging, must stay.
            item.ClearField("model_version_policy")
            item.ClearField("version_labels")
            item.MergeFrom(entry)
            break
    else:
        items.append(entry)


def to_text(models: Iterable[ModelConfig]) -> str:
    """Returns the text of a file that `load` and TF Serving read."""
    return text_format.MessageToString(to_proto(models))
