import itertools
import json
import shutil
from collections import Counter

import numpy as np
import pytest

from sigline.schemas import digests, tf_example
from sigline.schemas.selection import Selection, ShardSelection, bits_of
from sigline.trainer import config
from sigline.trainer.inputs import data, shards
from sigline.trainer.inputs import repairs as damage


@pytest.fixture(scope="module")
def tiny():
    return config.tiny(config.load_recipe("siglip_demo"))


def _select(folder, examples, chosen):
    """Writes the selection of every record whose number, over all shards, is chosen."""
    listed = json.loads((examples / "manifest.json").read_text())["splits"]["train"]["shards"]
    found, keys, first = {}, [], 0
    for name, shard in listed.items():
        own = {i for i in range(shard["records"]) if first + i in chosen}
        path = examples / "Split-train" / name
        records = [tf_example.decode(item).key for item in tf_example.read_shard(str(path))]
        keys += [records[i] for i in sorted(own)]
        bits = bits_of(own, shard["records"])
        found[name] = ShardSelection(shard["records"], len(own), bits)
        first += shard["records"]
    selection = Selection(str(examples / "Split-train"), digests.json_digest(listed), found)
    folder.mkdir()
    (folder / "selection.json").write_text(selection.to_json())
    return keys


CHOSEN = set(range(0, 100, 3)) | {1, 49, 50, 51, 99}


def test_an_epoch_visits_what_is_chosen_and_nothing_else(examples, tmp_path, tiny):
    keys = _select(tmp_path / "selection", examples, CHOSEN)
    seen = list(
        itertools.chain.from_iterable(
            data.batch_keys(tmp_path / "selection", tiny, number=step) for step in range(1, 11)
        )
    )
    assert len(keys) == len(CHOSEN) == 37
    # After ten batches of eight each record was visited twice, and six of them a third time.
    counts = Counter(seen)
    assert set(counts) == set(keys)
    assert sorted(counts.values()) == [2] * 31 + [3] * 6


def test_stream_from_a_step_on_equals_the_uninterrupted_one(examples, tmp_path, tiny):
    _select(tmp_path / "selection", examples, CHOSEN)
    dataset = data._records([tmp_path / "selection"], tiny, first_step=0)
    whole = [tf_example.key(item) for _, item in dataset.take(120).as_numpy_iterator()]
    for step in (1, 4, 9):
        later = data._records([tmp_path / "selection"], tiny, first_step=step)
        found = [tf_example.key(item) for _, item in later.take(40).as_numpy_iterator()]
        assert found == whole[8 * step : 8 * step + 40]


def test_selection_mixes_with_other_folders(examples, tmp_path, tiny):
    keys = _select(tmp_path / "selection", examples, CHOSEN)
    settings = config.override(tiny, ["data.mixture=[0.5,0.5]"])
    folders = [tmp_path / "selection", examples / "Split-train"]
    assert data.batch_keys(folders, settings, number=1)
    assert shards.open_split(folders[0]).num_examples == len(keys)


def test_digest_follows_what_is_chosen(examples, tmp_path):
    _select(tmp_path / "a", examples, CHOSEN)
    _select(tmp_path / "b", examples, CHOSEN)
    _select(tmp_path / "c", examples, CHOSEN - {99})
    digest = shards.data_digest(tmp_path / "a")
    assert digest == shards.data_digest(tmp_path / "b")
    assert digest != shards.data_digest(tmp_path / "c")
    assert digest != shards.data_digest(examples / "Split-train")


def test_selection_of_other_shards_is_refused(examples, tmp_path, tiny):
    shutil.copytree(examples, tmp_path / "examples")
    _select(tmp_path / "selection", tmp_path / "examples", CHOSEN)
    manifest = tmp_path / "examples" / "manifest.json"
    content = json.loads(manifest.read_text())
    next(iter(content["splits"]["train"]["shards"].values()))["sha256"] = "0" * 64
    manifest.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="of other shards than lie"):
        data.batch_keys(tmp_path / "selection", tiny, number=1)


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content.pop("shards"),
        lambda content: content["shards"].update(x=None),
        lambda content: next(iter(content["shards"].values())).update(selected=1),
        lambda content: next(iter(content["shards"].values())).update(bits="AA=="),
        lambda content: next(iter(content["shards"].values())).update(bits="?"),
    ],
)
def test_damaged_selection_is_one_sentence(examples, tmp_path, tiny, change):
    _select(tmp_path / "selection", examples, CHOSEN)
    path = tmp_path / "selection" / "selection.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"selection\.json"):
        shards.open_split(tmp_path / "selection")


def test_damaged_record_of_a_selection_is_replaced(examples, tmp_path, tiny):
    """Replacements keep the places of all records, and so what is chosen."""
    import gzip

    shutil.copytree(examples, tmp_path / "examples")
    _select(tmp_path / "selection", tmp_path / "examples", CHOSEN)
    shard = sorted((tmp_path / "examples" / "Split-train").iterdir())[0]
    plain = bytearray(gzip.decompress(shard.read_bytes()))
    plain[len(plain) // 2] ^= 1
    shard.write_bytes(gzip.compress(bytes(plain)))
    repairs = damage.Repairs(tmp_path / "mended", tmp_path / "selection", 3)
    assert repairs.mend()
    seen = [
        key
        for step in range(1, 6)
        for key in data.batch_keys(
            tmp_path / "selection", tiny, number=step, replaced=repairs.replaced
        )
    ]
    assert len(seen) == 40


def test_bits_are_in_order():
    assert bits_of({0, 9, 15}, 17) == bytes([0b10000000, 0b01000001, 0])
    assert np.unpackbits(np.frombuffer(bits_of({3}, 8), np.uint8)).tolist().index(1) == 3
