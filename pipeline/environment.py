"""What operators own: paths, data, limits and the recipe to run, read strictly from YAML."""

import contextlib
import dataclasses
import json
import os
import sqlite3
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from sigline.pipeline import beam_arguments
from sigline.schemas import ownership, strict, suggestions, versions

VARIABLE = "SIGLINE_ENVIRONMENT"
# Stands for the number of a span in `input_base`.
SPAN = "{SPAN}"
# Who checks that a model serves.
SIGLINE, TFX = "sigline", "tfx"
_PATHS = ("root", "input_base", "serving_dir", "index_dir", "schema", "weights", "signing_key")
PACKAGED = Path(__file__).parent / "environments"


@dataclass(frozen=True)
class Environment:
    """Where and on what a pipeline runs.

    Attributes:
        pipeline_name: Name of the pipeline.
        root: Folder for everything that a run writes, unless a path below says otherwise.
        input_base: Folder with pairs in a format that ingest reads; optionally, `classes.json`.
            With `{SPAN}` in it, as in TFX, and perhaps `{VERSION}`, the newest of such folders.
        span: The span to take instead of the newest.
        window: Number of accepted spans, the newest ones, that are trained on.
        recipe: Name of the recipe.
        overrides: `a.b=value` assignments to the recipe.
        weights: Folder of weights that the recipe's pretrained parameters start from; empty for
            none.
        embed_images: Whether a recipe that freezes its image tower has it embed the images once,
            before training, instead of at every step.
        teachers: Folders of weights of the recipe's teachers, by name.
        trainer_python: Interpreter that trains, of an environment with the trainer alone, which is
            how a TPU is reached; empty for the one that runs the pipeline.
        serving_dir: Folder that published versions go to; `ROOT/serving` if empty.
        serving_memory_mib: Most memory that a server with the model may hold, else it is not
            published; None for no limit.
        serving_latency_ms: Most milliseconds that a server with the model may take for one image
            or one text, at its best of several, else it is not published; None for no limit.
        infra: Who checks that the model serves: `sigline`, or `tfx` for TFX's InfraValidator,
            which starts TF Serving on the Kubernetes cluster that the pipeline runs on.
        signing_key: PEM file of the key that signs published versions (P-256 or Ed25519); empty
            for none.
        keep_versions: How many of them stay, the newest ones; None for all.
        schema: A schema of your own in place of the packaged one, as TFDV's text.
        ingest: Fields of `IngestConfig`.
        data_gate: Fields of `DataGate`.
        evaluation: What is measured besides the eval split with the model's own classes: `labels`,
            files of further prompts of the same classes by name, such as a language; `probes`,
            whether probes learn from the training split; `corrupt`, a list of KIND@SEVERITY.
        index: Fields of the index's `IndexConfig`, if the examples are to be made searchable;
            None for no index.
        index_dir: Folder that versions of the index go to; `ROOT/index` if empty.
        gate: What a model must reach, where it differs from the recipe's `Gate`.
        kubeflow: What a cluster gives the tasks, see `kubeflow.settings.Settings`; None where the
            pipeline does not run on one.
        beam_args: Arguments of the Beam runner; the local one where none is named, and what
            `beam_arguments` adds.
    """

    pipeline_name: str
    root: str
    input_base: str
    recipe: str
    span: int | None = None
    window: int = 1
    overrides: tuple[str, ...] = ()
    weights: str = ""
    embed_images: bool = False
    teachers: dict[str, str] = field(default_factory=dict)
    trainer_python: str = ""
    serving_dir: str = ""
    serving_memory_mib: int | None = None
    serving_latency_ms: int | None = None
    infra: str = SIGLINE
    signing_key: str = ""
    keep_versions: int | None = None
    schema: str = ""
    ingest: dict[str, Any] = field(default_factory=dict)
    data_gate: dict[str, Any] = field(default_factory=dict)
    evaluation: dict[str, Any] = field(default_factory=dict)
    index: dict[str, Any] | None = None
    index_dir: str = ""
    gate: dict[str, Any] = field(default_factory=dict)
    kubeflow: dict[str, Any] | None = None
    beam_args: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.serving_dir:
            object.__setattr__(self, "serving_dir", os.path.join(self.root, "serving"))
        if not self.index_dir:
            object.__setattr__(self, "index_dir", os.path.join(self.root, "index"))
        object.__setattr__(self, "beam_args", beam_arguments.complete(self.beam_args))
        for name in _PATHS:
            object.__setattr__(self, name, _absolute(getattr(self, name)))
        spans = SPAN in self.input_base
        if self.window < 1 or (self.window > 1 and not spans):
            raise ValueError(
                f"window must be at least 1, and more than that needs {SPAN} in input_base. "
                f"Received: window={self.window}, input_base={self.input_base}"
            )
        if self.span is not None and (not spans or self.span < 0):
            raise ValueError(
                f"span must be at least 0 and needs {SPAN} in input_base. "
                f"Received: span={self.span}, input_base={self.input_base}"
            )
        if self.infra not in (SIGLINE, TFX):
            raise ValueError(f"infra must be {SIGLINE} or {TFX}. Received: infra={self.infra!r}")
        if self.infra == TFX and (self.serving_memory_mib or self.serving_latency_ms):
            raise ValueError(
                "serving_memory_mib and serving_latency_ms need infra: sigline; TFX's "
                "InfraValidator measures neither. "
                f"Received: infra={self.infra}, serving_memory_mib={self.serving_memory_mib}, "
                f"serving_latency_ms={self.serving_latency_ms}"
            )
        for name in ("keep_versions", "serving_memory_mib", "serving_latency_ms"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1. Received: {name}={value}")
        if self.window > 1 and self.embed_images:
            raise ValueError(
                f"embed_images embeds one span; it needs window: 1. Received: window={self.window}"
            )
        if not all(name and path for name, path in self.teachers.items()):
            raise ValueError(f"teachers must be paths by name. Received: teachers={self.teachers}")
        teachers = {name: _absolute(path) for name, path in self.teachers.items()}
        object.__setattr__(self, "teachers", teachers)

    @property
    def spans(self) -> str:
        """The pattern that the data is a span of; empty without spans."""
        return self.input_base if SPAN in self.input_base else ""

    @property
    def pipeline_root(self) -> str:
        """Folder of the artifacts."""
        return os.path.join(self.root, "artifacts")

    @property
    def metadata_path(self) -> str:
        """The MLMD database."""
        return os.path.join(self.root, "metadata.sqlite")

    @property
    def checkpoint_root(self) -> str:
        """Folder of all runs' checkpoints."""
        return os.path.join(self.root, "checkpoints")

    @property
    def embedding_cache(self) -> str:
        """Folder of what models make of eval splits."""
        return os.path.join(self.root, "embeddings")


def _absolute(path: str) -> str:
    """Returns a path from the root; what is in an object store is left as it is."""
    if not path or versions.is_remote(path):
        return path
    return os.path.abspath(os.path.expanduser(os.path.expandvars(path)))


def load(path: str | Path) -> Environment:
    """Reads an environment from YAML; relative paths count from the working directory.

    `NAME` without a slash or suffix means `pipeline/environments/NAME.yaml`.

    Raises:
        ValueError: If the file or a key is missing, a key is unknown, or a type is wrong.
    """
    name = str(path)
    path = PACKAGED / f"{name}.yaml" if "/" not in name and "." not in name else Path(path)
    if not path.is_file():
        packaged = ", ".join(sorted(item.stem for item in PACKAGED.glob("*.yaml")))
        raise ValueError(
            f"environment must be a YAML file or one of: {packaged}. Received: environment={name}"
        )
    data = _mapping(path)
    try:
        return strict.build(Environment, data)
    except strict.UnknownKey as error:
        raise ValueError(f"{path}: {error.problem}{_meant(error.key)}") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _mapping(path: Path) -> dict[str, Any]:
    try:
        data = yaml.safe_load(path.read_text()) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        problem = " ".join(str(error).split())
        raise ValueError(f"{path} must be a YAML file: {problem}") from None
    if not isinstance(data, dict) or not all(isinstance(key, str) for key in data):
        raise ValueError(
            f"{path} must hold keys and values, such as `recipe: siglip_small`. "
            f"Received: {data!r:.80}"
        )
    return data


def _meant(name: str) -> str:
    """Returns what an unknown key may be: one of the environment, or one of its recipe."""
    from sigline.trainer import config

    known, keys = list(strict.fields(Environment)), strict.keys(config.TrainConfig)
    nearest = suggestions.nearest(name, [*known, *keys])
    if nearest is None:
        return ""
    if nearest in known:
        return f" Did you mean {nearest}?"
    return f" Did you mean {nearest} of the recipe? It is set by overrides: [{nearest}=VALUE]."


def check_root(environment: Environment) -> None:
    """Refuses a root where files of someone else are in the way of what a run writes.

    Raises:
        ValueError: If the root is a file, or its database is not one of TFX.
    """
    if os.path.isfile(environment.root):
        raise ValueError(f"root must be a folder. Received: root={environment.root}")
    store = Path(environment.metadata_path)
    if not store.exists() or (store.is_file() and not store.stat().st_size):
        return
    try:
        with contextlib.closing(sqlite3.connect(f"{store.as_uri()}?mode=ro", uri=True)) as database:
            query = "SELECT count(*) FROM sqlite_master WHERE name = 'MLMDEnv'"
            own = database.execute(query).fetchone()[0] == 1
    except sqlite3.Error:
        own = False
    if not own:
        raise ownership.not_own(store, "sigline run", "`root`")


def to_json(environment: Environment) -> str:
    """Returns an environment as JSON text."""
    return json.dumps(dataclasses.asdict(environment), sort_keys=True)


def from_json(text: str) -> Environment:
    """Returns the environment that `to_json` wrote."""
    return strict.build(Environment, json.loads(text))


def active() -> Environment:
    """Returns the environment that `$SIGLINE_ENVIRONMENT` names, else the packaged `local`."""
    return load(os.environ.get(VARIABLE, "local"))
