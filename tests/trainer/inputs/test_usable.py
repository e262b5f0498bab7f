import json
import shutil

import numpy as np
import pytest
import tensorflow as tf

from sigline.schemas import record, tf_example
from sigline.trainer import config
from sigline.trainer.inputs import data, preprocess, resuming, shards, usable
from sigline.trainer.inputs import repairs as damage
from sigline.trainer.inputs.needs import of_pairs
from sigline.trainer.training import loop


@pytest.fixture(scope="module")
def tiny(few_parameters):
    tiny = config.tiny(config.load_recipe("siglip_demo"))
    return config.override(tiny, [*few_parameters, "steps=12"])


@pytest.fixture(scope="module")
def tokenizer(vocabulary, tiny):
    return preprocess.Tokenizer(vocabulary, tiny.text)


@pytest.fixture
def folder(split_dir, tmp_path):
    """The scenes, without a manifest, as others write tables of records."""
    return shutil.copytree(split_dir, tmp_path / "Split-train")


def _change(shard, change):
    """Rewrites a shard, each record as a function of its place and itself says."""
    records = list(tf_example.read_shard(str(shard)))
    tf_example.write_shard(str(shard), [change(i, item) for i, item in enumerate(records)])
    return records


def _with_image(serialized, image):
    example = tf.train.Example.FromString(serialized)
    example.features.feature[record.IMAGE].bytes_list.value[0] = image
    return example.SerializeToString(deterministic=True)


def _without(serialized, name):
    example = tf.train.Example.FromString(serialized)
    del example.features.feature[name]
    return example.SerializeToString(deterministic=True)


def _cut_image(serialized):
    image = tf_example.decode(serialized).image
    return _with_image(serialized, image[: len(image) // 2])


def _feed(folder, settings, tokenizer, work, first_step=0, **hosts):
    wanted = of_pairs(settings.image, tokenizer)
    check = usable.Check(settings, wanted)
    repairs = damage.Repairs(work, folder, settings.run.max_damaged_records, check)

    def read(step):
        return data.training_batches(
            folder, settings, wanted, first_step=step, replaced=repairs.replaced, **hosts
        ).as_numpy_iterator()

    def lines(number):
        return usable.places(folder, settings, check, number=number, replaced=repairs.replaced)

    return resuming.Feed(folder, repairs, read, first_step=first_step, unusable=lines), repairs


def test_check_says_what_is_wrong_with_which_record(tiny, split_dir, tokenizer):
    whole = list(tf_example.read_shard(shards.shard_files(split_dir)[0]))[:6]
    keys = [tf_example.key(item) for item in whole]
    records = [
        whole[0],
        _cut_image(whole[1]),
        _without(whole[2], record.TEXT),
        _without(whole[3], record.IMAGE),
        b"no record at all",
        _without(_with_image(whole[5], b"GIF89a"), record.KEY),
    ]
    check = usable.Check(tiny, of_pairs(tiny.image, tokenizer))
    problems = check(records)
    assert sorted(problems) == [1, 2, 3, 4, 5]
    assert problems[1].startswith(f"key {keys[1]!r}: ")
    assert problems[2] == f"key {keys[2]!r}: no caption"
    assert keys[3] in problems[3]
    assert record.IMAGE in problems[3]
    assert problems[4].startswith("key unknown: ")
    assert problems[5] == "key unknown: only JPEG and PNG are accepted"
    assert check([]) == {}


def test_captions_are_needed_only_where_texts_are_read(tiny, split_dir, tokenizer):
    item = _without(next(tf_example.read_shard(shards.shard_files(split_dir)[0])), record.TEXT)
    assert usable.Check(tiny, of_pairs(tiny.image, tokenizer))([item])
    assert usable.Check(tiny, of_pairs(tiny.image, None))([item]) == {}


def test_picture_that_does_not_decode_is_named_by_key_and_shard(tiny, folder, vocabulary, tmp_path):
    key = data.batch_keys(folder, tiny, number=1)[3]
    paths = sorted(folder.iterdir())
    places = {}
    for shard in paths:

        def change(i, item, shard=shard):
            if tf_example.key(item) != key:
                return item
            places[key] = (shard, i)
            return _cut_image(item)

        _change(shard, change)
    shard, place = places[key]
    with pytest.raises(RuntimeError, match="allow such records by") as caught:
        loop.train(tiny, split_dir=folder, vocabulary=vocabulary, checkpoint_dir=tmp_path / "work")
    assert f"{shard}: record {place}, key {key!r}: " in str(caught.value)


def test_run_goes_on_over_pictures_that_do_not_decode_and_resumes_exactly(
    tiny, folder, tokenizer, tmp_path, capsys
):
    second = sorted(folder.iterdir())[1]
    bad = {0: _cut_image, 20: _cut_image, 21: lambda item: _with_image(item, b"no picture")}
    before = _change(second, lambda i, item: bad[i](item) if i in bad else item)
    few = config.override(tiny, ["run.max_damaged_records=2"])
    reading, _ = _feed(folder, few, tokenizer, tmp_path / "few")
    with pytest.raises(RuntimeError, match=r"Received: 3 damaged records, .*record 20: key .*"):
        [next(reading) for _ in range(10)]
    enough = config.override(tiny, ["run.max_damaged_records=3"])
    reading, repairs = _feed(folder, enough, tokenizer, tmp_path / "whole")
    batches = [next(reading) for _ in range(12)]
    assert repairs.count == 3
    key = tf_example.key(before[20])
    assert f"record 20: key {key!r}: " in capsys.readouterr().err
    listed = json.loads((tmp_path / "whole" / "damage.json").read_text())
    assert [place["record"] for place in listed[f"0/{second.name}"]["places"]] == [0, 20, 21]
    copy = list(tf_example.read_shard(repairs.replaced[str(second)]))
    expected = list(before)
    expected[0], expected[20], expected[21] = before[1], before[19], before[19]
    assert copy == expected
    # A run that goes on later, elsewhere, and one of two hosts, read the same.
    again, _ = _feed(folder, enough, tokenizer, tmp_path / "whole", first_step=7)
    for batch in batches[7:10]:
        for name, value in next(again).items():
            np.testing.assert_array_equal(value, batch[name])
    halves = [
        _feed(folder, enough, tokenizer, tmp_path / "hosts", num_hosts=2, host=host)[0]
        for host in (0, 1)
    ]
    for batch in batches:
        parts = [next(half) for half in halves]
        for name, value in batch.items():
            np.testing.assert_array_equal(parts[0][name], value[:4])
            np.testing.assert_array_equal(parts[1][name], value[4:])


def test_both_kinds_of_damage_count_together(tiny, folder, tokenizer, tmp_path):
    first, second = sorted(folder.iterdir())
    _change(first, lambda i, item: _cut_image(item) if i == 5 else item)
    content = bytearray(second.read_bytes())
    content[len(content) // 2] ^= 0xFF
    second.write_bytes(bytes(content))
    settings = config.override(tiny, ["run.max_damaged_records=40"])
    reading, repairs = _feed(folder, settings, tokenizer, tmp_path / "work")
    for _ in range(12):
        next(reading)
    listed = json.loads((tmp_path / "work" / "damage.json").read_text())
    assert len(listed) == 2
    assert repairs.count == sum(shard["lost"] for shard in listed.values()) >= 2
