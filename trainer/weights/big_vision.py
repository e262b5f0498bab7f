"""Checkpoints of big_vision in `.npz`: two towers, LiT's image tower, plain ViTs and FlexiViTs.

Names and shapes of the tensors tell what the towers are. What they do not tell, the user states, or
it is assumed and listed.
"""

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from sigline.trainer.config import ImageTowerConfig, PairsConfig, TextTowerConfig, TrainConfig
from sigline.trainer.weights import big_vision_layouts, choices, grids
from sigline.trainer.weights.links import Link, reshaped, same

_ATTENTION = big_vision_layouts.ATTENTION
# Settings that no file tells, and that the user may state.
_CHOICES = (
    "image.size",
    "image.grids",
    "image.default_grid",
    "image.pool",
    "image.projection_tanh",
    "text.pool",
    "text.end_id",
    "text.causal",
    *choices.PIXELS,
    *choices.TEXTS,
)
# Side of the pictures of released FlexiViTs: many numbers of patches divide it.
_FLEXIVIT_SIZE = 240
# Rows of the token tables of SigLIP 2, and the text rules that it was trained with.
_SIGLIP_2_VOCABULARY = 256_000
_SIGLIP_2_TEXTS = {
    "strip_punctuation": False,
    "squeeze_whitespace": False,
    "end_piece": "<eos>",
    "pad_piece": "<pad>",
}


def settings(
    tensors: Mapping[str, np.ndarray], assignments: Iterable[str] = ()
) -> tuple[TrainConfig, list[str]]:
    """Returns a configuration whose towers are those of `normalized` tensors.

    A tower that is not there gets its default; its training is a default's.

    Args:
        tensors: The parameters.
        assignments: `KEY=VALUE` of what the file does not tell.

    Returns:
        The configuration, and what is assumed in it.

    Raises:
        ValueError: If there is no image tower, a tower of another kind, or an assignment of
            something that the file does tell.
    """
    if "img/embedding/kernel" not in tensors:
        raise ValueError(
            "The checkpoint has no image tower of big_vision. "
            f"Received: {', '.join(sorted(tensors)[:5])}, ..."
        )
    chosen = choices.parsed(assignments, _CHOICES)
    size, grids_of_user = chosen.pop("image.size", None), _grids(chosen.pop("image.grids", None))
    image, assumed = _image_tower(tensors, size, grids_of_user, chosen)
    loss = "softmax" if "t" in tensors and "b" not in tensors else "sigmoid"
    text = TextTowerConfig()
    if has_text(tensors):
        text, assumed_of_text = _text_tower(tensors, chosen)
        assumed += assumed_of_text
    elif keys := sorted(key for key in chosen if key.startswith("text.")):
        raise ValueError(f"The checkpoint has no text tower. Received: --set {keys[0]}=...")
    config = TrainConfig(
        name="big_vision_imported",
        steps=1,
        global_batch_size=1,
        image=image,
        text=text,
        objectives=(PairsConfig(loss=loss),),
    )
    return choices.applied(config, chosen), assumed


def has_text(tensors: Mapping[str, np.ndarray]) -> bool:
    """Whether there is a text tower.

    Raises:
        ValueError: If there is one that the text transformer cannot be, such as the BERT of LiT.
    """
    names = [name for name in tensors if name.startswith("txt/")]
    if names and "txt/Embed_0/embedding" not in tensors:
        raise ValueError(
            "The checkpoint's text tower is no text transformer (LiT has a BERT) and cannot be "
            f"read; leave it out with --drop 'txt/.*'. Received: {', '.join(sorted(names)[:3])}, "
            "..."
        )
    return bool(names)


def _sizes(tensors: Mapping[str, np.ndarray], encoder: str) -> dict[str, Any]:
    pattern = re.compile(rf"{encoder}/encoderblock_(\d+)/")
    depth = 1 + max(int(m[1]) for m in map(pattern.match, tensors) if m)
    width, num_heads, _ = tensors[f"{encoder}/encoderblock_0/{_ATTENTION}/query/kernel"].shape
    mlp_dim = tensors[f"{encoder}/encoderblock_0/MlpBlock_0/Dense_0/kernel"].shape[1]
    return {"width": width, "depth": depth, "mlp_dim": mlp_dim, "num_heads": num_heads}


def _grids(text: str | None) -> tuple[int, ...]:
    """Returns the grids that the user states; none without a statement."""
    if text is None:
        return ()
    try:
        values = json.loads(text)
    except json.JSONDecodeError:
        values = None
    if not isinstance(values, list) or not values or not all(type(x) is int for x in values):
        raise ValueError(
            "image.grids must be a list of patches along a side, such as [5,6,8,10,12,15,16]. "
            f"Received: image.grids={text}"
        )
    return tuple(values)


def _image_tower(
    tensors: Mapping[str, np.ndarray],
    size: str | None,
    grids_of_user: tuple[int, ...],
    chosen: Mapping[str, str],
) -> tuple[ImageTowerConfig, list[str]]:
    """Returns the image tower, and what is assumed of it.

    Args:
        tensors: The parameters.
        size: What the user says of the side of the pictures.
        grids_of_user: And of its grids, which make it a FlexiViT: no file tells them.
        chosen: What else.
    """
    patch = _patch(tensors["img/embedding/kernel"])
    table, flexible = tensors.get("img/pos_embedding"), {}
    if grids_of_user:
        side, assumed = _flexible_size(size)
        flexible = {"grids": grids_of_user, "position_grid": _position_grid(table)}
    else:
        side, assumed = _size(table, patch, size)
    pool_of_file = (
        "map" if "img/MAPHead_0/probe" in tensors else "tok" if "img/cls" in tensors else None
    )
    pool = chosen.get("image.pool", pool_of_file or "gap")
    if pool_of_file is not None or pool in ("map", "tok"):
        _check_pool("image", pool, pool_of_file)
    elif "image.pool" not in chosen:
        assumed.append("image.pool=gap")
    if not any(key in chosen for key in choices.PIXELS):
        assumed.append("pixels as of big_vision: bilinear, image.antialias=false")
    heads, head = {}, tensors.get("img/head/kernel")
    heads[_head_of(tensors)] = None if head is None else head.shape[1]
    if heads.keys() == {"classes"} and "img/pre_logits/kernel" in tensors:
        heads["projection"] = tensors["img/pre_logits/kernel"].shape[1]
        heads["projection_tanh"] = True
        if "image.projection_tanh" not in chosen:
            assumed.append("image.projection_tanh=true: a tanh follows pre_logits")
    tower = ImageTowerConfig(
        size=side,
        patch=patch,
        pool=pool,
        positions="learned" if table is not None else "sincos2d",
        drop_remainder=bool(side % patch) and not flexible,
        **flexible,
        **heads,
        **_sizes(tensors, "img/Transformer"),
    )
    return tower, assumed


def _patch(kernel: np.ndarray) -> int:
    """Returns the side of a patch."""
    if kernel.ndim == 2:
        raise ValueError(
            "Towers for pictures of any aspect (NaFlex) cannot be read, only those for squares. "
            f"Received: img/embedding/kernel of shape {kernel.shape}"
        )
    if kernel.ndim != 4 or kernel.shape[0] != kernel.shape[1] or kernel.shape[2] != 3:
        raise ValueError(
            "Patches must be square, of 3 channels. "
            f"Received: img/embedding/kernel of shape {kernel.shape}"
        )
    return kernel.shape[0]


def _size(table: np.ndarray | None, patch: int, asked: str | None) -> tuple[int, list[str]]:
    """Returns the side of the pictures, and what is assumed of it.

    Args:
        table: Learned positions; None for fixed ones.
        patch: Side of a patch.
        asked: What the user says of it.
    """
    if asked is not None and not (asked.isdecimal() and int(asked) >= patch):
        raise ValueError(
            f"image.size must be a whole number of at least {patch}, a patch. "
            f"Received: image.size={asked}"
        )
    if table is None:
        if asked is None:
            raise ValueError(
                "The file has fixed positions and does not tell how large its pictures are. Import "
                "it by `sigline weights import --set image.size=N`. Received: no img/pos_embedding"
            )
        return int(asked), []
    if table.ndim != 3:
        raise ValueError(
            "Positions must be a table of patches. "
            f"Received: img/pos_embedding of shape {table.shape}"
        )
    grid = grids.side(table.shape[1])
    if asked is None:
        grids.check_square(table[0])
        size = grids.size(grid, patch)
        return size, [f"image.size={size}: {grid} x {grid} patches of {patch} pixels"]
    if int(asked) // patch != grid:
        raise ValueError(
            f"image.size must be {grid * patch} to {grid * patch + patch - 1}, since the file has "
            f"positions of {grid} x {grid} patches of {patch} pixels. Received: image.size={asked}"
        )
    return int(asked), []


def _flexible_size(asked: str | None) -> tuple[int, list[str]]:
    """Returns the side of a FlexiViT's pictures, and what is assumed of it."""
    if asked is None:
        return _FLEXIVIT_SIZE, [f"image.size={_FLEXIVIT_SIZE}, as of released FlexiViTs"]
    if not (asked.isdecimal() and int(asked)):
        raise ValueError(
            "image.size must be a whole number that each of image.grids divides. "
            f"Received: image.size={asked}"
        )
    return int(asked), []


def _position_grid(table: np.ndarray | None) -> int:
    """Returns the patches along a side of the stored positions of a FlexiViT."""
    if table is None or table.ndim != 3:
        raise ValueError(
            "A FlexiViT has learned positions, which are resized to each of image.grids; leave "
            "image.grids out for a ViT of one size. Received: "
            + ("no img/pos_embedding" if table is None else f"img/pos_embedding {table.shape}")
        )
    return grids.side(table.shape[1])


def _check_pool(tower: str, pool: str, pool_of_file: str | None) -> None:
    """Refuses a pool that the file has no parameters for, or that leaves some of it unused."""
    if pool != pool_of_file:
        raise ValueError(
            f"{tower}.pool must be {pool_of_file or 'one without parameters'}, which is what the "
            f"file holds. Received: {tower}.pool={pool}"
        )


def _head_of(tensors: Mapping[str, np.ndarray]) -> str:
    """Returns what the image tower's head is: of two towers a projection, else of classes."""
    pair = "t" in tensors or any(name.startswith("txt/") for name in tensors)
    return "projection" if pair else "classes"


def _text_tower(
    tensors: Mapping[str, np.ndarray], chosen: Mapping[str, str]
) -> tuple[TextTowerConfig, list[str]]:
    """Returns the text tower, and what is assumed of it; see `_image_tower`."""
    rows = tensors["txt/Embed_0/embedding"].shape[0]
    pool_of_file = "map" if "txt/MAPHead_0/probe" in tensors else None
    pool = chosen.get("text.pool", pool_of_file or "last")
    assumed = []
    if pool_of_file is not None or pool == "map":
        _check_pool("text", pool, pool_of_file)
    elif "text.pool" not in chosen:
        assumed.append("text.pool=last")
    texts: dict[str, Any] = _SIGLIP_2_TEXTS if rows == _SIGLIP_2_VOCABULARY else {}
    if not any(key in chosen for key in choices.TEXTS):
        assumed.append(f"texts as of SigLIP{' 2' if texts else ''}")
    end_id = chosen.get("text.end_id")
    tower = TextTowerConfig(
        vocabulary_size=rows,
        length=tensors["txt/pos_embedding"].shape[1],
        pool=pool,
        # A placeholder, which `choices.applied` replaces by the value that the user states.
        end_id=0 if end_id is not None and pool == "end" else None,
        **texts,
        **_sizes(tensors, "txt/Encoder_0"),
    )
    return tower, assumed


def links(config: TrainConfig, *, text: bool, scalars: bool) -> list[Link]:
    """Returns how the tensors of a checkpoint are the parameters of a model.

    Args:
        config: The model.
        text: Whether the checkpoint has a text tower.
        scalars: Whether it has a temperature (and a bias, with the sigmoid loss).
    """
    all_links = _image_links(config.image, pair=text or scalars)
    if text:
        all_links += [
            same("txt/Embed_0/embedding", "text/tokens"),
            same("txt/pos_embedding", "text/positions"),
            *_encoder("txt/Encoder_0", "text", config.text_tower),
            *_dense("txt/head", "text/head"),
        ]
        if config.text_tower.pool == "map":
            all_links += _pool("txt/MAPHead_0", "text/pool", config.text_tower)
    if scalars:
        names = {"t": "log_temperature"} | ({"b": "bias"} if config.pair_loss == "sigmoid" else {})
        all_links += [
            reshaped(theirs, ours, theirs_shape=(1,), ours_shape=())
            for theirs, ours in names.items()
        ]
    return all_links


def _image_links(image: ImageTowerConfig, *, pair: bool) -> list[Link]:
    patch, width = image.patch, image.width
    image_links = [
        reshaped(
            "img/embedding/kernel",
            "image/embedding/kernel",
            theirs_shape=(patch, patch, 3, width),
            ours_shape=(patch * patch * 3, width),
        ),
        same("img/embedding/bias", "image/embedding/bias"),
        *_encoder("img/Transformer", "image", image),
    ]
    if image.positions == "learned":
        image_links.append(same("img/pos_embedding", "image/positions"))
    if image.pool == "tok":
        image_links.append(same("img/cls", "image/token"))
    if image.pool == "map":
        image_links += _pool("img/MAPHead_0", "image/pool", image)
    if image.projection is not None:
        image_links += _dense("img/head" if pair else "img/pre_logits", "image/projection")
    if image.classes is not None:
        image_links += _dense("img/head", "image/head")
    return image_links


def _pool(theirs: str, ours: str, tower: ImageTowerConfig | TextTowerConfig) -> list[Link]:
    return [
        same(f"{theirs}/probe", f"{ours}/probe"),
        *_attention(f"{theirs}/{_ATTENTION}", f"{ours}/attention", tower),
        *_norm(f"{theirs}/LayerNorm_0", f"{ours}/norm"),
        *_mlp(f"{theirs}/MlpBlock_0", f"{ours}/mlp"),
    ]


def _dense(theirs: str, ours: str) -> list[Link]:
    return [same(f"{theirs}/{name}", f"{ours}/{name}") for name in ("kernel", "bias")]


def _norm(theirs: str, ours: str) -> list[Link]:
    return [same(f"{theirs}/scale", f"{ours}/gamma"), same(f"{theirs}/bias", f"{ours}/beta")]


def _mlp(theirs: str, ours: str) -> list[Link]:
    return [
        *_dense(f"{theirs}/Dense_0", f"{ours}/up"),
        *_dense(f"{theirs}/Dense_1", f"{ours}/down"),
    ]


def _attention(theirs: str, ours: str, tower: ImageTowerConfig | TextTowerConfig) -> list[Link]:
    width, heads = tower.width, tower.num_heads
    size = width // heads
    projections = []
    for name in ("query", "key", "value"):
        projections += [
            reshaped(
                f"{theirs}/{name}/kernel",
                f"{ours}/{name}/kernel",
                theirs_shape=(width, heads, size),
                ours_shape=(width, width),
            ),
            reshaped(
                f"{theirs}/{name}/bias",
                f"{ours}/{name}/bias",
                theirs_shape=(heads, size),
                ours_shape=(width,),
            ),
        ]
    return [
        *projections,
        reshaped(
            f"{theirs}/out/kernel",
            f"{ours}/out/kernel",
            theirs_shape=(heads, size, width),
            ours_shape=(width, width),
        ),
        same(f"{theirs}/out/bias", f"{ours}/out/bias"),
    ]


def _encoder(theirs: str, ours: str, tower: ImageTowerConfig | TextTowerConfig) -> list[Link]:
    encoder_links = _norm(f"{theirs}/encoder_norm", f"{ours}/encoder/norm")
    for i in range(tower.depth):
        layer, block = f"{theirs}/encoderblock_{i}", f"{ours}/encoder/block_{i}"
        encoder_links += _norm(f"{layer}/LayerNorm_0", f"{block}/attention_norm")
        encoder_links += _norm(f"{layer}/LayerNorm_1", f"{block}/mlp_norm")
        encoder_links += _attention(f"{layer}/{_ATTENTION}", f"{block}/attention", tower)
        encoder_links += _mlp(f"{layer}/MlpBlock_0", f"{block}/mlp")
    return encoder_links
