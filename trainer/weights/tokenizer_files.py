"""Files with which the tokenizers of `transformers` give the same tokens as sigline's.

SigLIP's own class reads SentencePiece models and canonicalises texts as sigline does by default,
and SigLIP 2's reads the `tokenizer.json` that weights came with. For any other rules, the steps of
`preprocess.canonicalize` are written into a `tokenizer.json`, which needs no class of its own.
A text that spells a special piece (start, end or padding) is tokenized as ordinary text: a caption
must not be able to end itself.
"""

import base64
import json
import string
from collections.abc import Mapping
from typing import Any

from sigline.schemas import strict
from sigline.trainer.config import TextTowerConfig
from sigline.trainer.weights import tokenizer_json
from sigline.trainer.weights.tokenizer_json import Kind

SENTENCEPIECE_FILE = "spiece.model"
TOKENIZER_FILE = "tokenizer.json"
CONFIG_FILE = "tokenizer_config.json"
SPECIAL_FILE = "special_tokens_map.json"
PIECES_FILE, MERGES_FILE = "vocab.json", "merges.txt"
# Files of an imported tokenizer that are kept unchanged.
KEPT_FILES = (TOKENIZER_FILE, CONFIG_FILE)

# Fields of `TextTowerConfig` that decide how texts become pieces.
RULES = (
    "lowercase",
    "strip_punctuation",
    "squeeze_whitespace",
    "start_piece",
    "end_piece",
    "pad_piece",
)
# Key of `tokenizer_config.json` that holds these fields, so that an import restores them.
_RULES_KEY = "sigline_text"

_SPACE = "\u2581"
# Python's white space, which `preprocess` uses, written out since regular expressions differ.
_WHITE_SPACE = (
    r"[\x{9}-\x{d}\x{1c}-\x{20}\x{85}\x{a0}\x{1680}\x{2000}-\x{200a}"
    r"\x{2028}\x{2029}\x{202f}\x{205f}\x{3000}]+"
)
# A capital sigma at the end of a word: after a cased letter and not before one, ignoring characters
# without case. It is the only letter whose lower case depends on its neighbours (Unicode's
# Final_Sigma), which the library's lower-casing of single letters ignores.
_LAST_SIGMA = (
    r"[\p{Cased}&&[^\p{Case_Ignorable}]]\p{Case_Ignorable}*\K\x{3a3}"
    r"(?!\p{Case_Ignorable}*[\p{Cased}&&[^\p{Case_Ignorable}]])"
)
# A code point that Unicode will never assign, so that no vocabulary has it in a piece.
_NO_CHARACTER = "\uffff"
# The words within which CLIP merges byte pairs; the same expression as in `vocabularies`.
_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"


def files(
    vocabulary: bytes, text: TextTowerConfig, kept: Mapping[str, bytes], *, clip: bool
) -> dict[str, bytes]:
    """Returns the files of a tokenizer by name.

    Args:
        vocabulary: A SentencePiece model or byte pairs.
        text: The text tower, for its rules and its length.
        kept: Files of the imported tokenizer, if the weights came with one.
        clip: Whether the model is CLIP's, which takes a mask of the padding.
    """
    named: dict[str, str | None] = {
        "bos_token": text.start_piece,
        "eos_token": text.end_piece,
        "pad_token": text.pad_piece,
    }
    config: dict[str, Any] = {
        "clean_up_tokenization_spaces": False,
        # SigLIP was trained to attend to the padding, so the tokenizer must not return a mask.
        "model_input_names": ["input_ids", "attention_mask"] if clip else ["input_ids"],
        "model_max_length": text.length,
        "padding_side": "right",
        "processor_class": "CLIPProcessor" if clip else "SiglipProcessor",
        # Without this, a text that spells a special piece would become that piece.
        "split_special_tokens": True,
        "truncation_side": "right",
        _RULES_KEY: {name: getattr(text, name) for name in RULES},
    }
    if vocabulary.startswith(b"{"):
        written, special = _byte_pairs(json.loads(vocabulary), text)
        config |= {"tokenizer_class": "PreTrainedTokenizerFast"} | special
    elif TOKENIZER_FILE in kept and _is_siglip_2(text):
        # The original file, with its merges in their original order, rather than a conversion back.
        written = {TOKENIZER_FILE: kept[TOKENIZER_FILE]}
        config = json.loads(kept.get(CONFIG_FILE, b"{}")) | config
        config |= {"tokenizer_class": "Siglip2Tokenizer", "add_bos_token": False}
        config |= {"add_eos_token": True}
    else:
        model = tokenizer_json.read_model(vocabulary)
        written = {SENTENCEPIECE_FILE: vocabulary}
        if _is_siglip(model, text):
            config |= {"tokenizer_class": "SiglipTokenizer", "do_lower_case": text.lowercase}
        else:
            written[TOKENIZER_FILE] = _json(_from_sentencepiece(model, text))
            config |= {"tokenizer_class": "PreTrainedTokenizerFast"}
        named["unk_token"] = _unknown(model)
    special = {name: piece for name, piece in named.items() if piece is not None}
    return written | {CONFIG_FILE: _json(config | special), SPECIAL_FILE: _json(special)}


def rules(described: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the rules in a `tokenizer_config.json` that sigline wrote; none in a foreign one.

    Raises:
        ValueError: If the rules are not those of a text tower.
    """
    own = described.get(_RULES_KEY, {})
    if not isinstance(own, dict) or (own and set(own) != set(RULES)):
        raise ValueError(f"{_RULES_KEY} must have {', '.join(RULES)}. Received: {own}")
    # Built only to check the types of the values.
    strict.build(TextTowerConfig, own, "text.")
    return own


def ids(vocabulary: bytes, text: TextTowerConfig) -> dict[str, int | None]:
    """Returns the ids of special tokens by their names in a `config.json`.

    CLIP pools at its `eos_token_id`. That is the text tower's `end_id` if it has one, which may be
    another id than that of the end piece.
    """
    if vocabulary.startswith(b"{"):
        pieces = json.loads(vocabulary)["pieces"]
    else:
        pieces = [item.piece for item in tokenizer_json.read_model(vocabulary).pieces]
    numbers = {piece: number for number, piece in enumerate(pieces)}
    end_id = numbers.get(text.end_piece) if text.end_id is None else text.end_id
    return {
        "bos_token_id": None if text.start_piece is None else numbers.get(text.start_piece),
        "eos_token_id": end_id,
        "pad_token_id": numbers.get(text.pad_piece),
    }


def _number(ids: Mapping[str, int], piece: str) -> int:
    if piece not in ids:
        raise ValueError(
            "The vocabulary must have the start and end piece of texts. "
            f"Received: {piece!r}, which is none of its {len(ids)} pieces"
        )
    return ids[piece]


def _json(value: Any) -> bytes:
    return (json.dumps(value, ensure_ascii=False, indent=1) + "\n").encode()


def _is_siglip_2(text: TextTowerConfig) -> bool:
    """Returns whether the rules are those of SigLIP 2: lower case, and no other change."""
    return (
        text.lowercase
        and not text.strip_punctuation
        and not text.squeeze_whitespace
        and text.start_piece is None
    )


def _is_siglip(model: Any, text: TextTowerConfig) -> bool:
    """Returns whether `SiglipTokenizer` gives the same tokens.

    It strips punctuation, squeezes white space and adds a prefix, whatever the model's settings.
    """
    normalizer = model.normalizer_spec
    return (
        text.strip_punctuation
        and text.squeeze_whitespace
        and text.start_piece is None
        and normalizer.add_dummy_prefix
        and normalizer.remove_extra_whitespaces
        and normalizer.escape_whitespaces
        and not model.trainer_spec.treat_whitespace_as_suffix
    )


def _unknown(model: Any) -> str | None:
    return next((item.piece for item in model.pieces if item.type == Kind.UNKNOWN), None)


def _canonical(text: TextTowerConfig) -> list[dict[str, Any]]:
    """Returns the normalizers that do what `preprocess.canonicalize` does, in the same order."""
    steps: list[dict[str, Any]] = []
    if text.lowercase:
        # First the sigmas, since the library lower-cases letter by letter.
        steps += [_replaced(_LAST_SIGMA, "\u03c2"), {"type": "Lowercase"}]
    if text.strip_punctuation:
        escaped = "".join(f"\\{character}" for character in string.punctuation)
        steps.append(_replaced(f"[{escaped}]", ""))
    if text.squeeze_whitespace:
        steps += [_replaced(_WHITE_SPACE, " "), _replaced("\\A | \\z", "")]
    return steps


def _replaced(pattern: str, content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": {"Regex": pattern}, "content": content}


def _from_sentencepiece(model: Any, text: TextTowerConfig) -> dict[str, Any]:
    """Returns the content of a `tokenizer.json` with the pieces of a SentencePiece model."""
    normalizer, steps = model.normalizer_spec, _canonical(text)
    if normalizer.precompiled_charsmap:
        # The library applies the map to a letter with all its combining accents at once, and so
        # misses the entries of the single characters. Composing them first avoids that.
        steps += [{"type": "NFKC"}] if "nfkc" in normalizer.name else []
        charsmap = base64.b64encode(normalizer.precompiled_charsmap).decode()
        steps.append({"type": "Precompiled", "precompiled_charsmap": charsmap})
    if normalizer.remove_extra_whitespaces:
        steps += [_replaced(" +", " "), _replaced("\\A | \\z", "")]
    if normalizer.add_dummy_prefix:
        steps.append({"type": "Prepend", "prepend": " "})
    if normalizer.escape_whitespaces:
        steps.append({"type": "Replace", "pattern": {"String": " "}, "content": _SPACE})
    unigram = model.trainer_spec.model_type != tokenizer_json.BPE
    pre_tokenizer = None
    if unigram:
        # The library's unigram model matches every piece against the text, controls included, where
        # SentencePiece never matches controls. Byte pairs cannot reach one by merging.
        replacements, pre_tokenizer = _protect_spelled_controls(model)
        steps += replacements
    ids = {item.piece: number for number, item in enumerate(model.pieces)}
    added = [
        {"id": number, "content": item.piece, "special": item.type != Kind.USER_DEFINED}
        for number, item in enumerate(model.pieces)
        if item.type in (Kind.CONTROL, Kind.UNKNOWN, Kind.USER_DEFINED)
    ]
    return _described(
        steps,
        pre_tokenizer,
        _unigram(model) if unigram else _bpe(model, ids),
        {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
        text,
        ids,
        added,
    )


def _protect_spelled_controls(model: Any) -> tuple[list[dict[str, Any]], dict[str, Any] | None]:
    """Returns steps that keep a text which spells a control piece from becoming that piece.

    If the control's first character is in no normal piece, it is replaced by another unknown
    character, which gives the same token. Otherwise the text is split after it.

    Returns:
        Normalizers that replace, and a pre-tokenizer that splits; None if it need not.
    """
    known = {x for item in model.pieces if item.type == Kind.NORMAL for x in item.piece}
    replacements, split_patterns = [], []
    for item in model.pieces:
        if item.type not in (Kind.CONTROL, Kind.UNKNOWN) or len(item.piece) < 2:
            continue
        first, tail = item.piece[0], item.piece[1:]
        # A look-ahead, so that only the first character is replaced or split off.
        spelled = f"{_escaped(first)}(?={_escaped(tail)})"
        if first in known:
            split_patterns.append(spelled)
        else:
            replacements.append(_replaced(spelled, _NO_CHARACTER))
    pattern = {"Regex": "|".join(split_patterns)}
    split = {"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False}
    return replacements, split if split_patterns else None


def _escaped(literal: str) -> str:
    return "".join(x if x.isalnum() else f"\\x{{{ord(x):x}}}" for x in literal)


def _unigram(model: Any) -> dict[str, Any]:
    scores = [[item.piece, item.score] for item in model.pieces]
    return {
        "type": "Unigram",
        "unk_id": next(i for i, item in enumerate(model.pieces) if item.type == Kind.UNKNOWN),
        "vocab": scores,
        "byte_fallback": model.trainer_spec.byte_fallback,
    }


def _bpe(model: Any, ids: Mapping[str, int]) -> dict[str, Any]:
    """Returns a BPE model: every pair that makes a piece, the highest score first.

    SentencePiece stores no merges. It repeatedly merges the neighbours whose joint piece has the
    highest score, so every way to cut a piece into two pieces is a merge of that piece's rank.
    """
    # Only normal pieces merge; SentencePiece never builds controls or bytes from parts.
    scores = {x.piece: x.score for x in model.pieces if x.type == Kind.NORMAL}
    pairs = [
        (-score, piece[:cut], piece[cut:])
        for piece, score in scores.items()
        for cut in range(1, len(piece))
        if piece[:cut] in scores and piece[cut:] in scores
    ]
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": _unknown(model),
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": True,
        "byte_fallback": model.trainer_spec.byte_fallback,
        "ignore_merges": False,
        "vocab": dict(ids),
        "merges": [[left, right] for _, left, right in sorted(pairs)],
    }


def _byte_pairs(
    content: Mapping[str, Any], text: TextTowerConfig
) -> tuple[dict[str, bytes], dict[str, str]]:
    """Returns the files of CLIP's byte pairs, and further special tokens by their names."""
    ids = {piece: number for number, piece in enumerate(content["pieces"])}
    model = {
        "type": "BPE",
        "dropout": None,
        # As in CLIP's own files. Byte pairs know every byte, so it never occurs in a text.
        "unk_token": text.end_piece,
        "continuing_subword_prefix": "",
        "end_of_word_suffix": "</w>",
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
        "vocab": ids,
        "merges": content["merges"],
    }
    steps = [*_canonical(text), {"type": "NFC"}, _replaced(_WHITE_SPACE, " ")]
    words = {
        "type": "Sequence",
        "pretokenizers": [
            {
                "type": "Split",
                "pattern": {"Regex": _WORDS},
                # Inverted: keeps the matches and drops what is between them, which is white space.
                "behavior": "Removed",
                "invert": True,
            },
            {
                "type": "ByteLevel",
                "add_prefix_space": False,
                "trim_offsets": True,
                # GPT-2's expression, which would split the words again.
                "use_regex": False,
            },
        ],
    }
    decoder = {
        "type": "Sequence",
        "decoders": [
            {
                "type": "ByteLevel",
                "add_prefix_space": True,
                "trim_offsets": True,
                "use_regex": True,
            },
            {"type": "Replace", "pattern": {"String": "</w>"}, "content": " "},
        ],
    }
    special = {x for x in (text.start_piece, text.end_piece, text.pad_piece) if x is not None}
    added = [
        {"id": number, "content": piece, "special": True}
        for piece, number in ids.items()
        if piece in special
    ]
    described = _described(steps, words, model, decoder, text, ids, added)
    lines = ["#version: 0.2", *(" ".join(pair) for pair in content["merges"])]
    written = {
        TOKENIZER_FILE: _json(described),
        PIECES_FILE: json.dumps(ids, ensure_ascii=False).encode(),
        MERGES_FILE: ("\n".join(lines) + "\n").encode(),
    }
    return written, {"unk_token": text.end_piece}


def _described(
    steps: list[dict[str, Any]],
    pre_tokenizer: dict[str, Any] | None,
    model: dict[str, Any],
    decoder: dict[str, Any],
    text: TextTowerConfig,
    ids: Mapping[str, int],
    added: list[dict[str, Any]],
) -> dict[str, Any]:
    """Returns the content of a `tokenizer.json`."""
    # Added tokens match literally, in the text before normalization.
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    start = [] if text.start_piece is None else [text.start_piece]
    template = [
        *({"SpecialToken": {"id": x, "type_id": 0}} for x in start),
        {"Sequence": {"id": "A", "type_id": 0}},
        {"SpecialToken": {"id": text.end_piece, "type_id": 0}},
    ]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [item | plain for item in added],
        "normalizer": {"type": "Sequence", "normalizers": steps},
        "pre_tokenizer": pre_tokenizer,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": template,
            "pair": [*template, {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {
                x: {"id": x, "ids": [_number(ids, x)], "tokens": [x]}
                for x in (*start, text.end_piece)
            },
        },
        "decoder": decoder,
        "model": model,
    }
