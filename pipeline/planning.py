"""What a run is to do, worked out before it: the data that it takes, its settings, its digests.

TFX's cache knows neither the code of a component nor the bytes behind a path. Both enter as digests
in parameters, so a change of either is never answered from a stale result.
"""

import dataclasses
import importlib.metadata
import importlib.util
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sigline.quiet

sigline.quiet.import_tfx()

from google.protobuf import text_format
from tensorflow_metadata.proto.v0 import schema_pb2

from sigline.components.ingest import input_files
from sigline.components.ingest.options import IngestConfig
from sigline.components.ingest.sources import SourceConfig
from sigline.pipeline import checks, spans
from sigline.pipeline.environment import Environment
from sigline.schemas import artifacts, digests, record, signing
from sigline.trainer.config import TrainConfig
from sigline.trainer.training import start
from sigline.trainer.weights import inheritance, tokenizer_json, weight_folders
from sigline.trainer.weights.model_weights import Weights

PACKAGE = Path(__file__).resolve().parent.parent
# What the pages of reports share.
_REPORT_PAGES = tuple(
    f"components/shared/{name}"
    for name in ("report_pages.py", "page.html.jinja", "parts.html.jinja")
)
_LIBRARIES = (
    "apache-beam",
    "faiss-cpu",
    "keras",
    "numpy",
    "pillow",
    "py3langid",
    "pyarrow",
    "sentencepiece",
    "simplejpeg",
    "simplemma",
    "tensorflow",
    "tensorflow-serving-api",
    "tensorflow-text",
)


@dataclass(frozen=True)
class Plan:
    """The parameters of the components that must be worked out; on a cluster a task does it.

    Attributes:
        input_base: Folder of the pairs.
        span: Their span; 0 without spans.
        version: Its version; 0 without versions.
        input_digest: Digest of the bytes that ingest reads.
        schema_digest: Digest of the schema's file.
        config: The `TrainConfig`, as JSON.
        text_tower: Its text tower, as JSON; empty for a model of images alone.
        tower_config: The config of the frozen image tower, as JSON; empty if images are not
            embedded before training.
        weights_digest: Digest of the weights that training starts from; empty for none.
        vocabulary_digest: Digest of the vocabulary that these weights bring; empty where a
            vocabulary is trained.
        teacher_digests: Digests of the teachers' weights by name, as JSON.
        gate: The recipe's `Gate`, as JSON.
        evaluation: What is measured, as JSON.
        ingest_code: Digest of the code of ingest; so are the following of other components.
    """

    input_base: str
    span: int
    version: int
    input_digest: str
    schema_digest: str
    config: str
    text_tower: str
    tower_config: str
    weights_digest: str
    vocabulary_digest: str
    teacher_digests: str
    gate: str
    evaluation: str
    ingest_code: str
    validate_code: str
    vocabulary_code: str
    tower_code: str
    embed_code: str
    train_code: str
    evaluate_code: str
    serve_code: str
    publish_code: str
    index_code: str


def plan(environment: Environment, *, thresholds: Any = None) -> Plan:
    """Works out what a run of an environment is to do.

    Args:
        environment: What to run.
        thresholds: What differs from the environment's gate, as `Gate.changed` reads it.

    Raises:
        ValueError: If the environment, the recipe or an override is wrong.
    """
    if environment.signing_key:
        # Fail before anything runs where the key cannot sign.
        signing.Signer(environment.signing_key)
    settings = checks.settings(environment)
    ingest_settings = settings.ingest
    weights = _weights(environment, settings.config)
    config = _inherited(settings.config, weights, environment)
    gate = settings.gate.changed({} if thresholds is None else thresholds)
    data = spans.resolve(environment.input_base, environment.span)
    return Plan(
        input_base=data.base,
        span=data.span,
        version=data.version,
        input_digest=input_digest(data.base, ingest_settings),
        schema_digest=digests.file_digest(schema_file(environment)),
        config=config.to_json(),
        text_tower=_text_tower(config),
        tower_config=_tower_config(environment, config),
        weights_digest="" if weights is None else weights.digest(),
        vocabulary_digest=_vocabulary_digest(config, weights),
        teacher_digests=_teacher_digests(environment, config),
        gate=gate.to_json(),
        evaluation=settings.evaluation.to_json(),
        ingest_code=_code_digest(
            "schemas",
            "components/ingest",
            "components/shared/files.py",
            "components/shared/outputs.py",
            "components/shared/upright.py",
        ),
        validate_code=_code_digest("schemas", "components/validate", *_REPORT_PAGES),
        vocabulary_code=_code_digest("schemas", "components/vocabulary", "trainer"),
        tower_code=_code_digest("schemas", "trainer", "components/export_tower"),
        embed_code=_component_digest("embed"),
        train_code=_code_digest("schemas", "trainer", "components/train"),
        evaluate_code=_component_digest("evaluate", *_REPORT_PAGES),
        serve_code=_code_digest(
            "schemas", "serving", "components/check_serving", *_command_files()
        ),
        publish_code=_code_digest("schemas", "components/publish"),
        index_code=_component_digest("index"),
    )


def _text_tower(config: TrainConfig) -> str:
    if config.text is None:
        return ""
    return json.dumps(dataclasses.asdict(config.text), sort_keys=True)


def _tower_config(environment: Environment, config: TrainConfig) -> str:
    if not environment.embed_images:
        return ""
    if not environment.weights:
        raise ValueError(
            "The environment's `embed_images` needs `weights` with the frozen image tower. "
            "Received: weights=''"
        )
    start.check_embeddable(config)
    # Only what decides embeddings, so that another rate or other steps embed nothing again.
    return start.tower_config(config).to_json()


def _component_digest(name: str, *more: str) -> str:
    """Returns the digest of the code of a component that runs a SavedModel."""
    return _code_digest(
        "schemas",
        f"components/{name}",
        "components/shared/files.py",
        "components/shared/served_model.py",
        "components/shared/upright.py",
        *more,
    )


def schema_file(environment: Environment) -> Path:
    """Returns the curated schema, the environment's own if it names one."""
    if not environment.schema:
        return artifacts.SCHEMA
    path = Path(environment.schema)
    try:
        text_format.Parse(path.read_text(), schema_pb2.Schema())
    except (OSError, UnicodeDecodeError, text_format.ParseError) as error:
        raise ValueError(
            f"schema must be a schema in TFDV's text form. Received: {path}: {error}"
        ) from None
    return path


def input_digest(base: str, config: IngestConfig) -> str:
    """Returns the digest of the bytes that ingest reads, and of scorers that are not sigline's.

    The same pairs have the same digest wherever their folder lies.
    """
    paths = input_files.input_files(base, config.source)
    for other in config.eval_sets:
        try:
            paths = paths + input_files.input_files(other, SourceConfig())
        except ValueError as error:
            raise ValueError(f"ingest.eval_sets, {other}: {error}") from None
    for other in config.earlier:
        manifest = Path(other) / record.MANIFEST_FILE
        if not manifest.is_file():
            raise ValueError(f"ingest.earlier must be folders of examples. Received: {other}")
        # The manifest holds the digests of the shards.
        paths = [*paths, str(manifest)]
    named = (config.filters.vocabulary, config.tags.entries)
    paths = [*paths, *(path for path in named if path)]
    for name in config.filters.scorers:
        module_spec = importlib.util.find_spec(name.partition(":")[0])
        if module_spec is not None and module_spec.origin and Path(module_spec.origin).is_file():
            paths = [*paths, module_spec.origin]
    files = {path.removeprefix(f"{base}/"): _file_digest(path) for path in paths}
    classes = Path(base) / record.CLASSES_FILE
    if classes.is_file():
        files[record.CLASSES_FILE] = digests.file_digest(classes)
    # Folders without files count among the classes, and change the labels of those behind them.
    folders = {name for path in files for name in path.split("/")}
    if empty := sorted(set(input_files.class_names(base, config.source)) - folders):
        files["class folders without files"] = digests.json_digest(empty)
    return digests.json_digest(files)


def _file_digest(path: str) -> str:
    """Returns the digest of a file of the input; empty for one that may not be read."""
    try:
        return digests.file_digest(path)
    except PermissionError:
        # Ingest rejects the pair of a file that cannot be read.
        return ""


def _command_files() -> tuple[str, ...]:
    """Returns where `sigline serve` lies below the package: a wheel has it at the top."""
    folder = "sigline/" if (PACKAGE / "sigline").is_dir() else ""
    names = ("cli.py", "commands/serve.py", "commands/dataclass_options.py")
    return tuple(f"{folder}{name}" for name in names)


def _code_digest(*names: str) -> str:
    """Returns the digest of source files and of the versions of what they compute with."""
    versions = {name: _version(name) for name in _LIBRARIES}
    return digests.json_digest([digests.source_digest(PACKAGE, names), versions])


def _version(name: str) -> str:
    """Returns the version of a library; empty for one that nobody asked for."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _weights(environment: Environment, config: TrainConfig) -> Weights | None:
    """Returns the weights that training starts from; None if it starts from none."""
    checks.check_weights(config, environment.weights)
    return weight_folders.load(environment.weights) if environment.weights else None


def _inherited(
    config: TrainConfig, weights: Weights | None, environment: Environment
) -> TrainConfig:
    """Returns the configuration with what the weights decide, and says what that changed."""
    inherited = inheritance.inherit(config, weights, environment.overrides)
    for line in inheritance.report(config, inherited, weights):
        print(line, file=sys.stderr)
    return inherited


def _vocabulary_digest(config: TrainConfig, weights: Weights | None) -> str:
    """Returns the digest of the vocabulary that weights bring; empty if one is to be trained."""
    if not inheritance.brings_vocabulary(config, weights):
        return ""
    brought = inheritance.vocabulary(config, weights, None)
    assert brought is not None
    return tokenizer_json.digest(brought)


def _teacher_digests(environment: Environment, config: TrainConfig) -> str:
    """Returns the digests of the teachers' weights by name, as JSON."""
    checks.check_teachers(config, environment.teachers)
    teacher_digests = {
        name: weight_folders.load(path).digest() for name, path in environment.teachers.items()
    }
    return json.dumps(teacher_digests, sort_keys=True)
