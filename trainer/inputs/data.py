"""The training examples: deterministic order, exact resume, the served model's preprocessing."""

from collections.abc import Mapping, Sequence

import tensorflow as tf

from sigline.schemas import record, tf_example
from sigline.trainer.config import TrainConfig
from sigline.trainer.inputs import buffer_order, labels, order, preprocess, seeds, shards
from sigline.trainer.inputs.needs import IMAGE, LABEL, TEXT, Needs
from sigline.trainer.inputs.shards import Folders


def training_batches(
    folders: Folders,
    config: TrainConfig,
    needs: Needs,
    *,
    first_step: int,
    replaced: Mapping[str, str] | None = None,
    num_hosts: int = 1,
    host: int = 0,
    batch_size: int | None = None,
) -> tf.data.Dataset:
    """Returns an endless stream of batches, from any step on.

    The order is a function of files, seed and lanes alone, see `order`. Every epoch visits each
    record once, one caption drawn per image. From several folders every batch takes the same
    numbers. A run that resumes at step k reads the very batches that an uninterrupted run reads
    from step k on, and what it reads before, a part of a shard and of a block for each lane, is
    passed over as encoded records, before any is decoded.

    Args:
        folders: Folder with the split's shards, or several to mix; see `DataConfig.mixture`.
        config: The run's configuration.
        needs: What a batch holds.
        first_step: Steps done so far.
        replaced: Paths of files to read in place of shards.
        num_hosts: Processes that read; each gets an equal part of every global batch, the parts of
            all, one behind the other, are the batch of one alone.
        host: Which of them this is.
        batch_size: Size of a batch, which divides what a host gets of a global batch; all of it by
            default.

    Returns:
        Batches of the views in `needs.images`, uint8 `(batch, size, size, 3)`, or `image` alone,
        float32 `(batch, dim)`, of a split whose images are embedded; the texts in `needs.texts`,
        int32 `(batch, length)`, all of the same caption; and with `needs.labels` also `label`,
        int32 `(batch, most)`.

    Raises:
        ValueError: If the folders do not fit the configuration or each other.
        tf.errors.OpError: If a folder has to be read to count its records and cannot be.
    """
    embedded = shards.embeddings(folders)
    if embedded is not None:
        check_embedded(config)

    def _pixels(example: dict[str, tf.Tensor], number: tf.Tensor) -> dict[str, tf.Tensor]:
        if embedded is not None:
            return {IMAGE: example[record.IMAGE_EMBEDDING]}
        # What is drawn for an example depends on the seed, the visit and the purpose alone.
        seed = tf.stack([number, seeds.of(config.seed, seeds.IMAGE)])
        return preprocess.load_views(example[record.IMAGE], needs.images, config.data, seed=seed)

    @tf.autograph.experimental.do_not_convert
    def _load(number: tf.Tensor, serialized: tf.Tensor):
        dim = None if embedded is None else embedded["dim"]
        example = tf_example.parse(serialized, embedding_dim=dim)
        loaded = _pixels(example, number)
        if needs.labels is not None:
            loaded[LABEL] = labels.row(example[record.LABEL], needs.labels)
        if needs.texts:
            captions = example[record.TEXT]
            seed = tf.stack([number, seeds.of(config.seed, seeds.CAPTION)])
            choice = tf.random.stateless_uniform(
                [], seed, maxval=tf.size(captions, tf.int64), dtype=tf.int64
            )
            loaded[TEXT] = captions[choice]
        return loaded

    @tf.autograph.experimental.do_not_convert
    def _tokenize(batch: dict[str, tf.Tensor]):
        rest = {name: value for name, value in batch.items() if name != TEXT}
        return rest | {name: read(batch[TEXT]) for name, read in needs.texts.items()}

    dataset = _records(
        folders, config, first_step=first_step, replaced=replaced, num_hosts=num_hosts, host=host
    )
    dataset = dataset.map(_load, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    dataset = dataset.batch(
        batch_size or config.global_batch_size // num_hosts, drop_remainder=True
    )
    # Examples that are prepared in parallel keep all cores busy; parallelism within an operation
    # would only hand parts of one picture around.
    options = tf.data.Options()
    options.threading.max_intra_op_parallelism = 1
    return dataset.map(_tokenize).prefetch(2).with_options(options)


def check_embedded(config: TrainConfig) -> None:
    """Raises ValueError if a run changes pictures, which it cannot if they are embedded already."""
    augmented = config.data.randaugment is not None
    cropped = config.data.crop_min_area is not None
    changed = config.data.flip, cropped, augmented, config.data.mixup
    others = [item.name for item in config.objectives if not item.takes_embedded]
    if any(changed) or others:
        raise ValueError(
            "Images that are embedded already cannot be cropped, flipped, augmented, mixed, or "
            "shown to a teacher or a head; only objectives of pairs take them. "
            f"Received: data.crop_min_area={config.data.crop_min_area}, "
            f"data.flip={config.data.flip}, data.randaugment={'given' if augmented else 'none'}, "
            f"data.mixup={config.data.mixup}, other objectives={others}"
        )


def shares(weights: Sequence[float], batch_size: int) -> list[int]:
    """Returns how many of a batch's examples come from each folder: weights, rounded.

    Raises:
        ValueError: If one of them gets none.
    """
    exact = [batch_size * weight / sum(weights) for weight in weights]
    numbers = [int(x) for x in exact]
    # The largest remainders are rounded up, the earlier one of equal ones.
    ranked = sorted(range(len(exact)), key=lambda i: numbers[i] - exact[i])
    for i in ranked[: batch_size - sum(numbers)]:
        numbers[i] += 1
    if 0 in numbers:
        raise ValueError(
            "Each folder must have an example in every batch; raise its weight in data.mixture or "
            f"global_batch_size. Received: weights={list(weights)}, global_batch_size={batch_size}"
        )
    return numbers


def _records(
    folders: Folders,
    config: TrainConfig,
    *,
    first_step: int,
    replaced: Mapping[str, str] | None = None,
    num_hosts: int = 1,
    host: int = 0,
) -> tf.data.Dataset:
    """Returns a number for each visit of a record, and the record, in the order of training."""
    splits = [shards.open_split(split_dir, replaced) for split_dir in shards.listed(folders)]
    weights = config.data.mixture or [split.num_examples for split in splits]
    if len(weights) != len(splits):
        raise ValueError(
            "data.mixture must have a weight for each folder, or be empty. "
            f"Received: data.mixture={list(weights)}, folders={len(splits)}"
        )
    # The number of examples by folder is the same in every batch, so that the visits of a folder
    # before any step follow by multiplication.
    parts = shares(weights, config.global_batch_size)
    hosts = {"num_hosts": num_hosts, "host": host}
    if config.data.lanes is None:
        return buffer_order.records(splits, config, parts, first_step=first_step, **hosts)
    splits = [split.visited_shards() for split in splits]
    return order.records(splits, config, parts, first_step=first_step, **hosts)


def batch_keys(
    folders: Folders,
    config: TrainConfig,
    *,
    number: int,
    replaced: Mapping[str, str] | None = None,
) -> list[str]:
    """Returns the keys of the records that a step trains on; the arguments are `batch_records`'."""
    batch = batch_records(folders, config, number=number, replaced=replaced)
    return [tf_example.key(serialized) for serialized in batch]


def batch_records(
    folders: Folders,
    config: TrainConfig,
    *,
    number: int,
    replaced: Mapping[str, str] | None = None,
) -> list[bytes]:
    """Returns the serialized records that a step trains on.

    Args:
        folders: As in `training_batches`.
        config: The run's configuration.
        number: Which step, counted from one.
        replaced: As in `training_batches`.
    """
    dataset = _records(folders, config, first_step=number - 1, replaced=replaced)
    batch = dataset.take(config.global_batch_size)
    return [bytes(serialized) for _, serialized in batch.as_numpy_iterator()]
