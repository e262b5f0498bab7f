"""The order of runs that began before there were lanes (`data.lanes=none`).

Each folder's shards are read one behind the other, in a new order every epoch, and its records go
through one shuffle buffer. Every host reads all records and keeps every so many of them, and to
resume passes over the part of the epoch that is done.
"""

from collections.abc import Sequence

import tensorflow as tf

from sigline.trainer.config import TrainConfig
from sigline.trainer.inputs import seeds, shards
from sigline.trainer.inputs.shards import Split


def records(
    splits: Sequence[Split],
    config: TrainConfig,
    parts: Sequence[int],
    *,
    first_step: int,
    num_hosts: int = 1,
    host: int = 0,
) -> tf.data.Dataset:
    """Returns a number for each visit of a record, and the record; see `order.records`."""
    streams = [
        _visits(split, config, seen=first_step * part, source=source)
        for source, (split, part) in enumerate(zip(splits, parts, strict=True))
    ]
    dataset = streams[0]
    if len(streams) > 1:
        # Only the order of the sources is drawn for a batch, by the seed and the step.
        sources = tf.repeat(tf.range(len(parts), dtype=tf.int64), parts)

        @tf.autograph.experimental.do_not_convert
        def _order(step: tf.Tensor) -> tf.data.Dataset:
            seed = tf.stack([step, seeds.of(config.seed, seeds.MIXTURE)])
            places = tf.argsort(tf.random.stateless_uniform([config.global_batch_size], seed))
            return tf.data.Dataset.from_tensor_slices(tf.gather(sources, places))

        order = tf.data.Dataset.range(first_step, 2**31).flat_map(_order)
        dataset = tf.data.Dataset.choose_from_datasets(streams, order, stop_on_empty_dataset=True)
    return dataset.shard(num_hosts, host) if num_hosts > 1 else dataset


def _visits(split: Split, config: TrainConfig, *, seen: int, source: int) -> tf.data.Dataset:
    """Returns the visits of one split's records, without the first `seen` ones."""
    # Whole epochs are skipped at no cost; `skip` records of the current one are read again.
    first_epoch, skip = divmod(seen, split.num_examples)
    read = shards.reader(split)

    @tf.autograph.experimental.do_not_convert
    def _epoch(epoch: tf.Tensor) -> tf.data.Dataset:
        order = seeds.order_of_shards(config.seed, epoch, len(split.paths))
        dataset = tf.data.Dataset.from_tensor_slices(order).flat_map(read)
        dataset = seeds.shuffled(dataset, config.data.shuffle_records, config.seed, epoch)
        first = epoch * split.num_examples + seeds.first_visit(source)
        dataset = seeds.numbered(dataset, first)
        # Skip behind the shuffle: only a buffer that was filled from the start of the epoch gives
        # the order of an uninterrupted run.
        return dataset.skip(tf.where(epoch == first_epoch, tf.cast(skip, tf.int64), 0))

    return tf.data.Dataset.range(first_epoch, 2**31).flat_map(_epoch)
