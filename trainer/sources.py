"""Weights wherever a run leaves them: folders of weights, checkpoints, and SavedModels.

The pipeline leaves a SavedModel (`ROOT/serving/VERSION`, or a Model artifact) and checkpoints
(`ROOT/checkpoints/KEY/checkpoints`); `sigline train` leaves both, and weights.
"""

import hashlib
import json
import re
from pathlib import Path

import numpy as np
import tensorflow as tf

from sigline.schemas import digests, signatures, versions
from sigline.schemas.labels import LabelSet
from sigline.trainer import config as trainer_config
from sigline.trainer.config import TrainConfig
from sigline.trainer.models import specs
from sigline.trainer.training import checkpoints
from sigline.trainer.weights import tokenizer_import, weight_folders
from sigline.trainer.weights.model_weights import Weights

# Below a Model artifact of TFX, and below the output of `sigline train`.
_MODEL_FOLDERS = ("Format-Serving", "model")
_SAVED = re.compile(r"variables_to_save/(\d+)/\.ATTRIBUTES/VARIABLE_VALUE")


def load(source: str | Path) -> Weights:
    """Reads weights from what a run leaves.

    Args:
        source: Weights in any format that `weight_folders.load` reads; a SavedModel, a serving
            folder (its newest version) or a Model artifact of TFX; a checkpoint without the endings
            of its files, a folder of checkpoints (its newest one), or the folder of a run that has
            one.

    Raises:
        ValueError: If it is none of these, leaves a choice, or is damaged.
    """
    source = Path(source)
    if source.suffix == ".npz" or (source / weight_folders.PARAMETERS_FILE).is_file():
        return weight_folders.load(source)
    if model := _saved_model(source):
        return read_saved_model(model)
    if source.with_name(f"{source.name}.index").is_file():
        return checkpoints.read(source)
    if (source / "weights" / weight_folders.PARAMETERS_FILE).is_file():
        return weight_folders.load(source / "weights")
    runs = _checkpoint_folders(source)
    if len(runs) > 1:
        listed = ", ".join(str(path) for path in runs)
        raise ValueError(f"The folder holds several runs; name one of them. Received: {listed}")
    if runs:
        paths = list(checkpoints.find(runs[0]).values())
        if not paths:
            raise ValueError(f"The run must have a checkpoint. Received: {source}")
        return checkpoints.read(paths[-1])
    if (source / "config.json").is_file():
        return weight_folders.load(source)
    raise ValueError(
        "Weights must be a folder of weights, a SavedModel of sigline or a folder of its versions, "
        "a checkpoint or a folder of checkpoints, a Hugging Face folder or an .npz of big_vision. "
        f"Received: {source}"
    )


def _saved_model(source: Path) -> Path | None:
    """Returns the SavedModel that a folder is or holds, the newest of versions; None for none."""
    numbered = versions.directories(source)
    newest = [numbered[max(numbered)]] if numbered else []
    for path in (source, *newest, *(source / name for name in _MODEL_FOLDERS)):
        if (path / "saved_model.pb").is_file():
            return path
    return None


def _checkpoint_folders(source: Path) -> list[Path]:
    """Returns the folders of checkpoints that a folder is or holds, one for each run."""
    for paths in ([source], [source / "checkpoints"], sorted(source.glob("*/checkpoints"))):
        runs = [path for path in paths if (path / checkpoints.DESCRIPTION_FOLDER).is_dir()]
        if runs:
            return runs
    return []


def read_saved_model(folder: str | Path) -> Weights:
    """Reads the weights that a SavedModel was exported with.

    Args:
        folder: The SavedModel; a published version is checked against its manifest.

    Raises:
        ValueError: If it is not sigline's, is damaged, or holds no text tower that could be named.
    """
    folder = Path(folder)
    assets = folder / signatures.ASSETS_DIR
    described = assets / signatures.CONFIG_FILE, assets / signatures.METADATA_FILE
    if not all(path.is_file() for path in described):
        raise ValueError(
            f"The SavedModel must be one that sigline exported, with {signatures.ASSETS_DIR}. "
            f"Received: {folder}"
        )
    stored = described[0].read_text()
    config = trainer_config.from_json(stored)
    metadata = json.loads(described[1].read_text())
    words, labels = assets / signatures.VOCABULARY_FILE, assets / signatures.LABELS_FILE
    vocabulary = words.read_bytes() if words.is_file() else None
    named = LabelSet.from_json(labels.read_text()) if labels.is_file() else None
    parameters = _parameters(folder, config)
    content = {
        "weights": {
            name: [str(x.dtype), x.shape, hashlib.sha256(x.tobytes()).hexdigest()]
            for name, x in parameters.items()
        },
        "vocabulary": None if vocabulary is None else hashlib.sha256(vocabulary).hexdigest(),
        "labels": named.to_json() if named else None,
    }
    received = digests.json_digest(content | {"config": config.digest()})
    known = {digests.json_digest(content | {"config": x}) for x in config.earlier_digests(stored)}
    if metadata.get("model_digest") not in known | {received}:
        raise ValueError(
            "The SavedModel is damaged or was changed: its parameters, configuration, vocabulary "
            f"and labels must have the digest that it was exported with. Received: {folder}, "
            f"digest={received[:12]}, exported with {str(metadata.get('model_digest'))[:12]}"
        )
    return Weights(
        config,
        parameters,
        vocabulary,
        metadata.get("initial_digest"),
        tokenizer_import.kept_files(assets / signatures.TOKENIZER_FOLDER),
        # Without a head they are prompts of zero-shot classes, and no part of the weights.
        labels=named if config.image.classes is not None else None,
    )


def _parameters(folder: Path, config: TrainConfig) -> dict[str, np.ndarray]:
    """Returns the parameters of a SavedModel by name; it numbers them in the order of the names."""
    names = list(specs.parameter_specs(config))
    try:
        reader = tf.train.load_checkpoint(str(folder / "variables" / "variables"))
        keys = {
            int(match[1]): key
            for key in reader.get_variable_to_shape_map()
            if (match := _SAVED.fullmatch(key))
        }
        if sorted(keys) != list(range(len(names))):
            raise ValueError(
                f"The SavedModel must hold {len(names)} parameters, as its configuration says. "
                f"Received: {folder}, {len(keys)} parameters"
            )
        return {name: np.asarray(reader.get_tensor(keys[i])) for i, name in enumerate(names)}
    except (tf.errors.OpError, IndexError) as error:
        raise ValueError(f"The SavedModel {folder} is damaged: {error}") from error
