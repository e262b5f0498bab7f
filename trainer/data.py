"""The training examples: deterministic order, exact resume, the served model's preprocessing."""

import json
from pathlib import Path

import tensorflow as tf

from sigline.schemas import digests, record, tf_example
from sigline.trainer import preprocess
from sigline.trainer.config import TrainConfig

_FILE_SEED, _RECORD_SEED, _CAPTION_SEED, _IMAGE_SEED = 1, 2, 3, 4


def shard_files(split_dir: str | Path) -> list[str]:
    """Returns the TFRecord shards of a split, sorted.

    Raises:
        ValueError: If there are none, or they are not those that ingest's manifest names.
    """
    files = sorted(str(path) for path in Path(split_dir).glob("*.gz"))
    manifest = _manifest(split_dir)
    if manifest is not None and {Path(file).name for file in files} != set(manifest["shards"]):
        raise ValueError(
            f"split_dir must hold the {len(manifest['shards'])} shards that the manifest beside it "
            f"names; copy the data again. Received: split_dir={split_dir} with {len(files)} shards"
        )
    if not files:
        raise ValueError(
            f"There are no TFRecord shards (*.gz) below split_dir. Received: split_dir={split_dir}"
        )
    return files


def data_digest(split_dir: str | Path) -> str:
    """Returns the digest of a split's shards: names and bytes."""
    manifest = _manifest(split_dir)
    if manifest is not None:
        return digests.json_digest(manifest["shards"])
    return digests.json_digest(
        {Path(f).name: digests.file_digest(f) for f in shard_files(split_dir)}
    )


def count_examples(split_dir: str | Path) -> int:
    """Returns the number of records of a split: from ingest's manifest, else by reading it."""
    manifest = _manifest(split_dir)
    if manifest is not None:
        return sum(shard["records"] for shard in manifest["shards"].values())
    files = shard_files(split_dir)
    dataset = tf.data.TFRecordDataset(files, compression_type=tf_example.COMPRESSION)
    try:
        return int(dataset.reduce(tf.constant(0, tf.int64), lambda count, _: count + 1))
    except tf.errors.OpError as error:
        raise unreadable(split_dir, error) from error


def embeddings(split_dir: str | Path) -> dict | None:
    """Returns what embedded the images of a split, as its manifest says, or None if nothing did."""
    return _whole_manifest(split_dir).get(record.MANIFEST_EMBEDDINGS)


def training_pairs(
    split_dir: str | Path,
    config: TrainConfig,
    tokenizer: preprocess.Tokenizer,
    *,
    first_step: int,
    num_hosts: int = 1,
    host: int = 0,
    batch_size: int | None = None,
) -> tf.data.Dataset:
    """Returns an endless stream of batches, from any step on.

    The order is a function of files and seed alone. Every epoch visits each record once: files in a
    new order, records through a shuffle buffer, one caption drawn per image. A run that resumes at
    step k reads the very batches that an uninterrupted run reads from step k on: whole epochs are
    skipped by arithmetic, the rest of the current one as encoded records, before any is decoded.

    Args:
        split_dir: Folder with the split's shards.
        config: The run's configuration.
        tokenizer: The vocabulary.
        first_step: Steps done so far.
        num_hosts: Processes that read; each gets every so many records of a global batch, all of
            which it passes over, but decodes its own only.
        host: Which of them this is.
        batch_size: Size of a batch, which divides what a host gets of a global batch; all of it by
            default.

    Returns:
        Batches of `(images, ids)`: uint8 `(batch, size, size, 3)` and int32 `(batch, length)`. Of
        a split whose images are embedded, float32 `(batch, dim)` in place of the images.
    """
    embedded = embeddings(split_dir)
    num_examples = count_examples(split_dir)
    if embedded is not None and (config.data.flip or config.data.crop_min_area is not None):
        raise ValueError(
            "Images that are embedded already cannot be cropped or flipped. Received: "
            f"data.crop_min_area={config.data.crop_min_area}, data.flip={config.data.flip}"
        )

    def _parse(serialized: tf.Tensor, number: tf.Tensor):
        if embedded is not None:
            pair = tf_example.parse_embedded(serialized, embedded["dim"])
            return pair[record.IMAGE_EMBEDDING], pair[record.TEXT]
        pair = tf_example.parse_pair(serialized)
        seed = tf.stack([number, config.seed * 8 + _IMAGE_SEED])
        image = preprocess.load_augmented_image(
            pair[record.IMAGE], config.image, config.data, seed=seed
        )
        return image, pair[record.TEXT]

    def _load(epoch: tf.Tensor, index: tf.Tensor, serialized: tf.Tensor):
        number = epoch * num_examples + index
        image, captions = _parse(serialized, number)
        seed = tf.stack([number, config.seed * 8 + _CAPTION_SEED])
        choice = tf.random.stateless_uniform(
            [], seed, maxval=tf.size(captions, tf.int64), dtype=tf.int64
        )
        return image, captions[choice]

    dataset = _records(split_dir, config, num_examples=num_examples, first_step=first_step)
    dataset = dataset.shard(num_hosts, host)
    dataset = dataset.map(_load, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    dataset = dataset.batch(
        batch_size or config.global_batch_size // num_hosts, drop_remainder=True
    )
    dataset = dataset.map(lambda image, text: (image, tokenizer(text)))
    return dataset.prefetch(2)


def _records(
    split_dir: str | Path, config: TrainConfig, *, num_examples: int, first_step: int
) -> tf.data.Dataset:
    """Returns epoch, place in the epoch and serialized record, in the order of training."""
    files = tf.constant(shard_files(split_dir))
    if not num_examples:
        raise ValueError(f"The split holds no records. Received: split_dir={split_dir}")
    seen = first_step * config.global_batch_size
    first_epoch, skip = divmod(seen, num_examples)

    def _epoch(epoch: tf.Tensor) -> tf.data.Dataset:
        seed = tf.stack([tf.constant(config.seed, tf.int64), epoch])
        order = tf.argsort(tf.random.stateless_uniform([tf.size(files)], seed + _FILE_SEED))
        dataset = tf.data.TFRecordDataset(
            tf.gather(files, order), compression_type=tf_example.COMPRESSION
        )
        # A shard that is shorter than the manifest says would shift all that follows.
        dataset = dataset.apply(tf.data.experimental.assert_cardinality(num_examples))
        shuffle_seed = tf.random.stateless_uniform(
            [], seed + _RECORD_SEED, maxval=2**31 - 1, dtype=tf.int64
        )
        # Seeds this function's graph: a graph seed of 0 may not meet an op seed that is a tensor.
        tf.random.set_seed(1)
        dataset = dataset.shuffle(
            config.data.shuffle_records,
            seed=shuffle_seed,  # pyright: ignore[reportArgumentType]  # A tensor works too.
        )
        dataset = dataset.enumerate().map(lambda index, item: (epoch, index, item))
        return dataset.skip(tf.where(epoch == first_epoch, tf.cast(skip, tf.int64), 0))

    return tf.data.Dataset.range(first_epoch, 2**31).flat_map(_epoch)


def batch_keys(split_dir: str | Path, config: TrainConfig, *, number: int) -> list[str]:
    """Returns the keys of the records that a step trains on.

    Args:
        split_dir: Folder with the split's shards.
        config: The run's configuration.
        number: Which step, counted from one.
    """
    dataset = _records(
        split_dir, config, num_examples=count_examples(split_dir), first_step=number - 1
    ).take(config.global_batch_size)
    return [tf_example.key(serialized) for _, _, serialized in dataset.as_numpy_iterator()]


def unreadable(split_dir: str | Path, error: tf.errors.OpError) -> RuntimeError:
    """Returns the error of a split that cannot be read, naming what is damaged."""
    # A picture that does not decode is no reason to read every shard.
    in_the_file = not isinstance(error, tf.errors.InvalidArgumentError)
    damaged = damaged_shards(split_dir) if in_the_file else []
    if damaged:
        return RuntimeError(
            "Training data cannot be read; write these shards again: " + "; ".join(damaged)
        )
    reason = str(error.message).strip().splitlines()[0]
    return RuntimeError(f"A record cannot be used. Received: {split_dir}: {reason}")


def damaged_shards(split_dir: str | Path) -> list[str]:
    """Returns a line for every shard that is not whole, by reading them all."""
    found = []
    manifest = _manifest(split_dir)
    for path in shard_files(split_dir):
        count = 0
        try:
            for _ in tf_example.read_shard(path):
                count += 1
        except tf.errors.OpError as error:
            reason = str(error.message).splitlines()[0]
            found.append(f"{path} after {count} whole records: {reason}")
            continue
        expected = manifest["shards"][Path(path).name]["records"] if manifest else count
        if count != expected:
            found.append(f"{path} has {count} records instead of {expected}")
    return found


def _manifest(split_dir: str | Path) -> dict | None:
    """Returns the split's part of the manifest that ingest writes beside the splits."""
    splits = _whole_manifest(split_dir).get(record.MANIFEST_SPLITS, {})
    return splits.get(Path(split_dir).name.removeprefix("Split-"))


def _whole_manifest(split_dir: str | Path) -> dict:
    path = Path(split_dir).parent / record.MANIFEST_FILE
    return json.loads(path.read_text()) if path.is_file() else {}
