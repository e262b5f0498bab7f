"""Weights as files: our own folders, those of Hugging Face, and `.npz` of big_vision.

Our own folder holds `sigline.json` (the configuration), `parameters.safetensors` and, if they are
known, `vocabulary.model`, `lineage.json` (what the parameters started from) and `labels.json` (the
names of the head's classes). Nothing is ever unpickled.
"""

import dataclasses
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from sigline.schemas.labels import LabelSet
from sigline.trainer import config as trainer_config
from sigline.trainer.weights import (
    big_vision,
    big_vision_layouts,
    hugging_face_folders,
    links,
    tensor_files,
    tokenizer_import,
)
from sigline.trainer.weights.model_weights import Weights

CONFIG_FILE = "sigline.json"
PARAMETERS_FILE = "parameters.safetensors"
VOCABULARY_FILE = "vocabulary.model"
LINEAGE_FILE = "lineage.json"
LABELS_FILE = "labels.json"
TOKENIZER_FOLDER = "tokenizer"
_INITIAL_DIGEST = "initial_digest"


def load(
    source: str | Path, *, drop: Iterable[str] = (), assignments: Iterable[str] = ()
) -> Weights:
    """Reads weights, whatever their format.

    Args:
        source: A folder of ours or of Hugging Face, or an `.npz` of big_vision.
        drop: Regular expressions of whole names in a foreign checkpoint that are not wanted.
        assignments: `KEY=VALUE` of what a foreign checkpoint does not tell, such as
            `text.pool=gap`.

    Raises:
        ValueError: If the format is none of these, or the checkpoint does not hold exactly what its
            model needs; the message lists what is missing and what is left over.
    """
    source = Path(source)
    if source.suffix == ".npz" and source.is_file():
        return _load_big_vision(source, list(drop), assignments)
    if (source / PARAMETERS_FILE).is_file():
        if assignments := list(assignments):
            raise ValueError(
                f"Weights of sigline's own tell all themselves. Received: --set {assignments[0]}"
            )
        parameters = tensor_files.read(source / PARAMETERS_FILE)
        return dataclasses.replace(load_description(source), parameters=parameters)
    if (source / hugging_face_folders.CONFIG_FILE).is_file():
        return hugging_face_folders.load(source, drop, assignments)
    raise ValueError(
        f"Weights must be a folder with {PARAMETERS_FILE} (ours), "
        f"{hugging_face_folders.CONFIG_FILE} (Hugging Face) or an .npz of big_vision. "
        f"Received: {source}"
    )


def load_vocabulary(source: str | Path) -> bytes | None:
    """Reads the vocabulary alone of what `load` reads; None if there is none.

    Raises:
        ValueError: As `load`, of the vocabulary.
    """
    source = Path(source)
    if (source / CONFIG_FILE).is_file():
        return load_description(source).vocabulary
    return tokenizer_import.read(source)[0] if source.is_dir() else None


def save(folder: str | Path, weights: Weights, *, notes: Mapping[str, bytes] | None = None) -> None:
    """Writes our own folder; it appears only when it is whole.

    Args:
        folder: Where it goes.
        weights: What is in it.
        notes: Other files, by name, that are kept beside the weights.

    Raises:
        ValueError: If the folder is there already.
    """
    with tensor_files.new_folder(folder) as scratch:
        for name, content in (notes or {}).items():
            (scratch / name).write_bytes(content)
        _describe(scratch, weights)
        tensor_files.write(scratch / PARAMETERS_FILE, weights.parameters)


def save_description(folder: str | Path, weights: Weights) -> None:
    """Writes a folder with all that belongs to parameters, but not these; see `save`."""
    with tensor_files.new_folder(folder) as scratch:
        _describe(scratch, weights)


def _describe(folder: Path, weights: Weights) -> None:
    (folder / CONFIG_FILE).write_text(weights.config.to_json() + "\n")
    if weights.vocabulary is not None:
        (folder / VOCABULARY_FILE).write_bytes(weights.vocabulary)
    for name, content in weights.tokenizer.items():
        (folder / TOKENIZER_FOLDER).mkdir(exist_ok=True)
        (folder / TOKENIZER_FOLDER / name).write_bytes(content)
    if weights.initial_digest is not None:
        lineage = {_INITIAL_DIGEST: weights.initial_digest}
        (folder / LINEAGE_FILE).write_text(json.dumps(lineage, indent=1) + "\n")
    if weights.labels is not None:
        (folder / LABELS_FILE).write_text(weights.labels.to_json() + "\n")


def load_description(folder: str | Path) -> Weights:
    """Reads what `save_description` wrote; there are no parameters in it."""
    folder = Path(folder)
    vocabulary, lineage = folder / VOCABULARY_FILE, folder / LINEAGE_FILE
    labels = folder / LABELS_FILE
    return Weights(
        config=trainer_config.from_json((folder / CONFIG_FILE).read_text()),
        parameters={},
        vocabulary=vocabulary.read_bytes() if vocabulary.is_file() else None,
        initial_digest=_initial_digest(lineage) if lineage.is_file() else None,
        tokenizer=tokenizer_import.kept_files(folder / TOKENIZER_FOLDER),
        labels=LabelSet.from_json(labels.read_text()) if labels.is_file() else None,
    )


def _initial_digest(path: Path) -> str:
    lineage = json.loads(path.read_text())
    digest = lineage.get(_INITIAL_DIGEST) if isinstance(lineage, dict) else None
    if not isinstance(digest, str):
        raise ValueError(f"{path} must hold a text {_INITIAL_DIGEST}. Received: {lineage}")
    return digest


def _load_big_vision(path: Path, drop: list[str], assignments: Iterable[str]) -> Weights:
    with np.load(path, allow_pickle=False) as file:
        tensors = big_vision_layouts.normalized({name: file[name] for name in file.files})
    kept = links.dropped(tensors, drop)
    settings, assumed = big_vision.settings(kept, assignments)
    tensor_links = big_vision.links(settings, text=big_vision.has_text(kept), scalars="t" in kept)
    parameters = links.read(tensor_links, kept)
    if "t" in kept and settings.pair_loss == "softmax":
        parameters["bias"] = np.zeros((), np.float32)
    return Weights(config=settings, parameters=parameters, assumed=tuple(assumed))
