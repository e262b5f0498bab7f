"""Data sets that TensorFlow Datasets prepared; `tests/golden/make_tfds.py` wrote them."""

import io
import json
import shutil
from pathlib import Path

import apache_beam as beam
import numpy as np
import pytest
from PIL import Image

from sigline.components.ingest import input_files, inventory, readers, reasons, sources, transforms
from sigline.components.ingest.options import IngestConfig
from sigline.components.shared.files import BeamFiles

GOLDEN = Path(__file__).parent.parent / "golden" / "tfds"


def _read(base, **options):
    config = sources.SourceConfig(**options)
    return [
        pair
        for name, part in inventory.take(str(base), BeamFiles(), config).parts
        for pair in readers.READERS[name].scan(part, BeamFiles(), config, 10_000)
    ]


@pytest.fixture
def copied(tmp_path):
    shutil.copytree(GOLDEN, tmp_path, dirs_exist_ok=True)
    return tmp_path


def test_captions_of_sequences_are_read():
    pairs = sorted(_read(GOLDEN, dataset="tinycaptions"), key=lambda pair: pair.captions)
    assert [pair.captions for pair in pairs] == [
        ((f"picture {i}".encode(), None), (f"a small picture {i}".encode(), None)) for i in range(5)
    ]
    assert [pair.source for pair in pairs] == ["tinycaptions-train"] * 3 + ["tinycaptions-val"] * 2
    for number, pair in enumerate(pairs):
        expected = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        np.testing.assert_array_equal(Image.open(io.BytesIO(pair.image)), expected)
        assert pair.extra["image/filename"] == f"{number}.png".encode()
        assert pair.label is None


def test_class_without_captions_is_named():
    pairs = sorted(_read(GOLDEN, dataset="tinydigits/plain:2.0.1"), key=lambda pair: pair.label)
    assert [(pair.label, pair.captions) for pair in pairs] == [
        (0, (("zero", None),)),
        (1, (("one", None),)),
        (2, (("two", None),)),
    ]


def test_folder_of_a_version_tells_its_format():
    folder = GOLDEN / "tinycaptions" / "1.1.0"
    assert list(inventory.take(str(folder), BeamFiles(), sources.SourceConfig()).read) == ["tfds"]
    assert len(_read(folder)) == 5


def test_all_files_of_the_version_and_no_others_are_the_input():
    found = input_files.input_files(str(GOLDEN), sources.SourceConfig(dataset="tinydigits"))
    assert {Path(path).parent for path in found} == {GOLDEN / "tinydigits" / "plain" / "2.0.1"}
    assert {Path(path).name for path in found} == {
        "dataset_info.json",
        "features.json",
        "label.labels.txt",
        "tinydigits-test.tfrecord-00000-of-00001",
    }


def test_highest_version_is_taken(copied):
    newest = copied / "tinycaptions" / "1.10.0"
    shutil.copytree(copied / "tinycaptions" / "1.1.0", newest)
    assert {Path(pair.shard).parent for pair in _read(copied, dataset="tinycaptions")} == {newest}
    old = copied / "tinycaptions" / "1.1.0"
    pairs = _read(copied, dataset="tinycaptions:1.1.0")
    assert {Path(pair.shard).parent for pair in pairs} == {old}


def test_missing_shard_is_rejected_and_costs_no_other(copied):
    (copied / "tinycaptions" / "1.1.0" / "tinycaptions-val.tfrecord-00000-of-00001").unlink()
    config = IngestConfig(source=sources.SourceConfig(dataset="tinycaptions"))
    for name in ("examples", "report"):
        (copied / name).mkdir()
    with beam.Pipeline(runner="FnApiRunner") as pipeline:
        folders = str(copied / "examples"), str(copied / "report")
        _ = pipeline | transforms.Ingest(str(copied), *folders, config)
    counts = json.loads((copied / "report" / "counts.json").read_text())
    assert (counts["input"], counts["written"]) == (4, 3)
    assert counts["rejected_by_reason"] == {reasons.DAMAGED_ARCHIVE: 1}


def test_shard_that_is_short_is_damaged(copied):
    path = copied / "tinycaptions" / "1.1.0" / "dataset_info.json"
    info = json.loads(path.read_text())
    info["splits"][1]["shardLengths"] = ["4"]
    path.write_text(json.dumps(info))
    *good, last = _read(copied, dataset="tinycaptions")
    assert len(good) == 5
    assert last.problem == (reasons.DAMAGED_ARCHIVE, "the file holds 2 records of 4")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("absent", r"must be a prepared data set.*versions there: none"),
        ("tinycaptions:9.0.0", r"versions there: 1\.1\.0"),
        ("../tfds/tinycaptions", "must be the name"),
        ("/etc", "must be the name"),
    ],
)
def test_name_that_is_none_is_refused(name, message):
    with pytest.raises(ValueError, match=message):
        _read(GOLDEN, dataset=name)


def test_one_of_several_configurations_must_be_named(copied):
    shutil.copytree(copied / "tinydigits" / "plain", copied / "tinydigits" / "large")
    with pytest.raises(ValueError, match="tinydigits/large, tinydigits/plain"):
        _read(copied, dataset="tinydigits")
    assert len(_read(copied, dataset="tinydigits/large")) == 3


@pytest.mark.parametrize(
    "content",
    [
        b"{",
        b"[]",
        b'{"fileFormat": "array_record"}',
        b"{}",
        b'{"name": "x", "splits": []}',
        b'{"name": "x", "splits": [{"name": "train", "numShards": "1"}]}',
        b'{"splits": [{"name": "train", "shardLengths": ["1"]}]}',
        b'{"name": "x", "splits": [{"name": "a", "shardLengths": [1], "filepathTemplate": "{F}"}]}',
    ],
)
def test_description_that_is_none_is_refused(copied, content):
    (copied / "tinycaptions" / "1.1.0" / "dataset_info.json").write_bytes(content)
    with pytest.raises(
        ValueError, match=r"dataset_info\.json must|file_format=tfrecord|must have shards"
    ):
        _read(copied, dataset="tinycaptions")


def test_name_is_for_no_other_format():
    with pytest.raises(ValueError, match="is for the format tfds"):
        _read(GOLDEN, dataset="tinydigits", format="parquet")
