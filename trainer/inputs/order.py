"""The order of training: lanes.

A global batch of B records has B slots, and L lanes own B / L of them each: lane l the slots from
l B / L on. Hosts divide the slots, and read the lanes that own theirs. In each lane every folder
has a fixed number of slots, so that of a folder which gives P records to every batch, slots 0 to
P - 1 are numbered lane by lane. In step t (from 0) each slot takes its record number t. The records
of a folder's epoch e lie on a line of N: its shards, permuted by seed and epoch, one behind the
other. Slots share epochs so that before epoch e slot k has taken floor((e N + k) / P) records; over
all slots these sum to e N (Hermite's identity), and no two differ by more than one, so that all
lanes go from one epoch to the next in the same step. Lane l, with the slots from a to b, thus owns
the segment of the line from line(a) to line(b), where line(k) is what the first k slots take of the
epoch. A segment is cut into blocks of equal size, and each block is shuffled as a whole.

So a position, a step, gives by arithmetic in each lane the epoch and the offset in its segment;
these give the block, hence the first record on the line to read, hence, by the numbers of records
that the manifest has, its shard and its place there. To resume costs at most a shard, of which the
front is passed over, and a block.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from sigline.trainer.config import TrainConfig
from sigline.trainer.inputs import seeds, shards
from sigline.trainer.inputs.shards import Split

# A block is shuffled and given while the next one is read.
_BLOCKS_HELD = 2


def num_lanes(config: TrainConfig, splits: Sequence[Split]) -> int:
    """Returns how many lanes a run has: as many as it asks for, where batch and shards suffice.

    Lanes own equal parts of a batch, and more lanes than shards would read each shard several
    times; so it is the largest divisor of both `data.lanes` and the size of a global batch that is
    no more than the shards of the folder that has most.
    """
    assert config.data.lanes is not None
    most = max(len(split.paths) for split in splits)
    both = math.gcd(config.data.lanes, config.global_batch_size)
    return max(lanes for lanes in range(1, both + 1) if both % lanes == 0 and lanes <= most)


def slots_by_lane(parts: Sequence[int], lanes: int) -> np.ndarray:
    """Returns how many slots each folder has in each lane, `(folders, lanes)`, int64.

    Args:
        parts: How many records each folder gives to a global batch.
        lanes: A divisor of their sum.
    """
    # Dealt like cards: a folder's numbers differ by one at most, and all lanes get as many.
    ends = np.cumsum(parts)
    return np.stack(
        [
            np.bincount(np.arange(end - part, end) % lanes, minlength=lanes)
            for end, part in zip(ends, parts, strict=True)
        ]
    )


def records(
    splits: Sequence[Split],
    config: TrainConfig,
    parts: Sequence[int],
    *,
    first_step: int,
    num_hosts: int = 1,
    host: int = 0,
) -> tf.data.Dataset:
    """Returns a number for each visit of a record, and the record, of one host's slots, in order.

    Args:
        splits: The folders; no shard is without records that are visited.
        config: The run's configuration.
        parts: How many records each folder gives to a global batch.
        first_step: Steps done so far.
        num_hosts: Hosts that share each global batch, in equal parts that follow each other.
        host: Which of them this is.
    """
    lanes = num_lanes(config, splits)
    slots = slots_by_lane(parts, lanes)
    num_slots = config.global_batch_size // lanes
    held = config.global_batch_size // num_hosts
    # A lane that several hosts share is read by each of them.
    first_lane, last_lane = host * held // num_slots, -(-(host + 1) * held // num_slots)
    streams = [
        _visits(split, config, slots[source], step=first_step, source=source)
        for source, split in enumerate(splits)
    ]

    @tf.autograph.experimental.do_not_convert
    def _lane(lane: tf.Tensor) -> tf.data.Dataset:
        if len(streams) == 1:
            return streams[0](lane)
        order = _sources(slots, config, lane, first_step=first_step)
        return tf.data.Dataset.choose_from_datasets(
            [stream(lane) for stream in streams], order, stop_on_empty_dataset=True
        )

    num_read = last_lane - first_lane
    if num_read == 1:
        dataset = _lane(tf.constant(first_lane, tf.int64))
    else:
        dataset = tf.data.Dataset.range(first_lane, last_lane).interleave(
            _lane,
            cycle_length=num_read,
            block_length=num_slots,
            num_parallel_calls=num_read,
            deterministic=True,
        )
    if num_read * num_slots == held:
        return dataset
    first = host * held - first_lane * num_slots
    return _only_slots(dataset, first, first + held, of=num_read * num_slots)


def _only_slots(dataset: tf.data.Dataset, first: int, last: int, *, of: int) -> tf.data.Dataset:
    """Returns the records in the slots from `first` to `last` of every `of` of them."""

    @tf.autograph.experimental.do_not_convert
    def _is_own(place: tf.Tensor, _) -> tf.Tensor:
        slot = tf.math.floormod(place, of)
        return (slot >= first) & (slot < last)

    return seeds.numbered(dataset).filter(_is_own).map(lambda _, visit: visit)


def _sources(
    slots: np.ndarray, config: TrainConfig, lane: tf.Tensor, *, first_step: int
) -> tf.data.Dataset:
    """Returns which folder each of a lane's slots takes, in an order drawn for each step."""
    num_folders, lanes = slots.shape
    sources = tf.repeat(tf.range(num_folders, dtype=tf.int64), tf.gather(slots, lane, axis=1))

    @tf.autograph.experimental.do_not_convert
    def _drawn(step: tf.Tensor) -> tf.data.Dataset:
        seed = tf.stack([step * lanes + lane, seeds.of(config.seed, seeds.MIXTURE)])
        places = tf.argsort(tf.random.stateless_uniform(tf.shape(sources), seed))
        return tf.data.Dataset.from_tensor_slices(tf.gather(sources, places))

    return tf.data.Dataset.range(first_step, 2**31).flat_map(_drawn)


def taken(num_records: Any, num_slots: int, slots: Any) -> Any:
    """Returns how many of a folder's first records its first slots take together.

    This is the sum of floor((num_records + k) / num_slots) over all slots k below `slots`.

    Args:
        num_records: How many records, from the first epoch on, int64.
        num_slots: Slots of the folder in a global batch.
        slots: How many slots, of any shape, int64.
    """
    each, rest = num_records // num_slots, num_records % num_slots
    return each * slots + tf.maximum(slots + (rest - num_slots), 0)


def places_of(
    step: int, num_examples: int, num_slots: int, firsts: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns for each lane the epoch that it is in before a step, and how far it is in that.

    Args:
        step: Steps done before.
        num_examples: Records of an epoch.
        num_slots: Slots of the folder in a global batch.
        firsts: The first slot of each lane, and one behind the last slot of all, `(lanes + 1,)`.

    Returns:
        Epochs, and records that the lane has taken of its segment in them, both `(lanes,)`, int64.
    """
    # The last epoch of which the lane's last slot takes a record in this step or took one before:
    # the largest e with floor((e N + last) / P) <= step.
    epochs = ((step + 1) * num_slots - firsts[1:]) // num_examples
    before = epochs * num_examples
    begun = taken(before, num_slots, firsts[1:]) - taken(before, num_slots, firsts[:-1])
    return epochs, step * (firsts[1:] - firsts[:-1]) - begun


def _visits(
    split: Split, config: TrainConfig, slots: np.ndarray, *, step: int, source: int
) -> Callable[[tf.Tensor], tf.data.Dataset]:
    """Returns a function from lanes to the visits of one folder's records from a step on.

    Args:
        split: The folder.
        config: The run's configuration.
        slots: How many slots the folder has in each lane.
        step: Steps done before.
        source: Which of the folders this is.
    """
    read, visited = shards.reader(split), tf.constant(split.visited, tf.int64)
    num_examples, num_slots, lanes = split.num_examples, int(slots.sum()), len(slots)
    firsts = tf.constant([0, *np.cumsum(slots)], tf.int64)
    # All epochs have as many blocks. Where a segment is shorter than another epoch's, the last
    # block of it is filled with nothing.
    longest = np.maximum(slots * -(-num_examples // num_slots), 1)
    most = max(1, config.data.shuffle_records // (_BLOCKS_HELD * lanes))
    num_blocks = -(-longest // most)
    lane_values = (
        tf.constant(num_blocks, tf.int64),
        tf.constant(-(-longest // num_blocks), tf.int64),
        *places_of(step, num_examples, num_slots, firsts),
    )

    def _stream(lane: tf.Tensor) -> tf.data.Dataset:
        bounds = tf.gather(firsts, tf.stack([lane, lane + 1]))
        blocks, size, first_epoch, first_offset = (tf.gather(x, lane) for x in lane_values)
        first_block = first_offset // size

        def _segment(epoch: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            before = epoch * num_examples
            segment = taken(before + num_examples, num_slots, bounds)
            begin, end = tf.unstack(segment - taken(before, num_slots, bounds))
            return begin, end

        @tf.autograph.experimental.do_not_convert
        def _pieces_of(epoch: tf.Tensor) -> tf.data.Dataset:
            begin, end = _segment(epoch)
            order = seeds.order_of_shards(config.seed, epoch, len(split.paths))
            first = tf.where(epoch == first_epoch, first_block * size, 0)
            filling = blocks * size - (end - begin)
            return tf.data.Dataset.from_tensor_slices(
                _pieces(visited, order, begin + first, end, filling)
            )

        @tf.autograph.experimental.do_not_convert
        def _read(place, first, count, filling) -> tf.data.Dataset:
            nothing = tf.data.Dataset.from_tensors(b"").repeat(filling)
            return read(place, first, count).concatenate(nothing)

        @tf.autograph.experimental.do_not_convert
        def _shuffled(number: Any, block: Any) -> tf.data.Dataset:
            epoch, offset = first_epoch + number // blocks, number % blocks * size
            begin, end = _segment(epoch)
            held = block.take(tf.maximum(end - begin - offset, 0))
            dataset = seeds.shuffled(held, size, config.seed, epoch, begin + offset)
            # The numbers of visits seed crops and captions.
            visit = seeds.first_visit(source) + epoch * num_examples + begin + offset
            # Records of the first block that came before this step are left out.
            skip = tf.where(number == first_block, first_offset % size, 0)
            return seeds.numbered(dataset, visit).skip(skip)

        # One stream over all epochs, whose functions are made once. It reads a block while the one
        # before is given.
        epochs = tf.data.Dataset.range(first_epoch, 2**31)
        windows = epochs.flat_map(_pieces_of)
        windows = windows.flat_map(_read).window(size)  # pyright: ignore[reportArgumentType]
        return seeds.numbered(windows, first_block).prefetch(1).flat_map(_shuffled)

    return _stream


def _pieces(
    visited: tf.Tensor, order: tf.Tensor, begin: tf.Tensor, end: tf.Tensor, filling: tf.Tensor
) -> tuple[tf.Tensor, ...]:
    """Returns the pieces of shards in a part of the line, and one of nothing behind them.

    Args:
        visited: How many records of each shard are visited.
        order: The shards in the order in which they lie on the line.
        begin: Place of the first record.
        end: One behind the last record.
        filling: How many empty records to put behind them.

    Returns:
        The shard of each piece, its first record there, how many records are read, and how many
        empty ones follow.
    """
    counts = tf.gather(visited, order)
    ends = tf.cumsum(counts)
    starts = ends - counts
    overlaps = (ends > begin) & (starts < end)
    order, starts, ends = (tf.boolean_mask(x, overlaps) for x in (order, starts, ends))
    firsts = tf.maximum(begin - starts, 0)
    # To the end of a shard, -1: so that it is an error if the shard is longer than it should be.
    counts = tf.where(ends <= end, tf.cast(-1, tf.int64), end - starts - firsts)
    order, firsts, counts = (tf.pad(x, [[0, 1]]) for x in (order, firsts, counts))
    return order, firsts, counts, tf.pad(filling[tf.newaxis], [[tf.size(order) - 1, 0]])
