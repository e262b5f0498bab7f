"""What a run takes over from the weights that it starts from, besides their parameters.

A pretrained parameter means something only beside what it was trained with: a row of the token
table is the piece of one vocabulary, and an encoder computes with its own number of heads. Nothing
of this shows in shapes, so that a recipe with other settings would start without a word, and wrong.
"""

import dataclasses
import re
from collections.abc import Iterable
from typing import Any

from sigline.trainer import config as trainer_config
from sigline.trainer.config import TrainConfig
from sigline.trainer.weights import processor, vocabularies
from sigline.trainer.weights.checkpoint import Weights

TOKEN_TABLE = "text/tokens"

# Fields of a tower that belong to its parameters of these names.
_WORDS = (
    "vocabulary_size",
    "lowercase",
    "strip_punctuation",
    "squeeze_whitespace",
    "start_piece",
    "end_piece",
    "pad_piece",
)
_PIXELS = processor.FIELDS
_FIELDS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("text", TOKEN_TABLE, _WORDS),
    ("text", "text/positions", ("length",)),
    ("text", "text/encoder/.*", ("num_heads", "causal")),
    ("image", "image/embedding/kernel", _PIXELS),
    ("image", "image/encoder/.*", ("num_heads",)),
)
# Those of the blocks that show in no shape; a tower's pool shows in none, or in parameters that may
# be left out to train another pool.
_BLOCK_FIELDS = ("activation", "norm_epsilon")
_POOL_FIELDS = {"text": ("pool", "end_id"), "image": ("pool",)}


def inherit(
    config: TrainConfig, weights: Weights | None, overrides: Iterable[str] = ()
) -> TrainConfig:
    """Returns the configuration of a run that starts from weights.

    Whatever decides how pretrained parameters compute, and does not show in their shapes, comes
    from the weights: the rules by which texts become tokens, the number of tokens, how pixels are
    resized and normalised, heads, activations and pools. The rest is the recipe's, such as the
    resolution, dropout and the optimizer.

    Args:
        config: The recipe's configuration, overrides included.
        weights: What the run starts from; None for none.
        overrides: The overrides once more. What they name explicitly stays as they say.
    """
    if weights is None:
        return config
    names = [name for name in weights.parameters if _is_pretrained(config, name)]
    changed = {}
    for tower in ("image", "text"):
        ours, theirs = getattr(config, tower), getattr(weights.config, tower)
        if ours is not None and theirs is not None:
            changed[tower] = dataclasses.replace(ours, **_fields(tower, ours, weights, names))
    config = dataclasses.replace(config, **changed)
    return trainer_config.override(config, overrides)


def _fields(tower: str, ours: Any, weights: Weights, names: list[str]) -> dict[str, Any]:
    """Returns what a tower takes over: values by the names of its fields."""
    theirs = getattr(weights.config, tower)
    # A head of classes reads the embedding, and is no part of it.
    own = [x for x in weights.parameters if x.startswith(f"{tower}/") and x[:10] != "image/head"]
    taken = {
        field: getattr(theirs, field)
        for place, pattern, fields in _FIELDS
        if place == tower and any(re.fullmatch(pattern, name) for name in names)
        for field in fields
    }
    if taken.get("resize_side") is not None:
        # As much is cut off at another resolution.
        taken["resize_side"] = max(round(theirs.resize_side * ours.size / theirs.size), ours.size)
    if any(name.startswith(f"{tower}/encoder/") for name in names):
        block = {field: getattr(theirs.block, field) for field in _BLOCK_FIELDS}
        taken["block"] = dataclasses.replace(ours.block, **block)
    # A new pool is a matter of leaving the old one's parameters, or those behind it, out.
    if own and set(own) <= set(names):
        taken |= {field: getattr(theirs, field) for field in _POOL_FIELDS[tower]}
    return taken


def differences(recipe: TrainConfig, config: TrainConfig) -> list[str]:
    """Returns what a run took over where its recipe says otherwise, as `key=value` with both."""
    before, after = (_flat(dataclasses.asdict(x)) for x in (recipe, config))
    return [
        f"{key}={after[key]!r} (the recipe: {before[key]!r})"
        for key in after
        if after[key] != before.get(key)
    ]


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for name, value in values.items():
        key = f"{prefix}{name}"
        flat |= _flat(value, f"{key}.") if isinstance(value, dict) else {key: value}
    return flat


def brings_vocabulary(config: TrainConfig, weights: Weights | None) -> bool:
    """Whether a run starts from the weights' token table, and so reads by their vocabulary."""
    return (
        weights is not None
        and config.text is not None
        and TOKEN_TABLE in weights.parameters
        and _is_pretrained(config, TOKEN_TABLE)
    )


def vocabulary(config: TrainConfig, weights: Weights | None, other: bytes | None) -> bytes | None:
    """Returns the vocabulary of a run: that of the weights if it starts from their token table.

    Args:
        config: The configuration.
        weights: What the run starts from; None for none.
        other: The vocabulary that the run was given, or None.

    Raises:
        ValueError: If the run starts from the weights' token table, and they have no vocabulary or
            the other one is not theirs.
    """
    if not brings_vocabulary(config, weights):
        return other
    assert weights is not None
    if weights.vocabulary is None:
        raise ValueError(
            "The weights have a token table and no vocabulary, so nothing tells which piece each "
            "of its rows stands for. Add the vocabulary that they were trained with: `sigline "
            "weights import WEIGHTS --vocabulary FILE --output FOLDER`. Received: "
            f"pretrained={list(config.pretrained)}, vocabulary of the weights=none"
        )
    if other is not None and not vocabularies.same(other, weights.vocabulary):
        raise ValueError(
            "The vocabulary must be that of the weights, since the token table is among what is "
            "pretrained. Leave the vocabulary out, and that of the weights is taken; or leave "
            f"{TOKEN_TABLE} out of `pretrained`, and a new table is trained. Received: "
            f"vocabulary={vocabularies.digest(other)[:12]}, vocabulary of the weights="
            f"{vocabularies.digest(weights.vocabulary)[:12]}, pretrained={list(config.pretrained)}"
        )
    return weights.vocabulary


def with_vocabulary(weights: Weights, other: bytes) -> Weights:
    """Returns weights with a vocabulary that they came without.

    Raises:
        ValueError: If they came with another one, or have no text tower to read by it.
    """
    if weights.config.text is None or TOKEN_TABLE not in weights.parameters:
        raise ValueError(
            "A vocabulary belongs to a token table, which these weights do not have. Leave "
            "--vocabulary out. Received: weights without a text tower"
        )
    if weights.vocabulary is not None and not vocabularies.same(other, weights.vocabulary):
        raise ValueError(
            "The weights come with a vocabulary, and their token table is of no other. Leave "
            f"--vocabulary out. Received: vocabulary={vocabularies.digest(other)[:12]}, vocabulary "
            f"of the weights={vocabularies.digest(weights.vocabulary)[:12]}"
        )
    return dataclasses.replace(weights, vocabulary=weights.vocabulary or other)


def _is_pretrained(config: TrainConfig, name: str) -> bool:
    return any(re.fullmatch(pattern, name) for pattern in config.pretrained)
