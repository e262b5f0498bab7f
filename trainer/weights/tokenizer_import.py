"""Reads tokenizers in folders of Hugging Face: their vocabulary, and their rules for texts."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sigline.trainer.inputs import vocabularies as pieces
from sigline.trainer.weights import tokenizer_files as files
from sigline.trainer.weights import tokenizer_json

# Classes of tokenizers with other end and padding pieces than SigLIP's.
_SIGLIP_2_TOKENIZERS = ("GemmaTokenizer", "Siglip2Tokenizer")
_CLIP_TOKENIZER = "CLIPTokenizer"


def read(folder: Path) -> tuple[bytes | None, dict[str, Any]]:
    """Returns the vocabulary, if there is one, and the text tower's settings that go with it."""
    described = _read_object(folder / files.CONFIG_FILE)
    # Rules that sigline wrote when it exported the folder. They override those of the class.
    own = files.rules(described)
    if (folder / files.SENTENCEPIECE_FILE).is_file():
        return (folder / files.SENTENCEPIECE_FILE).read_bytes(), own
    name = _tokenizer_class(described)
    if name == _CLIP_TOKENIZER or (own and (folder / files.MERGES_FILE).is_file()):
        texts = {
            "start_piece": "<|startoftext|>",
            "end_piece": "<|endoftext|>",
            "pad_piece": "<|endoftext|>",
        }
        return _clip_vocabulary(folder), texts | own
    if name not in _SIGLIP_2_TOKENIZERS:
        return None, {}
    content = (folder / files.TOKENIZER_FILE).read_bytes()
    texts = {
        "strip_punctuation": False,
        "squeeze_whitespace": False,
        "end_piece": "<eos>",
        "pad_piece": "<pad>",
    }
    return tokenizer_json.from_tokenizer_json(content), texts | own


def kept(folder: Path) -> dict[str, bytes]:
    """Returns the files of SigLIP 2's tokenizer, which an export writes again unchanged."""
    described = _read_object(folder / files.CONFIG_FILE)
    # A SentencePiece file is used as it is, so that nothing needs to be kept.
    converted = not (folder / files.SENTENCEPIECE_FILE).is_file()
    converted &= _tokenizer_class(described) in _SIGLIP_2_TOKENIZERS
    return kept_files(folder) if converted else {}


def _tokenizer_class(described: Mapping[str, Any]) -> str:
    return str(described.get("tokenizer_class")).removesuffix("Fast")


def _read_object(path: Path) -> dict[str, Any]:
    """Returns the object of a JSON file; an empty one if there is no file."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} must hold JSON. Received: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold an object. Received: {type(content).__name__}")
    return content


def _clip_vocabulary(folder: Path) -> bytes:
    # CLIP's original files, if they are there; newer folders have `tokenizer.json` only.
    if (folder / files.PIECES_FILE).is_file():
        numbers = json.loads((folder / files.PIECES_FILE).read_text())
        lines = (folder / files.MERGES_FILE).read_text().splitlines()
        return pieces.serialized(numbers, [x for x in lines if x and not x.startswith("#version")])
    model = json.loads((folder / files.TOKENIZER_FILE).read_text()).get("model", {})
    if not {"vocab", "merges"} <= set(model):
        raise ValueError(
            f"{folder / files.TOKENIZER_FILE} must hold byte pairs. Received: {set(model)}"
        )
    return pieces.serialized(model["vocab"], model["merges"])


def kept_files(folder: Path) -> dict[str, bytes]:
    """Returns the files of a tokenizer that are kept unchanged, by name, if they exist."""
    paths = {name: folder / name for name in files.KEPT_FILES}
    return {name: path.read_bytes() for name, path in paths.items() if path.is_file()}
