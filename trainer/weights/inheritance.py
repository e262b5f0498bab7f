"""What a run takes over from the weights that it starts from, besides their parameters.

A pretrained parameter means something only beside what it was trained with: a row of the token
table is the piece of one vocabulary, and an encoder computes with its own number of heads. Nothing
of this shows in shapes, so that a recipe with other settings would start without a word, and wrong.
"""

import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import Any

from sigline.trainer import config as trainer_config
from sigline.trainer.config import ImageTowerConfig, TrainConfig
from sigline.trainer.weights import processor, tokenizer_files, tokenizer_json
from sigline.trainer.weights.model_weights import Weights

TOKEN_TABLE = "text/tokens"

# A tower, a pattern of its parameters, and the fields that come with these parameters.
_WORDS = ("vocabulary_size", *tokenizer_files.RULES)
_PIXELS = processor.FIELDS
_FIELDS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("text", TOKEN_TABLE, _WORDS),
    ("text", "text/positions", ("length",)),
    ("text", "text/encoder/.*", ("width", "mlp_dim", "num_heads", "causal")),
    ("image", "image/embedding/kernel", _PIXELS),
    ("image", "image/encoder/.*", ("width", "mlp_dim", "num_heads")),
)
# Fields of the blocks that no shape of a parameter shows.
_BLOCK_FIELDS = ("activation", "norm_epsilon")
# One parameter for each part of a tower. A pattern that matches all of them takes the tower over as
# it is.
_PARTS = {
    "text": ("tokens", "positions", "encoder/norm/gamma", "pool/probe", "head/kernel"),
    "image": (
        "embedding/kernel",
        "positions",
        "token",
        "distillation_token",
        "token_positions",
        "registers",
        "encoder/norm/gamma",
        "pool/probe",
        "projection/kernel",
    ),
}
# Fields that are the recipe's in any case: what only training does, a head beside the embedding,
# and the side of the pictures, of which see `_sides`.
_TRAINING = {"text": (), "image": ("token_dropout", "classes", "size", "drop_remainder")}
_TRAINING_OF_BLOCKS = ("dropout", "stochastic_depth")
# A FlexiViT's fields: the recipe's if it has grids, else those of the weights.
_GRIDS = ("grids", "position_grid", "default_grid")


def inherit(
    config: TrainConfig, weights: Weights | None, overrides: Iterable[str] = ()
) -> TrainConfig:
    """Returns the configuration of a run that starts from weights.

    A tower that is pretrained as a whole is that of the weights. Of one that is in parts, whatever
    decides how these compute comes from the weights: the rules by which texts become tokens, the
    number of tokens, how pixels are resized and normalised, widths, heads and activations. The rest
    is the recipe's, such as another resolution, dropout and the optimizer.

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
            changed[tower] = dataclasses.replace(ours, **_fields(tower, config, weights, names))
    config = dataclasses.replace(config, **changed)
    return trainer_config.override(config, overrides)


def _fields(tower: str, config: TrainConfig, weights: Weights, names: list[str]) -> dict[str, Any]:
    """Returns what a tower takes over: values by the names of its fields.

    Args:
        tower: `image` or `text`.
        config: The recipe's configuration.
        weights: What the run starts from.
        names: Parameters of the weights that are pretrained.
    """
    ours = getattr(config, tower)
    theirs = getattr(weights.config, tower)
    if not any(name.startswith(f"{tower}/") for name in names):
        return {}
    parts = [f"{tower}/{part}" for part in _PARTS[tower]]
    if all(_is_pretrained(config, part) for part in parts):
        kept = (*_TRAINING[tower], *(_GRIDS if getattr(ours, "grids", ()) else ()))
        fields = [item.name for item in dataclasses.fields(theirs) if item.name not in kept]
        taken = {field: getattr(theirs, field) for field in fields}
        block = {field: getattr(ours.block, field) for field in _TRAINING_OF_BLOCKS}
        taken["block"] = dataclasses.replace(theirs.block, **block)
    else:
        taken = {
            field: getattr(theirs, field)
            for place, pattern, fields in _FIELDS
            if place == tower and any(re.fullmatch(pattern, name) for name in names)
            for field in fields
        }
        own = {x for x in weights.parameters if x.startswith(f"{tower}/encoder/")}
        if own and own <= set(names):
            # Only with the whole encoder: a deeper one may start from the first blocks of another.
            taken["depth"] = theirs.depth
        if own & set(names):
            block = {field: getattr(theirs.block, field) for field in _BLOCK_FIELDS}
            taken["block"] = dataclasses.replace(ours.block, **block)
    if tower == "image" and "resize" in taken:
        patch, grids = taken.get("patch", ours.patch), taken.get("grids", ())
        taken |= _sides(ours, theirs, patch, takes_grids=bool(grids))
    return taken


def _sides(
    ours: ImageTowerConfig, theirs: ImageTowerConfig, patch: int, *, takes_grids: bool
) -> dict[str, Any]:
    """Returns the side of the pictures, and that from which they are cut.

    A recipe of another resolution keeps it. One with as many patches means that of the weights,
    whose patches may leave some pixels out; one with other patches says nothing of theirs. Grids
    divide a side, and come with it.

    Args:
        ours: The recipe's tower.
        theirs: That of the weights.
        patch: Side of a patch in the tower to be.
        takes_grids: Whether it has the grids of the weights.
    """
    other_patches = ours.patch != theirs.patch and patch == theirs.patch
    same_patches = (ours.patch, ours.grid) == (theirs.patch, theirs.grid)
    if takes_grids or (not ours.grids and (other_patches or same_patches)):
        return {
            "size": theirs.size,
            "drop_remainder": theirs.drop_remainder,
            "resize_side": theirs.resize_side,
        }
    # At another resolution the same share of the picture is cut off.
    cut = theirs.resize_side
    scaled = None if cut is None else max(round(cut * ours.size / theirs.size), ours.size)
    return {"resize_side": scaled}


def report(recipe: TrainConfig, config: TrainConfig, weights: Weights | None) -> list[str]:
    """Returns lines that tell a user where a recipe and the weights differ, and which is followed.

    Args:
        recipe: The recipe's configuration, overrides included.
        config: What `inherit` made of it.
        weights: What the run starts from; None for none.
    """
    before, after = (_flat(dataclasses.asdict(x)) for x in (recipe, config))
    lines = [
        f"From the weights: {key}={after[key]!r} (the recipe: {before[key]!r})"
        for key in after
        if after[key] != before.get(key)
    ]
    if weights is not None and _is_pretrained(config, "image/positions"):
        ours, theirs = config.image, weights.config.image
        if ours.size != theirs.size:
            lines.append(
                f"From the recipe: image.size={ours.size} (the weights: {theirs.size}); the "
                "positions of the patches are resampled"
            )
        elif ours.stored_grid != theirs.stored_grid:
            one, other = (f"{x.stored_grid} x {x.stored_grid}" for x in (ours, theirs))
            lines.append(
                f"From the recipe: positions of {one} patches (the weights: {other}), to which "
                "they are resampled"
            )
    return lines


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
    if other is not None and not tokenizer_json.same(other, weights.vocabulary):
        raise ValueError(
            "The vocabulary must be that of the weights, since the token table is among what is "
            "pretrained. Leave the vocabulary out, and that of the weights is taken; or leave "
            f"{TOKEN_TABLE} out of `pretrained`, and a new table is trained. Received: "
            f"vocabulary={tokenizer_json.digest(other)[:12]}, vocabulary of the weights="
            f"{tokenizer_json.digest(weights.vocabulary)[:12]}, "
            f"pretrained={list(config.pretrained)}"
        )
    return weights.vocabulary


def tokenizer(config: TrainConfig, weights: Weights | None) -> Mapping[str, bytes]:
    """Returns the files of the tokenizer that is the vocabulary of a run in another form."""
    if weights is None or not brings_vocabulary(config, weights):
        return {}
    return weights.tokenizer


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
    if weights.vocabulary is not None and not tokenizer_json.same(other, weights.vocabulary):
        raise ValueError(
            "The weights come with a vocabulary, and their token table is of no other. Leave "
            f"--vocabulary out. Received: vocabulary={tokenizer_json.digest(other)[:12]}, "
            f"vocabulary of the weights={tokenizer_json.digest(weights.vocabulary)[:12]}"
        )
    return dataclasses.replace(weights, vocabulary=weights.vocabulary or other)


def _is_pretrained(config: TrainConfig, name: str) -> bool:
    return any(re.fullmatch(pattern, name) for pattern in config.pretrained)
