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
from sigline.trainer.inputs import preprocess, shards
from sigline.trainer.models import two_tower
from sigline.trainer.models.two_tower import TwoTower

RECORDS = 1024
_BATCH = 32


def write(
    path: str | Path,
    model: TwoTower,
    config: TrainConfig,
    vocabulary: bytes | None,
    split_dir: str | Path,
    *,
    limit: int = RECORDS,
) -> int:
    """Computes what a model says of the first records of a split, and writes it.

    The file holds, as safetensors, `image`, unit embeddings of shape `(records, dim)`; of a model
    that reads, `text` of each record's first caption, NaN where it has none; of a model with a
    head, `class_logits` of shape `(records, classes)`; and `units`, JSON with a name for each
    record. A picture that does not decode is left out.

    Args:
        path: File to write.
        model: The trained model.
        config: The training's configuration.
        vocabulary: The training's; None for a model of images alone.
        split_dir: Folder of TFRecord shards.
        limit: Largest number of records.

    Returns:
        The number of records written.
    """
    if config.precision != "float32":
        # The exported model computes in float32.
        model = two_tower.for_serving(model)
    tokenizer = None
    if config.text is not None:
        if vocabulary is None:
            raise ValueError("A model with a text tower needs a vocabulary. Received: none")
        tokenizer = preprocess.Tokenizer(vocabulary, config.text)
    load = _loader(config)
    serialized = itertools.chain.from_iterable(
        map(tf_example.read_shard, shards.shard_files(split_dir))
    )
    records = map(tf_example.decode, itertools.islice(serialized, limit))
    rows: dict[str, list[np.ndarray]] = {
        name: [np.empty((0, width), np.float32)] for name, width in _widths(config).items()
    }
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
        outputs = model.look(tf.stack(pixels))
        rows[artifacts.PARITY_IMAGE].append(outputs[two_tower.EMBEDDING].numpy())
        if config.image.classes is not None:
            rows[artifacts.PARITY_CLASSES].append(outputs[two_tower.CLASSES].numpy())
        if tokenizer is not None:
            captions = [record.text[0] if record.text else "" for record in kept]
            text = model.embed_text(tokenizer(tf.constant(captions))).numpy()
            text[[not record.text for record in kept]] = np.nan
            rows[artifacts.PARITY_TEXT].append(text)
        units += [f"{record.source}/{record.key}" for record in kept]
    arrays: dict[str, np.ndarray] = {name: np.concatenate(parts) for name, parts in rows.items()}
    arrays[artifacts.PARITY_UNITS] = np.frombuffer(json.dumps(units).encode(), np.uint8)
    atomic.write_file(path, safetensors.save(arrays))
    return len(units)


def _widths(config: TrainConfig) -> dict[str, int]:
    """Returns the numbers of a row of each of the arrays that a model has."""
    dim = config.image.output_dim
    widths = {artifacts.PARITY_IMAGE: dim}
    if config.text is not None:
        widths[artifacts.PARITY_TEXT] = dim
    if config.image.classes is not None:
        widths[artifacts.PARITY_CLASSES] = config.image.classes
    return widths


def _loader(config: TrainConfig) -> Callable[[tf.Tensor], tf.Tensor]:
    """Returns what makes pixels in the model's range of an encoded picture, traced once."""

    @tf.function(input_signature=[tf.TensorSpec([], tf.string)], autograph=False)
    def load(encoded):
        image = preprocess.load_image(
            encoded, config.image, max_pixels=config.data.max_image_pixels
        )
        return preprocess.to_model_range(image, config.image)

    return load
