"""What the model in the trainer makes of some records, for the exported one to be held against."""

import itertools
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import tensorflow as tf
from safetensors import numpy as safetensors

from sigline.schemas import artifacts, atomic, tf_example
from sigline.trainer.config import TrainConfig
from sigline.trainer.inputs import data, preprocess
from sigline.trainer.models import two_tower
from sigline.trainer.models.two_tower import TwoTower

RECORDS = 1024
_BATCH = 32


def write(
    path: str | Path,
    model: TwoTower,
    config: TrainConfig,
    vocabulary: bytes,
    split_dir: str | Path,
    *,
    limit: int = RECORDS,
) -> int:
    """Embeds the first records of a split as training does, and writes what comes out.

    The file holds, as safetensors, `image` and `text` of shape `(records, dim)`, the latter of each
    record's first caption, and `units`, JSON with a name for each record. A picture that does not
    decode is left out.

    Args:
        path: File to write.
        model: The trained model.
        config: The training's configuration.
        vocabulary: The training's.
        split_dir: Folder of TFRecord shards.
        limit: Largest number of records.

    Returns:
        The number of records written.
    """
    assert config.text is not None
    if config.precision != "float32":
        # What is exported computes in float32.
        model = two_tower.for_serving(model)
    tokenizer = preprocess.Tokenizer(vocabulary, config.text)
    load = _loader(config)
    serialized = itertools.chain.from_iterable(
        map(tf_example.read_shard, data.shard_files(split_dir))
    )
    records = map(tf_example.decode, itertools.islice(serialized, limit))
    found: dict[str, list[np.ndarray]] = {artifacts.PARITY_IMAGE: [], artifacts.PARITY_TEXT: []}
    units = []
    while batch := list(itertools.islice(records, _BATCH)):
        pixels, kept = [], []
        for record in batch:
            try:
                pixels.append(load(tf.constant(record.image)))
            except tf.errors.InvalidArgumentError:
                continue
            kept.append(record)
        if not kept:
            continue
        ids = tokenizer(tf.constant([record.text[0] for record in kept]))
        found[artifacts.PARITY_IMAGE].append(model.embed_image(tf.stack(pixels)).numpy())
        found[artifacts.PARITY_TEXT].append(model.embed_text(ids).numpy())
        units += [f"{record.source}/{record.key}" for record in kept]
    dim = config.image.output_dim
    arrays: dict[str, np.ndarray] = {
        name: np.concatenate([np.empty((0, dim), np.float32), *rows])
        for name, rows in found.items()
    }
    arrays[artifacts.PARITY_UNITS] = np.frombuffer(json.dumps(units).encode(), np.uint8)
    atomic.write_file(path, safetensors.save(arrays))
    return len(units)


def _loader(config: TrainConfig) -> Callable[[tf.Tensor], tf.Tensor]:
    """Returns what makes pixels in the model's range of an encoded picture, traced once."""

    @tf.function(input_signature=[tf.TensorSpec([], tf.string)], autograph=False)
    def load(encoded):
        image = preprocess.load_image(
            encoded, config.image, max_pixels=config.data.max_image_pixels
        )
        return preprocess.to_model_range(image, config.image)

    return load
