"""What an environment asks for, read and checked without TensorFlow, Beam or TFX.

Importing those takes half a minute, after which nobody should hear of a wrong key.
"""

import json
import os
import posixpath
from dataclasses import dataclass, field
from pathlib import Path

from sigline.components.evaluate.options import Options, corruption
from sigline.components.index.options import IndexConfig
from sigline.components.ingest import reasons, rules
from sigline.components.ingest.options import IngestConfig, config_from_json
from sigline.components.validate import gate as data_gate
from sigline.pipeline.environment import Environment
from sigline.schemas import record, strict, versions
from sigline.schemas.gate import Gate
from sigline.schemas.labels import LabelSet
from sigline.trainer import config as trainer_config
from sigline.trainer.config import TrainConfig
from sigline.trainer.config.objectives import check_tree


@dataclass(frozen=True)
class Settings:
    """The sections of an environment.

    Attributes:
        ingest: How the pairs are read.
        limits: What the data must satisfy.
        config: The recipe, with its overrides.
        gate: What a model must reach.
        evaluation: What is measured.
        index: What the index is to be; None for no index.
    """

    ingest: IngestConfig
    limits: data_gate.DataGate
    config: TrainConfig
    gate: Gate
    evaluation: Options
    index: IndexConfig | None


def settings(environment: Environment) -> Settings:
    """Reads the sections of an environment.

    Raises:
        ValueError: If a key is unknown, a value is wrong, or the recipe has no gate.
    """
    config = trainer_config.override(
        trainer_config.load_recipe(environment.recipe), environment.overrides
    )
    limits = strict.build(data_gate.DataGate, environment.data_gate, "data_gate.")
    check_limits(limits, "data_gate")
    check_limits(limits.warning, "data_gate.warn")
    return Settings(
        ingest=config_from_json(json.dumps(environment.ingest, sort_keys=True)),
        limits=limits,
        config=config,
        gate=trainer_config.load_gate(environment.recipe).changed(environment.gate),
        evaluation=evaluation(environment),
        index=index(environment),
    )


def check(environment: Environment) -> None:
    """Refuses an environment whose sections are wrong, or that names what is not there.

    Raises:
        ValueError: With the key and the value.
    """
    config = settings(environment).config
    if not environment.spans and not versions.is_remote(environment.input_base):
        base = Path(environment.input_base)
        if not base.is_dir() or not any(base.iterdir()):
            raise ValueError(
                "input_base must be a folder with pairs in a format that ingest reads. "
                f"Received: input_base={base}"
            )
        check_classes(config, base)
    check_folders(environment)
    paths = {name: getattr(environment, name) for name in ("schema", "weights", "signing_key")}
    paths |= {f"teachers.{name}": path for name, path in environment.teachers.items()}
    for name, path in paths.items():
        if path and not versions.is_remote(path) and not os.path.exists(path):
            raise ValueError(f"{name} must be a path that is there. Received: {name}={path}")
    check_weights(config, environment.weights)
    check_teachers(config, environment.teachers)


def reads_texts(environment: Environment) -> bool:
    """Returns whether the recipe of an environment has a text tower, and needs a vocabulary.

    A recipe of another package, which may be in the image of a cluster alone, is taken to have one.
    """
    try:
        recipe = trainer_config.load_recipe(environment.recipe)
    except ValueError:
        if trainer_config.is_of_other_package(environment.recipe):
            return True
        raise
    return trainer_config.override(recipe, environment.overrides).text is not None


def check_folders(environment: Environment) -> None:
    """Refuses to write below the input, where the next run would read it."""
    inside = posixpath.join(environment.input_base, "")
    written = (environment.pipeline_root, environment.checkpoint_root, environment.embedding_cache)
    for name, paths in (
        ("root", written),
        ("serving_dir", (environment.serving_dir,)),
        ("index_dir", (environment.index_dir,)),
    ):
        if any(posixpath.join(path, "").startswith(inside) for path in paths):
            raise ValueError(
                f"{name} must not lie in input_base: what a run writes would be read by the next "
                f"one. Received: {name}={getattr(environment, name)}, "
                f"input_base={environment.input_base}"
            )


def check_classes(config: TrainConfig, base: Path) -> None:
    """Refuses an input without the tree of classes that the recipe learns."""
    path = base / record.CLASSES_FILE
    labels = None
    if path.is_file():
        try:
            labels = LabelSet.from_json(path.read_text())
        except ValueError as error:
            raise ValueError(f"{path} must be a label set: {error}") from None
    check_tree(config.objectives, labels)


def check_weights(config: TrainConfig, weights: str) -> None:
    """Refuses weights that the recipe does not start from, and a recipe without those it needs."""
    if bool(weights) != bool(config.pretrained):
        raise ValueError(
            "The environment's `weights` and the recipe's `pretrained` must be given together. "
            f"Received: weights={weights!r}, pretrained={list(config.pretrained)}"
        )


def check_teachers(config: TrainConfig, teachers: dict[str, str]) -> None:
    """Refuses other teachers than those that the recipe names."""
    if set(teachers) != set(config.teachers):
        raise ValueError(
            "The environment's `teachers` must be those of the recipe. Received: "
            f"{', '.join(sorted(teachers)) or 'none'}; the recipe's: "
            f"{', '.join(config.teachers) or 'none'}"
        )


def index(environment: Environment) -> IndexConfig | None:
    """Returns what the index is to be; None for no index."""
    if environment.index is None:
        return None
    config = strict.build(IndexConfig, environment.index, "index.", text_as_list=True)
    if unknown := sorted(set(config.splits) - set(record.SPLITS)):
        raise ValueError(
            f"index.splits must name some of {', '.join(record.SPLITS)}. Received: {unknown}"
        )
    return config


@dataclass(frozen=True)
class _Evaluation:
    """The section `evaluation`: files of prompts by name, whether to probe, and `KIND@SEVERITY`."""

    labels: dict[str, str] = field(default_factory=dict)
    probes: bool = False
    corrupt: tuple[str, ...] = ()


def evaluation(environment: Environment) -> Options:
    """Returns what is measured; files of prompts are read here, so that the cache knows them."""
    section = strict.build(_Evaluation, environment.evaluation, "evaluation.")
    labels = {}
    for name, path in section.labels.items():
        try:
            labels[name] = LabelSet.from_json(Path(path).read_text())
        except (OSError, ValueError, TypeError) as error:
            raise ValueError(f"evaluation.labels must be label sets. {name}: {error}") from None
    corruptions = tuple(corruption(text, "evaluation.corrupt") for text in section.corrupt)
    return Options(labels, section.probes, corruptions)


def check_limits(limits: data_gate.DataGate, name: str) -> None:
    """Refuses limits of what there is not, before anything runs."""
    columns = (record.KEY, record.TEXT, record.LANGUAGE, record.SOURCE, record.WIDTH, record.HEIGHT)
    known = {
        "max_shares": reasons.ALL,
        "max_change": (*reasons.ALL, data_gate.REJECTED),
        "max_shift": rules.PROFILED,
        "max_drift": (*columns, record.LABEL, record.TAG),
        "max_skew": (*columns, record.LABEL, record.TAG),
    }
    for limit, names in known.items():
        if unknown := sorted(set(getattr(limits, limit)) - set(names)):
            raise ValueError(
                f"{name}.{limit} must name some of {', '.join(names)}. Received: {unknown}"
            )
