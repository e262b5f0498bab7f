"""Weights as files: our own folders, those of Hugging Face, and `.npz` of big_vision.

Our own folder holds `sigline.json` (the configuration), `parameters.safetensors` and, if they are
known, `vocabulary.model` and `lineage.json` (what the parameters started from). Nothing is ever
unpickled.
"""

import contextlib
import dataclasses
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from sigline.schemas import atomic, digests
from sigline.trainer import config as trainer_config
from sigline.trainer.config import TrainConfig
from sigline.trainer.models import positions
from sigline.trainer.weights import (
    big_vision,
    big_vision_layouts,
    choices,
    hugging_face,
    links,
    processor,
    processor_files,
    tokenizer_files,
    tokenizer_import,
)

CONFIG_FILE = "sigline.json"
PARAMETERS_FILE = "parameters.safetensors"
VOCABULARY_FILE = "vocabulary.model"
LINEAGE_FILE = "lineage.json"
TOKENIZER_FOLDER = "tokenizer"
_INITIAL_DIGEST = "initial_digest"

# Names of files in folders of Hugging Face.
_THEIR_CONFIG = "config.json"
_THEIR_WEIGHTS = "model.safetensors"
_THEIR_INDEX = "model.safetensors.index.json"
# Tokens that `transformers`' zero-shot pipeline fills texts to, with a model of SigLIP's.
_PIPELINE_LENGTH = 64
# Buffers that old checkpoints hold beside the parameters.
_THEIR_BUFFERS = r".*\.embeddings\.position_ids"

_TYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U8": np.uint8,
    "BOOL": np.bool_,
}


@dataclass(frozen=True)
class Weights:
    """Parameters and what they belong to.

    Attributes:
        config: A configuration whose model has these parameters.
        parameters: Values by the names of `two_tower.named_parameters`, float32; those of a tower
            that the source did not have are left out.
        vocabulary: A serialized SentencePiece model, if the source had one.
        initial_digest: Digest of the parameters that the training began with, if that is known.
        tokenizer: Files of a foreign tokenizer that is the vocabulary in another form, by name, as
            they were imported; they decide no answers.
        assumed: What a foreign source did not tell, and was assumed of it.
    """

    config: TrainConfig
    parameters: Mapping[str, np.ndarray]
    vocabulary: bytes | None = None
    initial_digest: str | None = None
    tokenizer: Mapping[str, bytes] = dataclasses.field(default_factory=dict)
    assumed: tuple[str, ...] = ()

    def digest(self) -> str:
        """Returns the digest of all that decides answers."""
        values = _digests(self.parameters)
        words = hashlib.sha256(self.vocabulary or b"").hexdigest()
        return digests.json_digest([self.config.digest(), values, words])

    def origin(self) -> str:
        """Returns the digest of what the training began with.

        Weights that came from elsewhere are their own origin, as they are that of a training that
        begins with them.
        """
        return self.initial_digest or parameters_digest(self.parameters)

    def ancestors(self) -> frozenset[str]:
        """Returns the digests of what kin may have begun with: of these, and of their origin."""
        return frozenset({parameters_digest(self.parameters), self.origin()})


def parameters_digest(parameters: Mapping[str, np.ndarray]) -> str:
    """Returns the digest of parameters by name."""
    return digests.json_digest(_digests(parameters))


def _digests(parameters: Mapping[str, np.ndarray]) -> dict[str, list]:
    return {
        name: [value.shape, hashlib.sha256(value.tobytes()).hexdigest()]
        for name, value in parameters.items()
    }


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
        parameters = _read(source / PARAMETERS_FILE)
        return dataclasses.replace(load_description(source), parameters=parameters)
    if (source / _THEIR_CONFIG).is_file():
        return _load_hugging_face(source, [*drop, _THEIR_BUFFERS], assignments)
    raise ValueError(
        f"Weights must be a folder with {PARAMETERS_FILE} (ours), {_THEIR_CONFIG} (Hugging Face) "
        f"or an .npz of big_vision. Received: {source}"
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
    with _new_folder(folder) as scratch:
        for name, content in (notes or {}).items():
            (scratch / name).write_bytes(content)
        _describe(scratch, weights)
        _write(scratch / PARAMETERS_FILE, weights.parameters)


def save_description(folder: str | Path, weights: Weights) -> None:
    """Writes a folder with all that belongs to parameters, but not these; see `save`."""
    with _new_folder(folder) as scratch:
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


def load_description(folder: str | Path) -> Weights:
    """Reads what `save_description` wrote; there are no parameters in it."""
    folder = Path(folder)
    vocabulary, lineage = folder / VOCABULARY_FILE, folder / LINEAGE_FILE
    return Weights(
        config=trainer_config.from_json((folder / CONFIG_FILE).read_text()),
        parameters={},
        vocabulary=vocabulary.read_bytes() if vocabulary.is_file() else None,
        initial_digest=_initial_digest(lineage) if lineage.is_file() else None,
        tokenizer=tokenizer_import.kept_files(folder / TOKENIZER_FOLDER),
    )


def _initial_digest(path: Path) -> str:
    lineage = json.loads(path.read_text())
    digest = lineage.get(_INITIAL_DIGEST) if isinstance(lineage, dict) else None
    if not isinstance(digest, str):
        raise ValueError(f"{path} must hold a text {_INITIAL_DIGEST}. Received: {lineage}")
    return digest


def save_hugging_face(folder: str | Path, weights: Weights) -> list[str]:
    """Writes a folder that `transformers` reads: model, tokenizer and image processor.

    Returns:
        What does there otherwise than here, in sentences.

    Raises:
        ValueError: If `transformers` has no such model, or the folder is there already.
    """
    described = hugging_face.config_json(weights.config)
    tensors = links.write(hugging_face.links(weights.config), weights.parameters)
    clip, text = described["model_type"] == "clip", weights.config.text_tower
    processor = processor_files.described(weights.config.image, clip=clip)
    written = {processor_files.FILE: (json.dumps(processor, indent=1) + "\n").encode()}
    if weights.vocabulary is not None:
        written |= tokenizer_files.files(weights.vocabulary, text, weights.tokenizer, clip=clip)
        described["text_config"] |= tokenizer_files.ids(weights.vocabulary, text)
    with _new_folder(folder) as scratch:
        (scratch / _THEIR_CONFIG).write_text(json.dumps(described, indent=1) + "\n")
        _write(scratch / _THEIR_WEIGHTS, tensors, metadata={"format": "pt"})
        for name, content in written.items():
            (scratch / name).write_bytes(content)
    return _differences(weights, clip=clip)


def _differences(weights: Weights, *, clip: bool) -> list[str]:
    """Returns what `transformers` does otherwise with weights, in sentences."""
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
    if not weights.config.image.antialias:
        notes.append(
            "Pillow, by which transformers resizes, always antialiases, and this model was trained "
            "without: pixels differ where a picture is made smaller"
        )
    return notes


def fitted(
    weights: Weights, shapes: Mapping[str, Any], patterns: Iterable[str]
) -> dict[str, np.ndarray]:
    """Returns the weights that a model takes over, in its shapes.

    Args:
        weights: The weights to take parameters from.
        shapes: Shapes of the model's parameters by name.
        patterns: Regular expressions of the whole names of parameters to take over.

    Returns:
        Values by name. Learned positions of patches are resampled to another resolution.

    Raises:
        ValueError: If something that matches a pattern is only in the model or only in the weights,
            or its shape does not fit; the message lists all of it.
    """
    patterns = list(patterns)
    needed = {name for name in shapes if _matches(patterns, name)}
    available = {name for name in weights.parameters if _matches(patterns, name)}
    if not needed:
        raise ValueError(f"No parameter of the model matches. Received: pretrained={patterns}")
    missing, left_over = sorted(needed - available), sorted(available - needed)
    values, misfits = {}, []
    for name in sorted(needed & available):
        value = weights.parameters[name]
        if name == "image/positions" and value.shape != tuple(shapes[name]):
            value = _resampled(value, tuple(shapes[name]))
        if value.shape != tuple(shapes[name]):
            misfits.append(f"{name} {tuple(shapes[name])} but given {value.shape}")
        values[name] = value
    if missing or left_over or misfits:
        raise ValueError(
            "The weights do not fit the model. "
            f"Missing: {', '.join(missing) or 'nothing'}. "
            f"Left over: {', '.join(left_over) or 'nothing'}. "
            f"Of another shape: {', '.join(misfits) or 'nothing'}."
        )
    return values


def _matches(patterns: Iterable[str], name: str) -> bool:
    return any(re.fullmatch(pattern, name) for pattern in patterns)


def _resampled(value: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    grid = round(shape[1] ** 0.5)
    square = grid * grid == shape[1] and round(value.shape[1] ** 0.5) ** 2 == value.shape[1]
    return positions.resample(value, grid) if square else value


def _load_hugging_face(folder: Path, drop: list[str], assignments: Iterable[str]) -> Weights:
    described = json.loads((folder / _THEIR_CONFIG).read_text())
    settings = hugging_face.settings(described)
    chosen = choices.parsed(assignments, (*choices.PIXELS, *choices.TEXTS))
    assumed: list[str] = []
    # Where the user states the pixels, the processor is not read: it may be one that cannot be
    # followed.
    if not any(key in chosen for key in choices.PIXELS):
        pixels, assumed = processor.pixels(folder, described["model_type"], settings.image.size)
        settings = dataclasses.replace(
            settings, image=dataclasses.replace(settings.image, **pixels)
        )
    tensors = {}
    for path in _their_files(folder):
        tensors |= _read(path)
    vocabulary, texts = tokenizer_import.read(folder)
    if settings.text is not None:
        settings = dataclasses.replace(settings, text=dataclasses.replace(settings.text, **texts))
    settings = choices.applied(settings, chosen)
    parameters = links.read(hugging_face.links(settings), tensors, drop=drop)
    patches = settings.image.grid**2
    num_positions = parameters["image/positions"].shape[1]
    if num_positions != patches:
        raise ValueError(
            f"{folder / _THEIR_CONFIG} must be that of the weights. Received: positions of "
            f"{num_positions} patches, image_size and patch_size of {patches}"
        )
    return Weights(
        config=settings,
        parameters=parameters,
        vocabulary=vocabulary,
        tokenizer=tokenizer_import.kept(folder),
        assumed=tuple(assumed),
    )


def _their_files(folder: Path) -> list[Path]:
    index = folder / _THEIR_INDEX
    if index.is_file():
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        # The index is input like any other: no file outside of the folder is opened.
        if any(Path(name).name != name for name in names):
            raise ValueError(f"{index} must name files of its own folder. Received: {names}")
        return [folder / name for name in names]
    if not (folder / _THEIR_WEIGHTS).is_file():
        raise ValueError(
            f"There is no {_THEIR_WEIGHTS} in {folder}. Pickled weights (.bin, .pt) are never "
            "read; convert them to safetensors with the project that wrote them."
        )
    return [folder / _THEIR_WEIGHTS]


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


def _read(path: Path) -> dict[str, np.ndarray]:
    """Returns the tensors of a safetensors file."""
    try:
        entries = safetensors.deserialize(path.read_bytes())
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} is no whole safetensors file: {error}") from error
    tensors = {}
    for name, entry in entries:
        if entry["dtype"] == "BF16":
            bits = np.frombuffer(entry["data"], np.uint16).astype(np.uint32) << 16
            value = bits.view(np.float32)
        elif entry["dtype"] in _TYPES:
            value = np.frombuffer(entry["data"], _TYPES[entry["dtype"]])
        else:
            raise ValueError(f"{path} holds {name} of unknown type {entry['dtype']}.")
        tensors[name] = value.reshape(entry["shape"])
    return tensors


def _write(path: Path, tensors: Mapping[str, np.ndarray], **options) -> None:
    plain = {name: np.ascontiguousarray(value, np.float32) for name, value in tensors.items()}
    # A scalar, which numpy makes contiguous as one dimension, keeps its shape.
    plain = {name: value.reshape(tensors[name].shape) for name, value in plain.items()}
    safetensors.numpy.save_file(plain, str(path), **options)


@contextlib.contextmanager
def _new_folder(folder: str | Path) -> Iterator[Path]:
    if Path(folder).exists():
        raise ValueError(f"The folder must not be there yet. Received: {folder}")
    with atomic.new_folder(folder) as scratch:
        yield scratch
