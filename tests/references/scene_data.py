"""Scenes as training data: records, a split of shards, and a vocabulary of their captions."""

import hashlib
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sigline.components.scenes import draw, grammar
from sigline.components.vocabulary.vocabulary import train_vocabulary
from sigline.schemas import tf_example
from sigline.schemas.record import ImageTextRecord


def records(count: int = 100) -> list[ImageTextRecord]:
    """Returns scenes as records, encoded for TFRecords."""
    scenes = []
    for index in range(count):
        rng = np.random.default_rng(index)
        scene = grammar.sample_scene(rng, held_out=False)
        buffer = io.BytesIO()
        draw.draw_scene(scene, rng).save(buffer, "PNG")
        image = buffer.getvalue()
        scenes.append(
            ImageTextRecord(
                key=f"{index:03d}",
                image=image,
                text=scene.captions(),
                language=("en",) * len(scene.captions()),
                source="scenes",
                width=draw.SIZE,
                height=draw.SIZE,
                image_sha256=hashlib.sha256(image).digest(),
                image_phash=index,
                label=() if scene.label is None else (scene.label,),
            )
        )
    return scenes


def write_split(folder: Path, scenes: Sequence[ImageTextRecord]) -> Path:
    """Writes records as a training split of two shards; returns its folder."""
    split = folder / "Split-train"
    split.mkdir()
    for shard in range(2):
        encoded = [tf_example.encode(item) for item in scenes[shard::2]]
        tf_example.write_shard(str(split / f"data_tfrecord-{shard:05d}-of-00002.gz"), encoded)
    return split


def vocabulary() -> bytes:
    """Returns a vocabulary of the scenes' captions."""
    names = grammar.label_set().names
    captions = [f"a {size} {name} left of a {name}" for name in names for size in grammar.SIZES]
    return train_vocabulary(captions, vocabulary_size=200)
