"""Exports a trained model as the SavedModel of the model contract.

The exported object tracks raw variables only. Keras objects in the trackable graph load in Python
but not in TF Serving's C++ loader: a Keras variable exports itself as a new variable, which restore
then fills instead of the one that the signatures read. Nothing is `jit_compile`d, which the
stock server refuses.
"""

import hashlib
import json
from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any

import tensorflow as tf

import sigline
from sigline.schemas import atomic, digests, signatures, strict
from sigline.schemas.labels import LabelSet
from sigline.trainer.config import ImageTowerConfig, TrainConfig
from sigline.trainer.export import capabilities, seldom_called
from sigline.trainer.export.served import Served
from sigline.trainer.inputs import preprocess
from sigline.trainer.models import two_tower
from sigline.trainer.models.two_tower import TwoTower, named_variables

# What an image tower alone can do.
_OF_TOWERS = (signatures.EMBED_IMAGE, signatures.EMBED_IMAGE_SAFE)
# Fields that always enter the digest of an image tower. Fields that came later enter it only where
# they differ from their defaults, so that earlier embeddings stay valid.
_ALWAYS = frozenset(
    [
        "size",
        "patch",
        "width",
        "depth",
        "mlp_dim",
        "num_heads",
        "pool",
        "positions",
        "num_registers",
        "embedding_norm",
        "patch_bias",
        "projection",
        "projection_bias",
        "resize",
        "interpolation",
        "antialias",
        "mean",
        "std",
        "block",
    ]
)
_ALWAYS_OF_BLOCKS = frozenset(
    ["activation", "norm_epsilon", "norm_bias", "qkv_bias", "mlp_bias", "qk_norm", "parallel"]
)
# Neither dropout, which acts in training alone, nor the head, which reads the embedding, changes an
# embedding.
_NO_ANSWER = frozenset({"token_dropout", "classes", "head_bias_init"})
_NO_ANSWER_OF_BLOCKS = frozenset({"dropout", "stochastic_depth"})


def model_digest(
    model: TwoTower, config: TrainConfig, vocabulary: bytes | None, labels: LabelSet | None
) -> str:
    """Returns the digest of all that decides the answers: weights, config, vocabulary, labels."""
    return digests.json_digest(
        {
            "weights": _weight_digests(model, ""),
            "config": config.digest(),
            "vocabulary": hashlib.sha256(vocabulary).hexdigest() if vocabulary else None,
            "labels": labels.to_json() if labels else None,
        }
    )


def image_digest(model: TwoTower) -> str:
    """Returns the digest of all that decides embeddings of images: weights and configuration."""
    weights = _weight_digests(model, "image/")
    tower = {name: value for name, value in weights.items() if not name.startswith("image/head/")}
    return digests.json_digest([tower, answering(model.config.image)])


def answering(config: ImageTowerConfig) -> dict[str, Any]:
    """Returns what of an image tower's configuration decides embeddings, as its digest has it."""
    fields = _answering(config, _ALWAYS, _NO_ANSWER)
    fields["block"] = _answering(config.block, _ALWAYS_OF_BLOCKS, _NO_ANSWER_OF_BLOCKS)
    return fields


def _answering(config: Any, always: Set[str], never: Set[str]) -> dict[str, Any]:
    """Returns the fields of a configuration that decide answers, as they stand in a digest."""
    different = strict.changed(config)
    fields = strict.to_dict(config)
    names = (always | different.keys()) - never
    return {name: value for name, value in fields.items() if name in names}


def _weight_digests(model: TwoTower, prefix: str) -> dict[str, Any]:
    weight_digests = {}
    for name, variable in named_variables(model).items():
        if name.startswith(prefix):
            value = variable.numpy()
            digest = hashlib.sha256(value.tobytes()).hexdigest()
            weight_digests[name] = [str(value.dtype), value.shape, digest]
    return weight_digests


def export(
    directory: str | Path,
    model: TwoTower,
    *,
    config: TrainConfig,
    vocabulary: bytes | None,
    labels: LabelSet | None = None,
    provenance: dict[str, str] | None = None,
    tokenizer: Mapping[str, bytes] | None = None,
) -> dict[str, Any]:
    """Writes the SavedModel; the directory appears whole or not at all.

    Args:
        directory: Where the SavedModel goes; must not exist.
        model: The trained model.
        config: The configuration it was trained with.
        vocabulary: The serialized SentencePiece model it was trained with; None for a model of
            images alone.
        labels: Classes and prompts for `classify`; without them a head has numbers for names.
        provenance: What else to record, such as digests of data and code.
        tokenizer: Files of the vocabulary in the form that it was imported in, by name.

    Returns:
        The metadata that is written to `assets.extra/sigline.json`.
    """
    directory = _new(directory)
    model = two_tower.for_serving(model)
    metadata = {"model_digest": model_digest(model, config, vocabulary, labels)}
    assets = {}
    reader = None
    if config.text is not None:
        if vocabulary is None:
            raise ValueError("A model with a text tower needs a vocabulary. Received: none")
        reader = preprocess.Tokenizer(vocabulary, config.text)
        metadata |= {
            "vocabulary_digest": hashlib.sha256(vocabulary).hexdigest(),
            "text_length": config.text.length,
            "temperature": float(tf.exp(model.log_temperature.value)),
            "bias": float(model.bias.value),
            "pair_loss": config.pair_loss,
        }
        assets[signatures.VOCABULARY_FILE] = vocabulary
        for name, content in (tokenizer or {}).items():
            assets[f"{signatures.TOKENIZER_FOLDER}/{name}"] = content
    if config.image.classes is not None:
        metadata |= {"classes": config.image.classes, "class_loss": config.class_loss}
    if config.image.grids:
        metadata |= {
            signatures.GRIDS: list(config.image.grids),
            signatures.DEFAULT_GRID: config.image.grid,
        }
    served = Served(model, config, tokenizer=reader, labels=labels)
    metadata = _metadata(served, model, config) | metadata | (provenance or {})
    if labels is not None:
        assets[signatures.LABELS_FILE] = labels.to_json().encode()
    _save(directory, served, capabilities.signatures_of(served), metadata, config, assets)
    return metadata


def export_image_tower(
    directory: str | Path, model: TwoTower, *, config: TrainConfig
) -> dict[str, Any]:
    """Writes a SavedModel of the image tower alone; the directory appears whole or not at all.

    Args:
        directory: Where the SavedModel goes; must not exist.
        model: The model.
        config: Its configuration.

    Returns:
        The metadata that is written to `assets.extra/sigline.json`.
    """
    directory = _new(directory)
    model = two_tower.for_serving(model)
    served = Served(model, config)
    metadata = _metadata(served, model, config)
    parts = {name: capabilities.CAPABILITIES[name](served) for name in _OF_TOWERS}
    _save(directory, served, parts, metadata, config, {})
    return metadata


def _new(directory: str | Path) -> Path:
    directory = Path(directory)
    if directory.exists():
        raise ValueError(f"directory must not exist yet. Received: directory={directory}")
    return directory


def _metadata(served: Served, model: TwoTower, config: TrainConfig) -> dict[str, Any]:
    return {
        "sigline_version": sigline.__version__,
        "config_digest": config.digest(),
        "image_digest": image_digest(model),
        "recipe": config.name,
        "image_size": config.image.size,
        "embedding_dim": config.image.output_dim,
        "num_parameters": sum(int(v.shape.num_elements()) for v in served.variables_to_save),
    }


def _save(
    directory: Path,
    served: Served,
    parts: dict[str, Any],
    metadata: dict[str, Any],
    config: TrainConfig,
    assets: dict[str, bytes],
) -> None:
    assets = assets | {
        signatures.METADATA_FILE: json.dumps(metadata, indent=1, sort_keys=True).encode(),
        signatures.CONFIG_FILE: config.to_json().encode(),
    }
    with atomic.new_folder(directory) as scratch:
        tf.saved_model.save(
            served,
            str(scratch),
            signatures={signatures.SERVING_DEFAULT: parts[signatures.EMBED_IMAGE]} | parts,
            options=tf.saved_model.SaveOptions(function_aliases=served.encoders()),
        )
        seldom_called.mark(scratch)
        folder = scratch / signatures.ASSETS_DIR
        folder.mkdir(exist_ok=True)
        for name, content in assets.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(content)
