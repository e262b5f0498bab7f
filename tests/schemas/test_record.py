import json
import random

import pytest

from sigline.schemas import digests, labels, record, tf_example, versions


def _record(**changes):
    values = {
        "key": "k",
        "image": b"\x89PNG bytes",
        "text": ("ein Hund", "犬"),
        "language": ("de", "ja"),
        "source": "s",
        "width": 3,
        "height": 4,
        "image_sha256": b"\x01" * 32,
        "image_phash": -5,
        "label": (7,),
        "meta": '{"a": 1}',
    }
    return record.ImageTextRecord(**(values | changes))


def test_encode_then_decode_returns_the_record():
    value = _record()
    assert tf_example.decode(tf_example.encode(value)) == value


def test_encode_of_record_without_label_keeps_it_empty():
    assert tf_example.decode(tf_example.encode(_record(label=()))).label == ()


def test_parse_reads_what_encode_wrote():
    pair = tf_example.parse(tf_example.encode(_record()))
    assert pair["image"].numpy() == b"\x89PNG bytes"
    assert [text.decode() for text in pair["text"].numpy()] == ["ein Hund", "犬"]


def test_write_shard_then_read_shard_returns_the_bytes(tmp_path):
    path = str(tmp_path / "a.gz")
    assert tf_example.write_shard(path, [b"one", b"two"]) == 2
    assert list(tf_example.read_shard(path)) == [b"one", b"two"]


def test_write_shard_twice_gives_the_same_bytes(tmp_path):
    for name in ("a.gz", "b.gz"):
        tf_example.write_shard(str(tmp_path / name), [b"one" * 50])
    assert (tmp_path / "a.gz").read_bytes() == (tmp_path / "b.gz").read_bytes()


def test_flipped_byte_in_a_shard_is_an_error(tmp_path):
    import tensorflow as tf

    path = tmp_path / "a.gz"
    payload = random.Random(0).randbytes(1000)
    tf_example.write_shard(str(path), [payload])
    content = bytearray(path.read_bytes())
    content[500] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(tf.errors.DataLossError):
        list(tf_example.read_shard(str(path)))


def test_record_without_caption_is_read_again(tmp_path):
    value = _record(text=(), language=())
    serialized = tf_example.encode(value)
    assert tf_example.decode(serialized) == value
    assert tf_example.features(serialized)["text"] == []
    assert tf_example.parse(serialized)["text"].shape == (0,)
    tf_example.write_shard(str(tmp_path / "a.gz"), [serialized])
    assert list(tf_example.read_shard(str(tmp_path / "a.gz"))) == [serialized]


def test_captions_that_are_absent_read_as_none():
    import tensorflow as tf

    example = tf.train.Example.FromString(tf_example.encode(_record()))
    for name in (record.TEXT, record.LANGUAGE, record.LABEL, record.TAG):
        del example.features.feature[name]
    value = tf_example.decode(example.SerializeToString())
    assert (value.text, value.language, value.label, value.tag) == ((), (), (), ())
    assert tf_example.parse(example.SerializeToString())["text"].shape == (0,)


def test_language_without_caption_is_refused():
    with pytest.raises(ValueError, match="one tag per caption"):
        _record(text=())


def test_record_with_too_few_languages_is_refused():
    with pytest.raises(ValueError, match="one tag per caption"):
        _record(language=("de",))


def test_label_set_prompts_fill_every_template():
    found = labels.LabelSet(names=("cat", "dog"), templates=("a {}", "{}!")).prompts()
    assert found == [["a cat", "cat!"], ["a dog", "dog!"]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"templates": ["a {}"]}', "'names' and 'templates'"),
        ('{"names": ["a"], "nmaes": []}', "'names' and 'templates'"),
        ('{"names": ["a", "a"]}', "distinct"),
        ('{"names": ["a"], "templates": ["none"]}', "exactly once"),
    ],
)
def test_broken_label_set_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        labels.LabelSet.from_json(text)


def test_tree_digest_changes_with_content_and_names(tmp_path):
    (tmp_path / "a").write_text("1")
    first = digests.tree_digest(tmp_path)
    (tmp_path / "a").write_text("2")
    second = digests.tree_digest(tmp_path)
    (tmp_path / "a").rename(tmp_path / "b")
    assert len({first, second, digests.tree_digest(tmp_path)}) == 3


def test_list_versions_ignores_what_is_no_version(tmp_path):
    for name in ("2", "10", ".tmp-1", "x", "-3"):
        (tmp_path / name).mkdir()
    (tmp_path / "7").write_text("a file")
    assert versions.list_versions(tmp_path) == [2, 10]


def test_verify_finds_damage(tmp_path):
    (tmp_path / "saved_model.pb").write_bytes(b"model")
    manifest = versions.manifest(versions.content(tmp_path))
    (tmp_path / versions.MANIFEST).write_text(manifest)
    digest = json.loads(manifest)["digest"]
    assert versions.verify(tmp_path) == digest
    (tmp_path / "saved_model.pb").write_bytes(b"modem")
    assert versions.verify(tmp_path) is None


def test_verify_of_broken_manifest_is_none(tmp_path):
    (tmp_path / versions.MANIFEST).write_text(json.dumps({"digest": "x"})[:5])
    assert versions.verify(tmp_path) is None
