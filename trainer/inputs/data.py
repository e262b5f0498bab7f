"""The training examples: deterministic order, exact resume, the served model's preprocessing."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import tensorflow as tf

from sigline.schemas import digests, record, tf_example
from sigline.trainer.config import TrainConfig
from sigline.trainer.inputs import labels, preprocess, selections
from sigline.trainer.inputs.needs import IMAGE, LABEL, TEXT, Needs

# One folder of a split, or several to mix.
Folders = str | Path | Sequence[str | Path]

_FILE_SEED, _RECORD_SEED, _CAPTION_SEED, _IMAGE_SEED, _MIXTURE_SEED = 1, 2, 3, 4, 5
# Distance between the numbers of visits of two folders: more than any run visits.
_NUMBERS_PER_FOLDER = 1 << 40


def shard_files(split_dir: str | Path) -> list[str]:
    """Returns the TFRecord shards of a split, sorted; of a selection those it chooses from.

    Raises:
        ValueError: If there are none, or they are not those that ingest's manifest names.
    """
    split_dir = _records_dir(split_dir)
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


def listed(folders: Folders) -> list[Path]:
    """Returns the folders of one or several splits."""
    return [Path(folders)] if isinstance(folders, str | Path) else [Path(x) for x in folders]


def data_digest(folders: Folders) -> str:
    """Returns the digest of the splits' shards: names and bytes."""
    split_digests = []
    for split_dir in listed(folders):
        manifest = _manifest(split_dir)
        shards = (
            {Path(f).name: digests.file_digest(f) for f in shard_files(split_dir)}
            if manifest is None
            else manifest["shards"]
        )
        selection = selections.load(split_dir)
        if selection is not None:
            chosen = {name: shard.bits.hex() for name, shard in selection.shards.items()}
            shards = {"shards": shards, "chosen": chosen}
        split_digests.append(digests.json_digest(shards))
    return split_digests[0] if len(split_digests) == 1 else digests.json_digest(split_digests)


def count_examples(split_dir: str | Path, replaced: Mapping[str, str] | None = None) -> int:
    """Returns the number of records of a split: from ingest's manifest, else by reading it.

    For a selection this is the number of records that it chooses.

    Raises:
        tf.errors.OpError: If it has to be read and cannot be.
    """
    selection = selections.load(split_dir)
    if selection is not None:
        return selection.selected
    manifest = _manifest(split_dir)
    if manifest is not None:
        return sum(shard["records"] for shard in manifest["shards"].values())
    files = [(replaced or {}).get(path, path) for path in shard_files(split_dir)]
    dataset = tf.data.TFRecordDataset(files, compression_type=tf_example.COMPRESSION)
    one_more = tf.autograph.experimental.do_not_convert(lambda count, _: count + 1)
    return int(dataset.reduce(tf.constant(0, tf.int64), one_more))


def shard_names(folders: Folders) -> dict[str, str]:
    """Returns a name for each shard that stays where the folders are moved: place and file name."""
    return {
        path: f"{place}/{Path(path).name}"
        for place, split_dir in enumerate(listed(folders))
        for path in shard_files(split_dir)
    }


def expected_records(folders: Folders) -> dict[str, int | None]:
    """Returns how many records each shard should have, None where no manifest says it."""
    counts: dict[str, int | None] = {}
    for split_dir in listed(folders):
        manifest = _manifest(split_dir)
        for path in shard_files(split_dir):
            counts[path] = manifest["shards"][Path(path).name]["records"] if manifest else None
    return counts


def embeddings(folders: Folders) -> dict | None:
    """Returns what embedded the images of the splits, as manifests say; None if nothing did.

    Raises:
        ValueError: If they differ in that.
    """
    towers = [
        _whole_manifest(_records_dir(split_dir)).get(record.MANIFEST_EMBEDDINGS)
        for split_dir in listed(folders)
    ]
    if any(tower != towers[0] for tower in towers):
        raise ValueError(
            "The images of all folders must be embedded by the same tower, or none. "
            f"Received: {', '.join(map(str, listed(folders)))}"
        )
    return towers[0]


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

    The order is a function of files and seed alone. Every epoch visits each record once: files in a
    new order, records through a shuffle buffer, one caption drawn per image. From several folders
    every batch takes the same numbers, in an order drawn for each batch. A run that resumes at step
    k reads the very batches that an uninterrupted run reads from step k on: whole epochs are
    skipped by arithmetic, the rest of the current one as encoded records, before any is decoded.

    Args:
        folders: Folder with the split's shards, or several to mix; see `DataConfig.mixture`.
        config: The run's configuration.
        needs: What a batch holds.
        first_step: Steps done so far.
        replaced: Paths of files to read in place of shards.
        num_hosts: Processes that read; each gets every so many records of a global batch, all of
            which it passes over, but decodes its own only.
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
    embedded = embeddings(folders)
    if embedded is not None:
        check_embedded(config)

    def _pixels(example: dict[str, tf.Tensor], number: tf.Tensor) -> dict[str, tf.Tensor]:
        if embedded is not None:
            return {IMAGE: example[record.IMAGE_EMBEDDING]}
        # What is drawn for an example depends on the seed, the visit and the purpose alone. Eight
        # numbers for each seed keep the purposes apart.
        seed = tf.stack([number, config.seed * 8 + _IMAGE_SEED])
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
            seed = tf.stack([number, config.seed * 8 + _CAPTION_SEED])
            choice = tf.random.stateless_uniform(
                [], seed, maxval=tf.size(captions, tf.int64), dtype=tf.int64
            )
            loaded[TEXT] = captions[choice]
        return loaded

    @tf.autograph.experimental.do_not_convert
    def _tokenize(batch: dict[str, tf.Tensor]):
        rest = {name: value for name, value in batch.items() if name != TEXT}
        return rest | {name: read(batch[TEXT]) for name, read in needs.texts.items()}

    dataset = _records(folders, config, first_step=first_step, replaced=replaced)
    if num_hosts > 1:
        # Hosts share records before `map`, so that none decodes those of another.
        dataset = dataset.shard(num_hosts, host)
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
    changed = config.data.flip, config.data.crop_min_area is not None, config.data.mixup
    others = [item.name for item in config.objectives if not item.takes_embedded]
    if any(changed) or others:
        raise ValueError(
            "Images that are embedded already cannot be cropped, flipped, mixed, or shown to a "
            "teacher or a head; only objectives of pairs take them. "
            f"Received: data.crop_min_area={config.data.crop_min_area}, "
            f"data.flip={config.data.flip}, data.mixup={config.data.mixup}, "
            f"other objectives={others}"
        )


def shares(weights: Sequence[float], batch_size: int) -> list[int]:
    """Returns how many of a batch's examples come from each folder: weights, rounded.

    Raises:
        ValueError: If one of them gets none.
    """
    exact = [batch_size * weight / sum(weights) for weight in weights]
    numbers = [int(x) for x in exact]
    # The largest remainders are rounded up, the earlier one of equal ones.
    order = sorted(range(len(exact)), key=lambda i: numbers[i] - exact[i])
    for i in order[: batch_size - sum(numbers)]:
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
) -> tf.data.Dataset:
    """Returns a number for each visit of a record, and the record, in the order of training."""
    splits = listed(folders)
    counts = [count_examples(split_dir, replaced) for split_dir in splits]
    if 0 in counts:
        empty = splits[counts.index(0)]
        raise ValueError(f"The split holds no records. Received: split_dir={empty}")
    weights = config.data.mixture or counts
    if len(weights) != len(splits):
        raise ValueError(
            "data.mixture must have a weight for each folder, or be empty. "
            f"Received: data.mixture={list(weights)}, folders={len(splits)}"
        )
    # The number of examples by folder is the same in every batch, so that the visits of a folder
    # before any step follow by multiplication.
    parts = shares(weights, config.global_batch_size)
    streams = [
        _visits(
            {(replaced or {}).get(x, x): n for x, n in expected_records(split_dir).items()},
            config,
            num_examples=counts[i],
            seen=first_step * parts[i],
            source=i,
            bits=_bits(split_dir),
        )
        for i, split_dir in enumerate(splits)
    ]
    if len(streams) == 1:
        return streams[0]
    # Only the order of the sources is drawn for a batch, by the seed and the step.
    sources = tf.repeat(tf.range(len(parts), dtype=tf.int64), parts)

    @tf.autograph.experimental.do_not_convert
    def _order(step: tf.Tensor) -> tf.data.Dataset:
        seed = tf.stack([step, config.seed * 8 + _MIXTURE_SEED])
        places = tf.argsort(tf.random.stateless_uniform([config.global_batch_size], seed))
        return tf.data.Dataset.from_tensor_slices(tf.gather(sources, places))

    order = tf.data.Dataset.range(first_step, 2**31).flat_map(_order)
    return tf.data.Dataset.choose_from_datasets(streams, order, stop_on_empty_dataset=True)


def _bits(split_dir: Path) -> list[bytes] | None:
    """Returns which records of each shard a selection chooses, in the shards' order."""
    selection = selections.load(split_dir)
    if selection is None:
        return None
    return [selection.shards[Path(path).name].bits for path in shard_files(split_dir)]


def _visits(
    shards: Mapping[str, int | None],
    config: TrainConfig,
    *,
    num_examples: int,
    seen: int,
    source: int,
    bits: list[bytes] | None,
) -> tf.data.Dataset:
    """Returns the visits of one split's records, without the first `seen` ones.

    Args:
        shards: Numbers of records by path.
        config: The run's configuration.
        num_examples: Records of an epoch.
        seen: Visits to leave out.
        source: Which of the folders this is.
        bits: For each shard, which of its records are visited; None for all.
    """
    # Whole epochs are skipped at no cost; `skip` records of the current one are read again.
    first_epoch, skip = divmod(seen, num_examples)
    files, lengths = tf.constant(list(shards)), [-1 if n is None else n for n in shards.values()]

    @tf.autograph.experimental.do_not_convert
    def _read(place: tf.Tensor) -> tf.data.Dataset:
        dataset = tf.data.TFRecordDataset(
            tf.gather(files, place), compression_type=tf_example.COMPRESSION
        )
        if None in shards.values():
            return dataset
        # A shard that is shorter than the manifest says would shift all records behind it. The
        # assertion fails at its end, before any record behind it is read too early.
        length = tf.gather(tf.constant(lengths, tf.int64), place)
        dataset = dataset.apply(tf.data.experimental.assert_cardinality(length))
        return dataset if bits is None else selections.only(dataset, place, bits)

    @tf.autograph.experimental.do_not_convert
    def _epoch(epoch: tf.Tensor) -> tf.data.Dataset:
        # All randomness is a function of seed and epoch, so that a run can enter at any epoch.
        seed = tf.stack([tf.constant(config.seed, tf.int64), epoch])
        order = tf.argsort(tf.random.stateless_uniform([len(shards)], seed + _FILE_SEED))
        dataset = tf.data.Dataset.from_tensor_slices(order).flat_map(_read)
        # Resuming relies on this number of records in every epoch.
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
        # The numbers of visits seed crops and captions; the offset keeps two folders apart.
        dataset = dataset.enumerate(start=epoch * num_examples + source * _NUMBERS_PER_FOLDER)
        # Skip behind the shuffle: only a buffer that was filled from the start of the epoch gives
        # the order of an uninterrupted run.
        return dataset.skip(tf.where(epoch == first_epoch, tf.cast(skip, tf.int64), 0))

    return tf.data.Dataset.range(first_epoch, 2**31).flat_map(_epoch)


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


def unreadable(
    folders: Folders, error: tf.errors.OpError, places: Sequence[str] = ()
) -> RuntimeError:
    """Returns the error of splits that cannot be read, naming what is damaged.

    Args:
        folders: As in `training_batches`.
        error: What was raised.
        places: Records that cannot be used, if it is for them.
    """
    if places:
        return RuntimeError(
            "A record cannot be used; write its shard again, or allow such records by "
            f"run.max_damaged_records. Received: {'; '.join(places)}"
        )
    # A picture that does not decode is no reason to read every shard.
    in_the_file = not isinstance(error, tf.errors.InvalidArgumentError)
    damaged = damaged_shards(folders) if in_the_file else []
    if damaged:
        return RuntimeError(
            "Training data cannot be read; write these shards again: " + "; ".join(damaged)
        )
    reason = str(error.message).strip().splitlines()[0]
    names = ", ".join(map(str, listed(folders)))
    return RuntimeError(f"A record cannot be used. Received: {names}: {reason}")


def damaged_shards(folders: Folders) -> list[str]:
    """Returns a line for every shard that is not whole, by reading them all."""
    lines = []
    for path, expected in expected_records(folders).items():
        count = 0
        try:
            for _ in tf_example.read_shard(path):
                count += 1
        except tf.errors.OpError as error:
            reason = str(error.message).splitlines()[0]
            lines.append(f"{path} after {count} whole records: {reason}")
            continue
        if expected is not None and count != expected:
            lines.append(f"{path} has {count} records instead of {expected}")
    return lines


def _records_dir(split_dir: str | Path) -> Path:
    """Returns the folder of a split's shards: that which a selection chooses from, if it is one.

    Raises:
        ValueError: If the selection is of other shards than lie there now.
    """
    selection = selections.load(split_dir)
    if selection is None:
        return Path(split_dir)
    manifest = _manifest(selection.split_dir)
    if manifest is None or digests.json_digest(manifest["shards"]) != selection.shards_digest:
        raise ValueError(
            "The selection is of other shards than lie in its split's folder now; choose again. "
            f"Received: {split_dir}, a selection of {selection.split_dir}"
        )
    return Path(selection.split_dir)


def _manifest(split_dir: str | Path) -> dict | None:
    """Returns the split's part of the manifest that ingest writes beside the splits."""
    selection = selections.load(split_dir)
    split_dir = split_dir if selection is None else selection.split_dir
    splits = _whole_manifest(split_dir).get(record.MANIFEST_SPLITS, {})
    return splits.get(Path(split_dir).name.removeprefix("Split-"))


def _whole_manifest(split_dir: str | Path) -> dict:
    path = Path(split_dir).parent / record.MANIFEST_FILE
    return json.loads(path.read_text()) if path.is_file() else {}
