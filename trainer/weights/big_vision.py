"""Checkpoints of big_vision in `.npz`: two towers, the image tower of LiT, and plain ViTs.

What the towers are is read from names and shapes. Older layouts are brought into the present one:
positions inside the encoder, positions that count the class token, blocks numbered through, the
attention pool not in a group of its own, and blocks stacked for a loop.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from sigline.trainer.config import ImageTowerConfig, LossConfig, TextTowerConfig, TrainConfig
from sigline.trainer.weights.links import Link, reshaped, same

_SIDES = ("params/", "opt/target/")
_ATTENTION = "MultiHeadDotProductAttention_0"
# Of the first ViTs, whose sub-layers were numbered through (`fix_old_checkpoints` there).
_OLD_BLOCKS = (
    ("MultiHeadDotProductAttention_1", _ATTENTION),
    ("LayerNorm_2", "LayerNorm_1"),
    ("MlpBlock_3", "MlpBlock_0"),
)
_POOL = ("probe", "LayerNorm_0", "MlpBlock_0", _ATTENTION)


def normalized(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns the parameters of a checkpoint under the names of today's big_vision.

    Optimizer state is left out. Names of a plain ViT get the prefix `img/`.
    """
    found = {}
    for side in _SIDES:
        found = {n.removeprefix(side): x for n, x in tensors.items() if n.startswith(side)}
        if found:
            break
    found = {n: _plain_type(x) for n, x in (found or dict(tensors)).items()}
    if not any(name.startswith(("img/", "txt/")) for name in found):
        found = {f"img/{name}": value for name, value in found.items()}
    found = _unstacked(found)
    image = {n.removeprefix("img/"): x for n, x in found.items() if n.startswith("img/")}
    others = {n: x for n, x in found.items() if not n.startswith("img/")}
    return {f"img/{n}": x for n, x in _today(image).items()} | others


def _plain_type(x: np.ndarray) -> np.ndarray:
    """Returns bfloat16, which comes back from npz files as two bytes without a type, as float32."""
    if x.dtype.kind == "V" and x.dtype.itemsize == 2:
        return (x.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    return x


def _unstacked(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Parts blocks that are stacked along a first axis."""
    found = {}
    for name, value in tensors.items():
        before, stacked, after = name.partition("/encoderblock/")
        if not stacked:
            found[name] = value
            continue
        for i, one in enumerate(value):
            found[f"{before}/encoderblock_{i}/{after}"] = one
    return found


def _today(image: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Brings older layouts of an image tower into the present one."""
    found = {}
    for name, value in image.items():
        name = name.replace("Transformer/posembed_input/pos_embedding", "pos_embedding")
        found[name] = value
    if any("encoderblock_0/MlpBlock_3" in name for name in found):
        for old, new in _OLD_BLOCKS:
            pattern = re.compile(rf"(Transformer/encoderblock_\d+)/{old}/")
            found = {pattern.sub(rf"\1/{new}/", name): x for name, x in found.items()}
    if "probe" in found:
        found = {
            f"MAPHead_0/{name}" if name.split("/")[0] in _POOL else name: value
            for name, value in found.items()
        }
    table = found.get("pos_embedding")
    if "cls" in found and table is not None and math.isqrt(table.shape[1]) ** 2 != table.shape[1]:
        found["cls"] = found["cls"] + table[:, :1]
        found["pos_embedding"] = table[:, 1:]
    return found


def settings(tensors: Mapping[str, np.ndarray]) -> TrainConfig:
    """Returns a configuration whose towers are those of `normalized` tensors.

    A tower that is not there gets its default; its training is a default's.

    Raises:
        ValueError: If there is no image tower, or a text tower of another kind.
    """
    if "img/embedding/kernel" not in tensors:
        raise ValueError(
            "The checkpoint has no image tower of big_vision. "
            f"Received: {', '.join(sorted(tensors)[:5])}, ..."
        )
    image = _image_tower(tensors)
    loss = LossConfig(name="softmax" if "t" in tensors and "b" not in tensors else "sigmoid")
    text = TextTowerConfig()
    if has_text(tensors):
        text = _text_tower(tensors)
    return TrainConfig(
        name="big_vision_imported", steps=1, global_batch_size=1, image=image, text=text, loss=loss
    )


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


def _image_tower(tensors: Mapping[str, np.ndarray]) -> ImageTowerConfig:
    patch = tensors["img/embedding/kernel"].shape[0]
    learned = "img/pos_embedding" in tensors
    grid = math.isqrt(tensors["img/pos_embedding"].shape[1]) if learned else 224 // patch
    pool = "map" if "img/MAPHead_0/probe" in tensors else "tok" if "img/cls" in tensors else "gap"
    head = tensors.get("img/head/kernel")
    return ImageTowerConfig(
        size=grid * patch,
        patch=patch,
        pool=pool,
        positions="learned" if learned else "sincos2d",
        **{_head_of(tensors): None if head is None else head.shape[1]},
        **_sizes(tensors, "img/Transformer"),
    )


def _head_of(tensors: Mapping[str, np.ndarray]) -> str:
    """Returns what the image tower's head is: of two towers a projection, else of classes."""
    pair = "t" in tensors or any(name.startswith("txt/") for name in tensors)
    return "projection" if pair else "classes"


def _text_tower(tensors: Mapping[str, np.ndarray]) -> TextTowerConfig:
    return TextTowerConfig(
        vocabulary_size=tensors["txt/Embed_0/embedding"].shape[0],
        length=tensors["txt/pos_embedding"].shape[1],
        **_sizes(tensors, "txt/Encoder_0"),
    )


def links(config: TrainConfig, *, text: bool, scalars: bool) -> list[Link]:
    """Returns how the tensors of a checkpoint are the parameters of a model.

    Args:
        config: The model.
        text: Whether the checkpoint has a text tower.
        scalars: Whether it has a temperature (and a bias, with the sigmoid loss).
    """
    found = _image_links(config.image)
    if text:
        found += [
            same("txt/Embed_0/embedding", "text/tokens"),
            same("txt/pos_embedding", "text/positions"),
            *_encoder("txt/Encoder_0", "text", config.text_tower),
            *_dense("txt/head", "text/head"),
        ]
    if scalars:
        names = {"t": "log_temperature"} | ({"b": "bias"} if config.loss.name == "sigmoid" else {})
        found += [
            reshaped(theirs, ours, theirs_shape=(1,), ours_shape=())
            for theirs, ours in names.items()
        ]
    return found


def _image_links(image: ImageTowerConfig) -> list[Link]:
    patch, width = image.patch, image.width
    found = [
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
        found.append(same("img/pos_embedding", "image/positions"))
    if image.pool == "tok":
        found.append(same("img/cls", "image/token"))
    if image.pool == "map":
        found += [
            same("img/MAPHead_0/probe", "image/pool/probe"),
            *_attention(f"img/MAPHead_0/{_ATTENTION}", "image/pool/attention", image),
            *_norm("img/MAPHead_0/LayerNorm_0", "image/pool/norm"),
            *_mlp("img/MAPHead_0/MlpBlock_0", "image/pool/mlp"),
        ]
    if image.projection is not None:
        found += _dense("img/head", "image/projection")
    if image.classes is not None:
        found += _dense("img/head", "image/head")
    return found


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
    found = []
    for name in ("query", "key", "value"):
        found += [
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
        *found,
        reshaped(
            f"{theirs}/out/kernel",
            f"{ours}/out/kernel",
            theirs_shape=(heads, size, width),
            ours_shape=(width, width),
        ),
        same(f"{theirs}/out/bias", f"{ours}/out/bias"),
    ]


def _encoder(theirs: str, ours: str, tower: ImageTowerConfig | TextTowerConfig) -> list[Link]:
    found = _norm(f"{theirs}/encoder_norm", f"{ours}/encoder/norm")
    for i in range(tower.depth):
        layer, block = f"{theirs}/encoderblock_{i}", f"{ours}/encoder/block_{i}"
        found += _norm(f"{layer}/LayerNorm_0", f"{block}/attention_norm")
        found += _norm(f"{layer}/LayerNorm_1", f"{block}/mlp_norm")
        found += _attention(f"{layer}/{_ATTENTION}", f"{block}/attention", tower)
        found += _mlp(f"{layer}/MlpBlock_0", f"{block}/mlp")
    return found
