import json

import apache_beam as beam
import pytest

from sigline.components.ingest import options, tags, transforms
from sigline.components.ingest.options import IngestConfig
from sigline.components.ingest.tags import TagConfig
from sigline.components.scenes import generate
from sigline.schemas import tf_example

# Captions as they are in the wild, and what they name.
GOLDEN = [
    ("A man riding a wave on top of a surfboard.", "man ride surfboard top wave"),
    ("Two dogs' leashes, and the dog\u2019s ball!", "ball dog leash"),
    ("three WOMEN were sitting on benches", "bench sitting woman"),
    ("Black-and-white photo of 12 mice", "black-and-white mouse photo"),
    ("it is what it is", ""),
    ("Ein Hund", "ein hund"),
    ("", ""),
]


@pytest.mark.parametrize(("text", "expected"), GOLDEN)
def test_captions_are_parsed_as_by_hand(text, expected):
    assert tags.parsed([text], ["en"]) == tuple(expected.split())


def test_other_languages_are_not_parsed_as_english():
    texts = ["Ein Hund mit Hut", "a hat", "a dog"]
    assert tags.parsed(texts, ["de", "en-GB", "und"]) == ("dog", "hat")


def test_listed_tags_are_matched_as_words_and_by_what_stands_for_them():
    found = tags.TagList(["traffic light\tstop light\tsemaphore", "cat\tkitten\tkatze", "", "car"])
    assert found.matched(["Kittens at the traffic lights"]) == ("cat", "traffic light")
    assert found.matched(["eine Katze", "a STOP LIGHT"]) == ("cat", "traffic light")
    assert found.matched(["scattered cards", "light traffic"]) == ()
    with pytest.raises(ValueError, match="a tag in each line"):
        tags.TagList(["", "\t"])


@pytest.mark.parametrize(
    ("values", "message"),
    [({"entries": "a", "most": 3}, "exclude"), ({"most": 0}, "at least 1")],
)
def test_wrong_settings_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        TagConfig(**values)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes")
    generate.write_scenes(str(folder), count=60, seed=0)
    return folder


def _ingest(scenes, folder, config):
    for name in ("examples", "report"):
        (folder / name).mkdir(parents=True)
    with beam.Pipeline(runner="FnApiRunner") as pipeline:
        folders = str(folder / "examples"), str(folder / "report")
        _ = pipeline | transforms.Ingest(
            str(scenes), *folders, options.config_from_json(json.dumps({"tags": config}))
        )
    found = {
        split: [
            tf_example.decode(item)
            for path in sorted((folder / "examples" / f"Split-{split}").iterdir())
            for item in tf_example.read_shard(str(path))
        ]
        for split in ("train", "eval")
    }
    path = folder / "examples" / "tags.json"
    return found, json.loads(path.read_text()) if path.exists() else None


def test_frequent_tags_of_training_are_written_as_a_feature(scenes, tmp_path):
    records, counted = _ingest(scenes, tmp_path, {"most": 5, "min_count": 2})
    every = [tags.parsed(item.text, item.language) for item in records["train"]]
    numbers = {}
    for tag in (tag for found in every for tag in found):
        numbers[tag] = numbers.get(tag, 0) + 1
    expected = dict(sorted(numbers.items(), key=lambda item: (-item[1], item[0]))[:5])
    assert counted == expected
    for items in records.values():
        for item in items:
            found = tags.parsed(item.text, item.language)
            assert item.tag == tuple(tag for tag in found if tag in expected)
    profile = json.loads((tmp_path / "report" / "profile.json").read_text())
    assert profile["train"]["tag"] == expected


def test_listed_tags_are_written_as_a_feature(scenes, tmp_path):
    (tmp_path / "tags.txt").write_text("red\ncircle\tdisc\nhelicopter\n")
    config = {"entries": str(tmp_path / "tags.txt")}
    records, counted = _ingest(scenes, tmp_path / "out", config)
    for item in (item for items in records.values() for item in items):
        words = set(" ".join(item.text).split())
        assert item.tag == tuple(tag for tag in ("circle", "red") if tag in words)
    assert counted == {
        tag: sum(tag in item.tag for item in records["train"]) for tag in ("circle", "red")
    }


def test_no_tags_by_default(scenes, tmp_path):
    records, counted = _ingest(scenes, tmp_path, {})
    assert counted is None
    assert {item.tag for items in records.values() for item in items} == {()}
    assert not IngestConfig().tags.is_enabled
