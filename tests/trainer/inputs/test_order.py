"""Lanes: every record once an epoch, on any number of hosts, resumed at any step."""

import dataclasses
import itertools
from collections import Counter

import numpy as np
import pytest
import tensorflow as tf

from sigline.schemas import tf_example
from sigline.schemas.selection import bits_of
from sigline.trainer import config
from sigline.trainer.inputs import order
from sigline.trainer.inputs.shards import Split

SETTINGS = config.override(
    config.tiny(config.load_recipe("siglip_demo")),
    ["global_batch_size=16", "data.lanes=8", "data.shuffle_records=64"],
)


def _split(folder, name, lengths):
    """Writes shards whose records are their names and numbers."""
    numbers = itertools.count()
    paths = [str(folder / f"{name}{i:02d}.gz") for i in range(len(lengths))]
    for path, length in zip(paths, lengths, strict=True):
        tf_example.write_shard(
            path, [b"%s%03d" % (name.encode(), next(numbers)) for _ in range(length)]
        )
    return Split(paths, list(lengths), list(lengths))


@pytest.fixture(scope="module")
def split(tmp_path_factory):
    """151 records in 24 shards of 1 to 12."""
    lengths = [7, 1, 9, 12, 3, 5, 8, 2, 11, 6, 4, 10, 7, 9, 1, 5, 12, 3, 6, 8, 2, 10, 4, 6]
    return _split(tmp_path_factory.mktemp("many"), "a", lengths)


def _records(splits, settings, count, *, parts=None, step=0, hosts=1, host=0):
    parts = parts or [settings.global_batch_size]
    dataset = order.records(
        splits, settings, parts, first_step=step, num_hosts=hosts, host=host
    ).take(count)
    return [(int(number), item.decode()) for number, item in dataset.as_numpy_iterator()]


@pytest.fixture(scope="module")
def whole(split):
    """The records of more than three epochs, and of hosts of any number together."""
    return _records([split], SETTINGS, 16 * 32)


def _check_epochs(visits, batch, names):
    """Checks that after any number of batches no record is visited twice more than another."""
    counts = Counter(dict.fromkeys(names, 0))
    for done in range(batch, len(visits) + 1, batch):
        counts.update(visits[done - batch : done])
        assert set(counts) == set(names)
        assert max(counts.values()) == -(-done // len(names))
        assert min(counts.values()) == done // len(names)


def test_every_epoch_visits_every_record_once(split, whole):
    _check_epochs([name for _, name in whole], 16, [f"a{i:03d}" for i in range(split.num_examples)])
    # What is drawn for a visit is drawn by its number.
    assert len({number for number, _ in whole}) == len(whole)


# An epoch takes 9.4 steps. Of 16 hosts two share each lane.
@pytest.mark.parametrize(
    ("step", "hosts"), [(1, 2), (8, 4), (9, 1), (9, 4), (10, 16), (18, 2), (19, 1), (28, 4)]
)
def test_hosts_go_on_at_any_step_as_if_nothing_had_happened(split, whole, step, hosts):
    held = 16 // hosts
    for host in {0, hosts - 1}:
        part = _records([split], SETTINGS, 3 * held, step=step, hosts=hosts, host=host)
        expected = [whole[16 * (step + number) + host * held :][:held] for number in range(3)]
        assert part == list(itertools.chain.from_iterable(expected))


def test_seeds_and_epochs_have_different_orders(split, whole):
    other = _records([split], dataclasses.replace(SETTINGS, seed=1), 16)
    assert {name for _, name in other} != {name for _, name in whole[:16]}
    assert [name for _, name in whole[:16]] != [name for _, name in whole[151:167]]


def test_each_lane_gives_an_equal_part_of_a_batch_from_its_own_segment(split, whole):
    lanes = np.array([name for _, name in whole[: 16 * 9]]).reshape(9, 8, 2)
    for first, second in itertools.combinations(range(8), 2):
        assert not set(lanes[:, first].flat) & set(lanes[:, second].flat)


def test_host_reads_the_files_of_its_lanes_alone(split, tmp_path):
    settings = config.override(SETTINGS, ["data.shuffle_records=100000"])
    copies = [tmp_path / path.rpartition("/")[2] for path in split.paths]
    for path, copy in zip(split.paths, copies, strict=True):
        copy.write_bytes(tf.io.gfile.GFile(path, "rb").read())
    copied = split._replace(paths=list(map(str, copies)))
    # An epoch of host 1 of 4: nine whole steps, and the last one at most in part.
    part = _records([copied], settings, 4 * 9, hosts=4, host=1)
    ends = np.cumsum(split.lengths)
    needed = {int(np.searchsorted(ends, int(name[1:]), side="right")) for _, name in part}
    assert len(needed) <= len(copies) // 4 + 2
    for place, copy in enumerate(copies):
        if place not in needed:
            copy.unlink()
    assert _records([copied], settings, 4 * 9, hosts=4, host=1) == part


@pytest.mark.parametrize("selected", [range(0, 151, 3), [0, 7, 50, 149], [150]])
def test_selection_is_visited_once_an_epoch_and_resumed(split, selected):
    names = [f"a{i:03d}" for i in selected]
    ends = np.cumsum(split.lengths)
    bits, visited = [], []
    for end, length in zip(ends, split.lengths, strict=True):
        own = {i - (end - length) for i in selected if end - length <= i < end}
        bits.append(bits_of(own, length))
        visited.append(len(own))
    chosen = split._replace(bits=bits, visited=visited).visited_shards()
    visits = _records([chosen], SETTINGS, 16 * 10)
    _check_epochs([name for _, name in visits], 16, names)
    assert _records([chosen], SETTINGS, 16, step=7, hosts=2, host=1) == [
        item for number in (7, 8) for item in visits[16 * number + 8 : 16 * number + 16]
    ]


@pytest.fixture(scope="module")
def mixed(split, tmp_path_factory):
    """Folders of many shards, of few and of one; they give 9, 4 and 3 records to a batch."""
    folder = tmp_path_factory.mktemp("mixed")
    splits = [split, _split(folder, "b", [5, 6, 4, 3, 7]), _split(folder, "c", [5])]
    return splits, [9, 4, 3], _records(splits, SETTINGS, 16 * 40, parts=[9, 4, 3])


def test_mixture_gives_every_batch_the_same_numbers_and_folders_their_own_epochs(mixed):
    splits, parts, visits = mixed
    names = [name for _, name in visits]
    for done in range(0, len(names), 16):
        counts = Counter(name[0] for name in names[done : done + 16])
        assert [counts[name] for name in "abc"] == parts
    for split, part, letter in zip(splits, parts, "abc", strict=True):
        own = [name for name in names if name[0] == letter]
        _check_epochs(own, part, [f"{letter}{i:03d}" for i in range(split.num_examples)])
    assert len({number for number, _ in visits}) == len(visits)


def test_order_of_folders_in_a_lane_is_drawn_for_each_step(mixed):
    _, _, visits = mixed
    patterns = {tuple(name[0] for _, name in visits[i : i + 16]) for i in range(0, 16 * 40, 16)}
    assert len(patterns) > 20


@pytest.mark.parametrize(("step", "hosts"), [(5, 1), (16, 2), (37, 8)])
def test_mixture_is_resumed_on_any_number_of_hosts(mixed, step, hosts):
    splits, parts, visits = mixed
    held = 16 // hosts
    host = hosts - 1
    part = _records(splits, SETTINGS, held, parts=parts, step=step, hosts=hosts, host=host)
    assert part == visits[16 * step + host * held : 16 * step + (host + 1) * held]


@pytest.mark.parametrize(
    "lengths", [[40, 3, 60], [1, 1, 1, 1, 1], [2]], ids=["few shards", "few records", "one shard"]
)
def test_small_data_has_fewer_lanes_and_the_same_promises(tmp_path, lengths):
    split = _split(tmp_path, "s", lengths)
    visits = _records([split], SETTINGS, 16 * 15)
    _check_epochs([name for _, name in visits], 16, [f"s{i:03d}" for i in range(sum(lengths))])
    for host in (0, 2):
        part = _records([split], SETTINGS, 4, step=11, hosts=4, host=host)
        assert part == visits[16 * 11 + 4 * host : 16 * 11 + 4 * host + 4]


@pytest.mark.parametrize("length", [5, 13], ids=["too short", "too long"])
def test_shard_of_another_length_than_the_manifest_says_is_an_error(split, length):
    lengths = [length if place == 3 else count for place, count in enumerate(split.lengths)]
    wrong = split._replace(lengths=lengths, visited=lengths)
    with pytest.raises(tf.errors.FailedPreconditionError):
        _records([wrong], SETTINGS, 16 * 10)


def test_copy_of_a_damaged_shard_moves_no_other_record(split, whole, tmp_path):
    copy = str(tmp_path / "copy.gz")
    records = list(tf_example.read_shard(split.paths[8]))
    tf_example.write_shard(copy, [*records[:4], records[3], *records[5:]])
    paths = [copy if path == split.paths[8] else path for path in split.paths]
    lost, beside = records[4].decode(), records[3].decode()
    expected = [(number, beside if name == lost else name) for number, name in whole[: 16 * 12]]
    assert _records([split._replace(paths=paths)], SETTINGS, 16 * 12) == expected


@pytest.mark.parametrize(
    ("lanes", "batch", "shards", "expected"),
    [
        (16, 16384, [1000], 16),
        (16, 100, [1000], 4),
        (16, 25, [1000], 1),
        (16, 64, [10], 8),
        (16, 64, [1], 1),
        (12, 24, [5], 4),
        (64, 64, [1, 100], 64),
        (1, 64, [100], 1),
    ],
)
def test_lanes_divide_the_batch_and_are_no_more_than_shards(lanes, batch, shards, expected):
    settings = config.override(SETTINGS, [f"data.lanes={lanes}", f"global_batch_size={batch}"])
    splits = [Split(["x"] * count, [1] * count, [1] * count) for count in shards]
    assert order.num_lanes(settings, splits) == expected


@pytest.mark.parametrize(
    ("parts", "lanes"), [([16], 8), ([9, 4, 3], 8), ([1, 1, 62], 16), ([5, 7], 1)]
)
def test_lanes_have_as_many_slots_each_and_folders_theirs(parts, lanes):
    slots = order.slots_by_lane(parts, lanes)
    assert slots.sum(axis=1).tolist() == parts
    assert set(slots.sum(axis=0)) == {sum(parts) // lanes}
    assert all(row.max() - row.min() <= 1 for row in slots)


@pytest.mark.parametrize(
    ("num_examples", "slots"),
    [(37, [2, 2, 2, 2]), (64, [4, 4]), (3, [5, 5, 6]), (1, [1, 1]), (1000, [1, 0, 2, 1]), (8, [8])],
)
def test_places_follow_from_counting(num_examples, slots):
    """The epochs and offsets of lanes against a count of what each slot takes, step by step."""
    num_slots, firsts = sum(slots), np.cumsum([0, *slots])
    # Slot k takes its record t from the last epoch e with floor((e N + k) / P) <= t.
    begins = np.array(
        [[(e * num_examples + k) // num_slots for k in range(num_slots)] for e in range(2000)]
    )
    for first in range(num_slots + 1):
        np.testing.assert_array_equal(
            order.taken(num_examples * np.arange(2000), num_slots, tf.constant(first, tf.int64)),
            begins[:, :first].sum(axis=1),
        )
    for step in (0, 1, 2, 3, 7, 50, 99):
        epochs, offsets = order.places_of(
            step, num_examples, num_slots, tf.constant(firsts, tf.int64)
        )
        for lane, count in enumerate(slots):
            if not count:
                continue
            own = begins[:, firsts[lane] : firsts[lane + 1]].sum(axis=1)
            epoch = int(np.searchsorted(own, step * count, side="right")) - 1
            assert (int(epochs[lane]), int(offsets[lane])) == (epoch, step * count - own[epoch])
