"""Compares vocabularies, and converts Hugging Face's `tokenizer.json` to a SentencePiece model.

Gemma's vocabulary, which SigLIP 2 uses, is published as `tokenizer.json` alone: pieces, and the
pairs that merge into them, in the order in which they merge. SentencePiece has a score for each
piece instead, and merges any pair whose piece is in the vocabulary. The two are equivalent for a
vocabulary that was converted from a SentencePiece model. For others, such as CLIP's, they are not,
and these are refused.
"""

import enum
import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message, message_factory

from sigline.schemas import digests

_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_UNKNOWN = "<unk>"
BPE = 2
UNIGRAM = 1
# Defaults of fields that a SentencePiece model lacks, from its `sentencepiece_model.proto`.
_TRAINER_DEFAULTS = {
    "model_type": UNIGRAM,
    "treat_whitespace_as_suffix": False,
    "byte_fallback": False,
    "unk_id": 0,
    "bos_id": 1,
    "eos_id": 2,
    "pad_id": -1,
}
_NORMALIZER_DEFAULTS = {
    "precompiled_charsmap": b"",
    "add_dummy_prefix": True,
    "remove_extra_whitespaces": True,
    "escape_whitespaces": True,
}


class Kind(enum.IntEnum):
    """The type of a piece, by SentencePiece's number."""

    NORMAL, UNKNOWN, CONTROL, USER_DEFINED = 1, 2, 3, 4
    BYTE = 6


def digest(vocabulary: bytes) -> str:
    """Returns the SHA-256 of a vocabulary's bytes."""
    return hashlib.sha256(vocabulary).hexdigest()


def same(one: bytes, other: bytes) -> bool:
    """Returns whether two vocabularies give the same tokens for any text; see `content_digest`."""
    return one == other or content_digest(one) == content_digest(other)


def content_digest(vocabulary: bytes) -> str:
    """Returns a digest of what decides the tokens of a vocabulary; of its bytes if unreadable.

    Files of the same pieces can differ in other fields, such as the names of the files that they
    were trained on, and in the order of fields.
    """
    content = _content(vocabulary)
    return digest(vocabulary) if content is None else digests.json_digest(content)


def _content(vocabulary: bytes) -> Any:
    """Returns the part of a vocabulary that decides tokens, as JSON; None if unreadable."""
    if vocabulary.startswith(b"{"):
        try:
            return json.loads(vocabulary)
        except ValueError:
            return None
    try:
        model = read_model(vocabulary)
    except ValueError:
        return None

    def fields(part: Any, defaults: Mapping[str, Any]) -> dict[str, Any]:
        values = {name: getattr(part, name) for name in defaults}
        return {n: x.hex() if isinstance(x, bytes) else x for n, x in values.items()}

    return (
        [(item.piece, item.score, item.type) for item in model.pieces],
        fields(model.trainer_spec, _TRAINER_DEFAULTS),
        fields(model.normalizer_spec, _NORMALIZER_DEFAULTS),
    )


def read_model(vocabulary: bytes) -> Any:
    """Parses a SentencePiece model: its pieces, and the settings that decide tokens.

    Missing fields get their defaults.

    Raises:
        ValueError: If the bytes are not a SentencePiece model.
    """
    try:
        model = _model_class().FromString(vocabulary)
    except message.DecodeError:
        model = None
    # Almost any bytes can parse as a message of unknown fields, which has no pieces.
    if model is None or not model.pieces:
        raise ValueError(
            "The vocabulary must be a serialized SentencePiece model. "
            f"Received: {len(vocabulary)} bytes of something else"
        )
    for part, defaults in (
        (model.trainer_spec, _TRAINER_DEFAULTS),
        (model.normalizer_spec, _NORMALIZER_DEFAULTS),
    ):
        for name, value in defaults.items():
            if not part.HasField(name):
                setattr(part, name, value)
    for item in model.pieces:
        if not item.HasField("type"):
            item.type = Kind.NORMAL
    return model


def from_tokenizer_json(content: bytes) -> bytes:
    """Converts a `tokenizer.json` to a serialized SentencePiece model.

    Args:
        content: The bytes of a `tokenizer.json`.

    Raises:
        ValueError: If it is not a byte-fallback BPE that was converted from a SentencePiece model.
    """
    described = json.loads(content)
    model = described.get("model", {})
    if model.get("type") != "BPE" or not model.get("byte_fallback"):
        raise ValueError(
            "tokenizer.json must hold a BPE with byte fallback, as SigLIP 2's. Received: "
            f"model.type={model.get('type')!r}, byte_fallback={model.get('byte_fallback')!r}"
        )
    if missing := {"vocab", "merges"} - set(model):
        raise ValueError(f"tokenizer.json must have model.{missing.pop()}. Received: none")
    pieces = _pieces(model["vocab"], described.get("added_tokens", []))
    ranks = _ranks(model["merges"], model["vocab"])
    special = {item["content"] for item in described.get("added_tokens", []) if item.get("special")}
    added = {item["content"] for item in described.get("added_tokens", [])}

    def kind(piece: str) -> int:
        if piece == _UNKNOWN:
            return Kind.UNKNOWN
        if _BYTE.fullmatch(piece):
            return Kind.BYTE
        if piece in special:
            return Kind.CONTROL
        return Kind.USER_DEFINED if piece in added else Kind.NORMAL

    written = _model_class()()
    for piece in pieces:
        # SentencePiece merges the pair with the highest score first, so the score is the negated
        # rank of the merge. Pieces that no merge makes come last; their score is never used.
        rank = ranks.get(piece, len(ranks))
        written.pieces.add(piece=piece, score=-float(rank), type=kind(piece))
    trainer, normalizer = written.trainer_spec, written.normalizer_spec
    trainer.model_type, trainer.vocab_size, trainer.byte_fallback = BPE, len(pieces), True
    for name in ("unk", "bos", "eos", "pad"):
        piece_id = pieces.index(f"<{name}>") if f"<{name}>" in pieces else -1
        setattr(trainer, f"{name}_id", piece_id)
    # Gemma's tokenizer changes nothing but spaces. SentencePiece's defaults would add a prefix and
    # squeeze white space.
    normalizer.name = "identity"
    normalizer.add_dummy_prefix = normalizer.remove_extra_whitespaces = False
    normalizer.escape_whitespaces = True
    return written.SerializeToString(deterministic=True)


def _model_class() -> Any:
    """Returns the message class of a SentencePiece model, with the fields that are used here.

    The package `sentencepiece` has such a class, but it loads only with the newest protobuf.
    """
    types = descriptor_pb2.FieldDescriptorProto
    fields = {
        "Piece": [
            ("piece", 1, types.TYPE_STRING),
            ("score", 2, types.TYPE_FLOAT),
            ("type", 3, types.TYPE_INT32),
        ],
        "Trainer": [
            ("model_type", 3, types.TYPE_INT32),
            ("vocab_size", 4, types.TYPE_INT32),
            ("treat_whitespace_as_suffix", 24, types.TYPE_BOOL),
            ("byte_fallback", 35, types.TYPE_BOOL),
            ("unk_id", 40, types.TYPE_INT32),
            ("bos_id", 41, types.TYPE_INT32),
            ("eos_id", 42, types.TYPE_INT32),
            ("pad_id", 43, types.TYPE_INT32),
        ],
        "Normalizer": [
            ("name", 1, types.TYPE_STRING),
            ("precompiled_charsmap", 2, types.TYPE_BYTES),
            ("add_dummy_prefix", 3, types.TYPE_BOOL),
            ("remove_extra_whitespaces", 4, types.TYPE_BOOL),
            ("escape_whitespaces", 5, types.TYPE_BOOL),
        ],
        "Model": [("pieces", 1, "Piece"), ("trainer_spec", 2, "Trainer")],
    }
    fields["Model"].append(("normalizer_spec", 3, "Normalizer"))
    file = descriptor_pb2.FileDescriptorProto(
        name="sigline/sentencepiece.proto", package="sigline.sentencepiece", syntax="proto2"
    )
    for name_of_message, described in fields.items():
        entry = file.message_type.add(name=name_of_message)
        for name, number, kind in described:
            label = types.LABEL_REPEATED if name == "pieces" else types.LABEL_OPTIONAL
            field = entry.field.add(name=name, number=number, label=label)
            if isinstance(kind, str):
                field.type, field.type_name = types.TYPE_MESSAGE, f".{file.package}.{kind}"
            else:
                field.type = kind
    # A pool of its own, since `sentencepiece` may register messages in the default pool.
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{file.package}.Model"))


def _pieces(vocabulary: Mapping[str, int], added: list[Mapping[str, Any]]) -> list[str]:
    """Returns all pieces in the order of their ids, which are their positions in SentencePiece."""
    # Added tokens are usually in the vocabulary too; their own entry wins.
    ids = dict(vocabulary) | {item["content"]: item["id"] for item in added}
    pieces = sorted(ids, key=ids.__getitem__)
    if [ids[piece] for piece in pieces] != list(range(len(pieces))):
        raise ValueError(
            "The ids of tokenizer.json must run from 0 without a gap. Received: "
            f"{len(pieces)} pieces with {ids[pieces[0]]} to {ids[pieces[-1]]}"
        )
    if _UNKNOWN not in ids or not any(_BYTE.fullmatch(piece) for piece in pieces):
        raise ValueError(
            f"tokenizer.json must have the piece {_UNKNOWN} and those of bytes. "
            f"Received: {len(pieces)} pieces, the first of them {pieces[:3]}"
        )
    return pieces


def _ranks(merges: list, vocabulary: Mapping[str, int]) -> dict[str, int]:
    """Returns the rank of each merged piece: 0 for the one that is merged first.

    Raises:
        ValueError: If two pieces join to a piece without being a merge. SentencePiece would merge
            them, and so give other tokens.
    """
    # Newer files store pairs, older ones a string with a space between the two.
    pairs = [tuple(item.split(" ", 1)) if isinstance(item, str) else tuple(item) for item in merges]
    ranks: dict[str, int] = {}
    known = set(pairs)
    for left, right in pairs:
        # Several merges may make one piece. The earliest counts, as SentencePiece has one score.
        ranks.setdefault(left + right, len(ranks))
    # All ways to cut a piece: quadratic in its length, but pieces are short.
    for piece in ranks:
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in vocabulary and right in vocabulary and (left, right) not in known:
                raise ValueError(
                    "tokenizer.json must be that of a SentencePiece model. Received: "
                    f"{left!r} and {right!r} make a piece, but do not merge"
                )
    return ranks
