"""Reads the selection of a split: which of its records are trained on."""

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from sigline.schemas.selection import SELECTION_FILE, Selection
from sigline.trainer.inputs import seeds


def load(split_dir: str | Path) -> Selection | None:
    """Returns the selection that a folder holds, None if it holds records themselves.

    Raises:
        ValueError: If the selection is damaged.
    """
    path = Path(split_dir) / SELECTION_FILE
    return _load(str(path), path.stat().st_mtime_ns) if path.is_file() else None


@lru_cache(maxsize=8)
def _load(path: str, _: int) -> Selection:
    try:
        return Selection.from_json(Path(path).read_text())
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def only(dataset: tf.data.Dataset, place: tf.Tensor, bits: list[bytes]) -> tf.data.Dataset:
    """Returns the chosen records of a shard, which `dataset` reads whole.

    Args:
        dataset: All records of a shard, in their order.
        place: Which shard, a scalar.
        bits: Of every shard a bit for each record.
    """
    flat = tf.constant(np.frombuffer(b"".join(bits), np.uint8))
    starts = tf.constant(np.cumsum([0, *map(len, bits)])[:-1], tf.int64)

    @tf.autograph.experimental.do_not_convert
    def _is_chosen(number: Any, _: tf.Tensor) -> Any:
        byte = tf.cast(tf.gather(flat, tf.gather(starts, place) + number // 8), tf.int32)
        shift = tf.cast(7 - number % 8, tf.int32)
        return tf.equal(tf.bitwise.right_shift(byte, shift) & 1, 1)

    return seeds.numbered(dataset).filter(_is_chosen).map(lambda _, serialized: serialized)
