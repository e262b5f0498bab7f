"""Older layouts of big_vision's checkpoints, brought into the present one.

Positions inside the encoder, positions that count the class token, texts whose positions were added
twice, blocks numbered through, the attention pool not in a group of its own, and blocks stacked for
a loop.
"""

import math
import re
from collections.abc import Mapping

import numpy as np

_SIDES = ("params/", "opt/target/")
ATTENTION = "MultiHeadDotProductAttention_0"
# Names in the first ViTs, which numbered the sub-layers of a block through (big_vision:
# `fix_old_checkpoints`), and their names now.
_OLD_BLOCKS = (
    ("MultiHeadDotProductAttention_1", ATTENTION),
    ("LayerNorm_2", "LayerNorm_1"),
    ("MlpBlock_3", "MlpBlock_0"),
)
_POOL = ("probe", "LayerNorm_0", "MlpBlock_0", ATTENTION)
_OLD_POSITIONS = ("Transformer/posembed_input/pos_embedding", "Transformer/pos_embedding")


def normalized(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns the parameters of a checkpoint under the names of today's big_vision.

    Optimizer state is left out. Names of a plain ViT get the prefix `img/`.
    """
    parameters = {}
    for side in _SIDES:
        parameters = {n.removeprefix(side): x for n, x in tensors.items() if n.startswith(side)}
        if parameters:
            break
    parameters = {n: _plain_type(x) for n, x in (parameters or dict(tensors)).items()}
    if not any(name.startswith(("img/", "txt/")) for name in parameters):
        parameters = {f"img/{name}": value for name, value in parameters.items()}
    parameters = _unstacked(parameters)
    image = {n.removeprefix("img/"): x for n, x in parameters.items() if n.startswith("img/")}
    others = {n: x for n, x in parameters.items() if not n.startswith("img/")}
    return {f"img/{n}": x for n, x in _today(image).items()} | _texts_today(others)


def _texts_today(others: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Adds up the positions of text towers that added two tables of them, by mistake."""
    second, first = "txt/Encoder_0/pos_embedding", "txt/pos_embedding"
    if second not in others or others[second].shape != getattr(others.get(first), "shape", None):
        return others
    rest = {name: value for name, value in others.items() if name != second}
    # Add in float32, as training did: half precision would round the sum once more.
    return rest | {first: others[first].astype(np.float32) + others[second].astype(np.float32)}


def _plain_type(x: np.ndarray) -> np.ndarray:
    """Returns bfloat16, which comes back from npz files as two bytes without a type, as float32."""
    if x.dtype.kind == "V" and x.dtype.itemsize == 2:
        return (x.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    return x


def _unstacked(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Parts blocks that are stacked along a first axis."""
    unstacked = {}
    for name, value in tensors.items():
        before, stacked, after = name.partition("/encoderblock/")
        if not stacked:
            unstacked[name] = value
            continue
        for i, one in enumerate(value):
            unstacked[f"{before}/encoderblock_{i}/{after}"] = one
    return unstacked


def _today(image: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Brings older layouts of an image tower into the present one."""
    renamed = {}
    for name, value in image.items():
        renamed["pos_embedding" if name in _OLD_POSITIONS else name] = value
    if any("encoderblock_0/MlpBlock_3" in name for name in renamed):
        for old, new in _OLD_BLOCKS:
            pattern = re.compile(rf"(Transformer/encoderblock_\d+)/{old}/")
            renamed = {pattern.sub(rf"\1/{new}/", name): x for name, x in renamed.items()}
    if "probe" in renamed:
        renamed = {
            f"MAPHead_0/{name}" if name.split("/")[0] in _POOL else name: value
            for name, value in renamed.items()
        }
    table = renamed.get("pos_embedding")
    # A table of n * n + 1 positions begins with one for the class token. The present layout adds it
    # to the token itself.
    if (
        "cls" in renamed
        and table is not None
        and math.isqrt(table.shape[1] - 1) ** 2 + 1 == (table.shape[1])
    ):
        renamed["cls"] = renamed["cls"] + table[:, :1]
        renamed["pos_embedding"] = table[:, 1:]
    return renamed
