import contextlib
import dataclasses
import gzip
import json
import shutil

import numpy as np
import pytest
import tensorflow as tf

from sigline.schemas import tf_example
from sigline.trainer import config
from sigline.trainer.inputs import repairs as damage
from sigline.trainer.inputs import shards
from sigline.trainer.models import two_tower
from sigline.trainer.training import loop


@pytest.fixture(scope="module")
def tiny(few_parameters):
    tiny = config.tiny(config.load_recipe("siglip_demo"))
    return config.override(tiny, [*few_parameters, "steps=20", "run.log_steps=20"])


@pytest.fixture
def folder(split_dir, tmp_path):
    """The scenes with the manifest that ingest writes."""
    found = shutil.copytree(split_dir, tmp_path / "Split-train")
    listed = {path.name: {"records": 50, "sha256": ""} for path in found.iterdir()}
    manifest = {"splits": {"train": {"shards": listed}}}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    return found


def _plain(shard) -> bytearray:
    return bytearray(gzip.decompress(shard.read_bytes()))


def _offsets(plain) -> list[int]:
    """Returns where the records start, and where the last one ends."""
    found = [0]
    while found[-1] < len(plain):
        length = int.from_bytes(plain[found[-1] : found[-1] + 8], "little")
        found.append(found[-1] + length + 16)
    return found


def _compress(shard, plain) -> None:
    # As TensorFlow does: no file name, no time.
    shard.write_bytes(gzip.compress(bytes(plain), mtime=0))


def _flip(shard, *places) -> None:
    plain = _plain(shard)
    for place in places:
        plain[place] ^= 0xFF
    _compress(shard, plain)


def _whole_and_places(shard):
    items = list(damage.read(str(shard)))
    places = [item for item in items if isinstance(item, damage.Place)]
    return [item for item in items if not isinstance(item, damage.Place)], places


def test_whole_shard_is_read_as_it_is(folder):
    for shard in folder.iterdir():
        whole, places = _whole_and_places(shard)
        assert whole == list(tf_example.read_shard(str(shard)))
        assert not places


def test_damaged_record_costs_no_other_and_is_named_with_its_place(folder):
    shard = sorted(folder.iterdir())[0]
    before, offsets = _whole_and_places(shard)[0], _offsets(_plain(shard))
    _flip(shard, offsets[3] + 40, offsets[7] - 2)
    whole, places = _whole_and_places(shard)
    assert [(place.record, place.offset) for place in places] == [(3, offsets[3]), (6, offsets[6])]
    assert whole == [item for i, item in enumerate(before) if i not in (3, 6)]


@pytest.mark.parametrize("part", [2, 9], ids=["length", "checksum of the length"])
def test_behind_a_damaged_length_the_shard_is_lost(folder, part):
    shard = sorted(folder.iterdir())[0]
    before, offsets = _whole_and_places(shard)[0], _offsets(_plain(shard))
    _flip(shard, offsets[44] + part)
    whole, (place,) = _whole_and_places(shard)
    assert whole == before[:44]
    assert (place.record, place.offset) == (44, offsets[44])
    assert "rest of the shard is lost" in place.reason


@pytest.mark.parametrize("cut", [1, 200, 30_000])
def test_half_written_shard_is_read_as_far_as_it_goes(folder, cut):
    shard = sorted(folder.iterdir())[0]
    before = _whole_and_places(shard)[0]
    shard.write_bytes(shard.read_bytes()[:-cut])
    whole, _ = _whole_and_places(shard)
    assert whole == before[: len(whole)]
    # TensorFlow's reader gives no more.
    found = []
    with contextlib.suppress(tf.errors.DataLossError):
        found.extend(tf_example.read_shard(str(shard)))
    assert len(whole) >= len(found)


def test_shard_of_anything_else_has_no_record(tmp_path):
    for content in (b"", b"x", b"not gzip at all, but long enough", bytes(100)):
        (tmp_path / "a.gz").write_bytes(content)
        assert _whole_and_places(tmp_path / "a.gz")[0] == []


def _train(settings, folder, vocabulary, work):
    return loop.train(settings, split_dir=folder, vocabulary=vocabulary, checkpoint_dir=work)


def _parameters(result):
    return {n: v.numpy() for n, v in two_tower.named_variables(result.model).items()}


def test_run_goes_on_over_damaged_records_and_resumes_exactly(
    tiny, folder, vocabulary, cut_back, tmp_path, capsys
):
    second = sorted(folder.iterdir())[1]
    offsets = _offsets(_plain(second))
    _flip(second, offsets[0] + 40, offsets[20] + 40, offsets[48] + 3)
    with pytest.raises(RuntimeError, match=rf"write these shards again: {second}"):
        _train(tiny, folder, vocabulary, tmp_path / "strict")
    few = config.override(tiny, ["run.max_damaged_records=3"])
    with pytest.raises(RuntimeError, match=r"Received: 4 damaged records.*=3.*record 48 at byte"):
        _train(few, folder, vocabulary, tmp_path / "few")
    capsys.readouterr()
    enough = config.override(tiny, ["run.max_damaged_records=4", "run.checkpoint_steps=10"])
    whole = _train(enough, folder, vocabulary, tmp_path / "whole")
    shown = capsys.readouterr().err
    assert f"{second}: 4 of 50 records (record 0 at byte 0: its checksum is wrong" in shown
    listed = json.loads((tmp_path / "whole" / "repaired" / "damage.json").read_text())
    name = f"0/{second.name}"
    assert list(listed) == [name]
    assert [place["record"] for place in listed[name]["places"]] == [0, 20, 48]
    # The damaged records are replaced by those beside them; all others are trained on.
    repairs = damage.Repairs(tmp_path / "whole" / "repaired", folder, 4)
    copy = list(tf_example.read_shard(repairs.replaced[str(second)]))
    assert len(copy) == 50
    assert copy[0] == copy[1]
    assert copy[20] == copy[19]
    assert copy[47] == copy[48] == copy[49]
    assert repairs.count == 4
    interrupted = cut_back(tmp_path / "whole", 10, tmp_path / "interrupted")
    resumed = _train(enough, folder, vocabulary, interrupted)
    assert resumed.first_step == 10
    for name, value in _parameters(whole).items():
        np.testing.assert_array_equal(_parameters(resumed)[name], value, err_msg=name)


def test_shard_without_a_manifest_is_repaired_too(tiny, folder, vocabulary, tmp_path):
    (tmp_path / "manifest.json").unlink()
    shard = sorted(folder.iterdir())[1]
    _flip(shard, _offsets(_plain(shard))[5] + 40)
    settings = config.override(tiny, ["run.max_damaged_records=1", "steps=2"])
    assert np.isfinite(_train(settings, folder, vocabulary, tmp_path / "work").final_loss)
    replaced = damage.Repairs(tmp_path / "work" / "repaired", folder, 1).replaced
    assert shards.open_split(folder, replaced).num_examples == 100


def test_shard_without_a_whole_record_cannot_be_replaced(folder, tmp_path):
    shard = sorted(folder.iterdir())[0]
    shard.write_bytes(b"")
    repairs = damage.Repairs(tmp_path / "repaired", folder, 1000)
    with pytest.raises(RuntimeError, match=r"50 of 50 records \(record 0"):
        repairs.mend()
    assert not (tmp_path / "repaired").exists()


def test_copies_are_found_again_where_the_data_was_moved_and_made_again(folder, tmp_path):
    shard = sorted(folder.iterdir())[1]
    _flip(shard, _offsets(_plain(shard))[5] + 40)
    work = tmp_path / "repaired"
    assert damage.Repairs(work, folder, 1).mend()
    moved = tmp_path / "elsewhere"
    shutil.copytree(folder.parent, moved, ignore=shutil.ignore_patterns("elsewhere", "repaired"))
    repairs = damage.Repairs(work, [moved / folder.name], 1)
    assert repairs.count == 1
    (path,) = repairs.replaced
    assert path == str(moved / folder.name / shard.name)
    assert not repairs.mend()
    (work / repairs.replaced[path]).write_bytes(b"")
    assert repairs.mend()
    assert len(list(tf_example.read_shard(repairs.replaced[path]))) == 50


def test_shard_that_ends_too_early_is_found_before_what_follows_is_read(
    tiny, folder, vocabulary, tmp_path
):
    # Whole records, a whole stream, and too few of them.
    for shard in folder.iterdir():
        records = list(tf_example.read_shard(str(shard)))
        tf_example.write_shard(str(shard), records[:48])
    settings = config.override(
        tiny,
        ["run.max_damaged_records=4", "optimizer.schedule=constant", "data.shuffle_records=8"],
    )
    whole = _train(settings, folder, vocabulary, tmp_path / "whole")
    _train(dataclasses.replace(settings, steps=3), folder, vocabulary, tmp_path / "parts")
    resumed = _train(settings, folder, vocabulary, tmp_path / "parts")
    for name, value in _parameters(whole).items():
        np.testing.assert_array_equal(_parameters(resumed)[name], value, err_msg=name)


def test_whole_shards_are_not_repaired(folder, tmp_path):
    assert not damage.Repairs(tmp_path / "repaired", folder, 1000).mend()
