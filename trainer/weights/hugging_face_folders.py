"""Folders of weights as Hugging Face's `transformers` reads and writes them."""

import dataclasses
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sigline.trainer.config import TrainConfig
from sigline.trainer.weights import (
    choices,
    hugging_face,
    hugging_face_vit,
    links,
    processor,
    processor_files,
    tensor_files,
    tokenizer_files,
    tokenizer_import,
)
from sigline.trainer.weights.model_weights import Weights

CONFIG_FILE = "config.json"
_WEIGHTS_FILE = "model.safetensors"
_INDEX_FILE = "model.safetensors.index.json"
# Tokens that `transformers`' zero-shot pipeline fills texts to, with a model of SigLIP's.
_PIPELINE_LENGTH = 64
# Buffers that old checkpoints hold beside the parameters.
_BUFFERS = r".*\.embeddings\.position_ids"


def load(folder: Path, drop: Iterable[str], assignments: Iterable[str]) -> Weights:
    """Reads a folder of Hugging Face; arguments and errors are those of `weight_folders.load`."""
    described = json.loads((folder / CONFIG_FILE).read_text())
    if described.get("model_type") in hugging_face_vit.KINDS:
        return _load_vit(folder, described, drop, assignments)
    settings = hugging_face.settings(described)
    chosen = choices.parsed(assignments, (*choices.PIXELS, *choices.TEXTS))
    settings, assumed = _with_pixels(folder, described["model_type"], settings, chosen)
    tensors = _tensors(folder)
    vocabulary, texts = tokenizer_import.read(folder)
    if settings.text is not None:
        settings = dataclasses.replace(settings, text=dataclasses.replace(settings.text, **texts))
    settings = choices.applied(settings, chosen)
    parameters = links.read(hugging_face.links(settings), tensors, drop=[*drop, _BUFFERS])
    _check_positions(folder, settings, parameters)
    return Weights(
        config=settings,
        parameters=parameters,
        vocabulary=vocabulary,
        tokenizer=tokenizer_import.kept(folder),
        assumed=tuple(assumed),
    )


def _load_vit(
    folder: Path, described: dict[str, Any], drop: Iterable[str], assignments: Iterable[str]
) -> Weights:
    """Reads a ViT or a DeiT; see `load`."""
    chosen = choices.parsed(assignments, choices.PIXELS)
    kept = links.dropped(_tensors(folder), drop)
    tensors = links.dropped(kept, [hugging_face_vit.POOLER])
    left_out = sorted(set(kept) - set(tensors))
    heads = hugging_face_vit.read_heads(described, tensors)
    settings = hugging_face_vit.settings(described, heads)
    settings, assumed = _with_pixels(folder, described["model_type"], settings, chosen)
    settings = choices.applied(settings, chosen)
    tensor_links = hugging_face_vit.links(settings, tensors)
    hugging_face_vit.check_shapes(settings, tensors, tensor_links)
    parameters = links.read(tensor_links, tensors)
    _check_positions(folder, settings, parameters)
    return Weights(
        config=settings,
        parameters=parameters,
        assumed=tuple(assumed),
        left_out=tuple(f"{name}, part of a pooler that no head reads" for name in left_out),
        labels=hugging_face_vit.labels(described, heads),
    )


def _with_pixels(
    folder: Path, kind: str, settings: TrainConfig, chosen: Mapping[str, str]
) -> tuple[TrainConfig, list[str]]:
    """Returns the configuration with the pixels of a folder's processor, and what is assumed."""
    # Where the user states the pixels, the processor is not read: it may be one that cannot be
    # followed.
    if any(key in chosen for key in choices.PIXELS):
        return settings, []
    pixels, assumed = processor.pixels(folder, kind, settings.image.size)
    image = dataclasses.replace(settings.image, **pixels)
    return dataclasses.replace(settings, image=image), assumed


def _check_positions(
    folder: Path, settings: TrainConfig, parameters: Mapping[str, np.ndarray]
) -> None:
    patches = settings.image.grid**2
    num_positions = parameters["image/positions"].shape[1]
    if num_positions != patches:
        raise ValueError(
            f"{folder / CONFIG_FILE} must be that of the weights. Received: positions of "
            f"{num_positions} patches, image_size and patch_size of {patches}"
        )


def _tensors(folder: Path) -> dict[str, np.ndarray]:
    tensors = {}
    for path in _tensor_files(folder):
        tensors |= tensor_files.read(path)
    return tensors


def _tensor_files(folder: Path) -> list[Path]:
    index = folder / _INDEX_FILE
    if index.is_file():
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        # The index is input like any other: no file outside of the folder is opened.
        if any(Path(name).name != name for name in names):
            raise ValueError(f"{index} must name files of its own folder. Received: {names}")
        return [folder / name for name in names]
    if not (folder / _WEIGHTS_FILE).is_file():
        raise ValueError(
            f"There is no {_WEIGHTS_FILE} in {folder}. Pickled weights (.bin, .pt) are never "
            "read; convert them to safetensors with the project that wrote them."
        )
    return [folder / _WEIGHTS_FILE]


def save(folder: str | Path, weights: Weights) -> list[str]:
    """Writes a folder that `transformers` reads: model, tokenizer and image processor.

    Returns:
        What does there otherwise than here, in sentences.

    Raises:
        ValueError: If `transformers` has no such model, or the folder is there already.
    """
    config = weights.config
    # Towers that were imported without a text tower may be set beside one.
    has_text = any(name.startswith("text/") for name in weights.parameters)
    if has_text:
        described, tensor_links = hugging_face.config_json(config), hugging_face.links(config)
    else:
        described = hugging_face_vit.config_json(config, weights.labels)
        tensor_links = hugging_face_vit.links(config)
    tensors = links.write(tensor_links, weights.parameters)
    kind = described["model_type"]
    processor = processor_files.described(config.image, kind)
    written = {processor_files.FILE: (json.dumps(processor, indent=1) + "\n").encode()}
    if has_text and weights.vocabulary is not None:
        text, clip = config.text_tower, kind == "clip"
        written |= tokenizer_files.files(weights.vocabulary, text, weights.tokenizer, clip=clip)
        described["text_config"] |= tokenizer_files.ids(weights.vocabulary, text)
    with tensor_files.new_folder(folder) as scratch:
        (scratch / CONFIG_FILE).write_text(json.dumps(described, indent=1) + "\n")
        tensor_files.write(scratch / _WEIGHTS_FILE, tensors, metadata={"format": "pt"})
        for name, content in written.items():
            (scratch / name).write_bytes(content)
    notes = _text_differences(weights, clip=kind == "clip") if has_text else []
    notes += [] if has_text else hugging_face_vit.notes(config)
    if not config.image.antialias:
        notes.append(
            "Pillow, by which transformers resizes, always antialiases, and this model was trained "
            "without: pixels differ where a picture is made smaller"
        )
    return notes


def _text_differences(weights: Weights, *, clip: bool) -> list[str]:
    """Returns what `transformers` does otherwise with texts, in sentences."""
    notes = []
    if weights.vocabulary is None:
        notes.append(
            "the weights have no vocabulary, so no tokenizer was written; add it by `sigline "
            "weights import --vocabulary`"
        )
    length = weights.config.text_tower.length
    if not clip and length != _PIPELINE_LENGTH:
        notes.append(
            f"transformers' zero-shot pipeline fills texts for SigLIP to {_PIPELINE_LENGTH} tokens "
            f"whatever the tokenizer says, and this model takes {length}. Call AutoProcessor and "
            'AutoModel with padding="max_length" and truncation=True'
        )
    return notes
