"""Odd things in inputs that are easily lost, or stop ingest: each is read, or counted by name."""

import bz2
import gzip
import io
import os
import tarfile

import pyarrow as pa
import pytest
from PIL import Image

from sigline.components.fetch import url_tables
from sigline.components.ingest import class_labels, inventory, reasons, rules
from sigline.components.ingest.compression import DAMAGED, decompressed
from sigline.components.ingest.options import IngestConfig
from sigline.components.ingest.readers import READERS
from sigline.components.ingest.readers.values import pair_of
from sigline.components.ingest.sources import (
    Columns,
    Members,
    Part,
    PassedOver,
    RawPair,
    SourceConfig,
)
from sigline.components.shared.files import BeamFiles


def picture():
    buffer = io.BytesIO()
    Image.new("RGB", (40, 40), (200, 30, 10)).save(buffer, "PNG")
    return buffer.getvalue()


def tar_of(*names):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name in names:
            content = picture() if name.endswith(".png") else b"a caption"
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def zstandard(content):
    return pa.Codec("zstd").compress(content, asbytes=True)


def unpacked(content):
    """Returns what can be read of a compressed file, and whether it is whole."""
    pieces = []
    try:
        with decompressed(io.BytesIO(content)) as stream:
            while piece := stream.read(1000):
                pieces.append(piece)
    except DAMAGED:
        return b"".join(pieces), False
    return b"".join(pieces), True


def test_a_pipe_that_a_row_names_is_refused_and_stops_nobody(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    os.symlink("/dev/zero", tmp_path / "device.jpg")
    # Without a writer, opening a pipe to read from it would wait for one.
    writer = os.open(tmp_path / "pipe.jpg", os.O_RDWR)
    for name in ("pipe.jpg", "device.jpg"):
        with pytest.raises(FileNotFoundError, match="No regular file"):
            BeamFiles().open(str(tmp_path / name))
    os.close(writer)
    (tmp_path / "file.jpg").write_bytes(b"content")
    with BeamFiles().open(str(tmp_path / "file.jpg")) as handle:
        assert handle.read() == b"content"
    with pytest.raises(IsADirectoryError):
        BeamFiles().open(str(tmp_path))


@pytest.mark.parametrize(
    ("label", "ids"), [("none", (1,)), ("NA", (2,)), ("None", ()), ("nan", ()), (float("nan"), ())]
)
def test_a_class_may_have_the_name_of_a_word_for_nothing(label, ids):
    names = class_labels.ClassNames(("cat", "none", "NA", "Nan"))
    assert class_labels.resolve(label, names).ids == ids
    assert class_labels.resolve(label, class_labels.ClassNames()) == ((), (), 1)


def test_pairs_of_a_class_folder_called_na_are_kept(tmp_path):
    for name in ("FR", "NA", "none"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.png").write_bytes(picture())
    config = SourceConfig(class_folders=True)
    ((_, part),) = inventory.take(str(tmp_path), BeamFiles(), config).parts
    labels, texts = [], []
    for pair in READERS["images"].scan(part, BeamFiles(), config, 10**6):
        assert isinstance(pair, RawPair)
        outcome = rules.examine(
            RawPair(**{**vars(pair), "image": picture()}), IngestConfig(source=config)
        )
        assert not isinstance(outcome, rules.Rejection)
        labels.append(outcome[0].label)
        texts.append(outcome[0].text)
    assert labels == [(0,), (1,), (2,)]
    assert texts == [("FR",), ("NA",), ("none",)]


@pytest.mark.parametrize(
    ("cell", "captions"),
    [
        ("[NaN]", None),
        ("[None, NaN]", None),
        ("[['a'], ['b', \"c's\"]]", ("a", "b", "c's")),
        ("[ ['a' 'b']\n ['c'] ]", ("a", "b", "c")),
        ("[[], ['a']]", ("a",)),
        ("['[a] b', 'c']", ("[a] b", "c")),
        ("[['a'] b]", ("[['a'] b]",)),
        ("['a']['b']", ("['a']['b']",)),
        ("['a'] ['b']", ("['a'] ['b']",)),
        ("[[1], [2]]", ("[[1], [2]]",)),
        ("[['a']", ("[['a']",)),
        ("[" * 100 + "'a'" + "]" * 100, ("[" * 100 + "'a'" + "]" * 100,)),
    ],
)
def test_lists_in_lists_and_lists_of_nothing_are_read_as_such(cell, captions):
    config = SourceConfig()
    values = {"image": picture(), "caption": cell}
    pair = pair_of(values, Columns.choose(values, config), config, shard="t.csv", position=0)
    outcome = rules.examine(pair, IngestConfig(source=config))
    if captions is None:
        assert isinstance(outcome, rules.Rejection)
        assert outcome.reason == reasons.MISSING_TEXT
    else:
        assert not isinstance(outcome, rules.Rejection)
        assert outcome[0].text == captions


def test_only_what_describes_a_shard_is_its_companion(tmp_path):
    (tmp_path / "0.tar").write_bytes(tar_of("a.png", "a.txt"))
    companions = ("0.parquet", "0_stats.json", "0.npy", "0.idx", "0.csv.gz")
    others = ("0.zip", "0.7z", "0.heic", "0.rar")
    for name in (*companions, *others):
        (tmp_path / name).write_bytes(b"x")
    passed_over = inventory.take(str(tmp_path), BeamFiles(), SourceConfig()).passed_over
    found = {os.path.basename(path): reason for path, reason in passed_over}
    assert found == {
        **dict.fromkeys(companions, reasons.COMPANION),
        **dict.fromkeys(others, reasons.UNKNOWN_FORMAT),
    }


def test_members_below_hidden_folders_are_hidden(tmp_path):
    names = (".trash/a.png", ".trash/a.txt", "__MACOSX/b.png", "./c.png", "./c.txt", "d/.e.png")
    (tmp_path / "0.tar").write_bytes(tar_of(*names))
    reader = READERS["webdataset"]
    found = list(reader.scan(Part(str(tmp_path / "0.tar")), BeamFiles(), SourceConfig(), 10**6))
    keys = [item.key for item in found if isinstance(item, RawPair)]
    hidden = [item.path for item in found if isinstance(item, PassedOver)]
    assert keys == ["./c"]
    assert [path.removeprefix(f"{tmp_path}/0.tar/") for path in hidden] == [
        *(".trash/a.png", ".trash/a.txt", "__MACOSX/b.png", "d/.e.png")
    ]
    assert found[-1] == Members(6, 2)


def test_zstandard_may_begin_with_a_frame_without_data():
    content = tar_of("a.png", "a.txt")
    for number in (0x50, 0x5F):
        frame = bytes((number,)) + b"\x2a\x4d\x18" + (4).to_bytes(4, "little") + b"size"
        assert unpacked(frame + zstandard(content)) == (content, True)


@pytest.mark.parametrize("compress", [zstandard, gzip.compress, bz2.compress])
def test_what_stands_before_damage_of_a_compressed_file_is_kept(compress):
    content = os.urandom(300_000)
    for whole in (content, content[:3000]):
        found, complete = unpacked(compress(whole) + b"no compressed file")
        assert not complete
        assert found == whole[: len(found)]
        # What was asked for together with the damage is lost.
        assert len(whole) - len(found) < 1000


def test_a_table_with_other_delimiters_is_told_of_the_option(tmp_path):
    (tmp_path / "t.csv").write_text("url;caption\nhttp://a.example/1.jpg;x\n")
    with pytest.raises(ValueError, match=r"url;caption.*--delimiter"):
        url_tables.find(str(tmp_path), "/out", BeamFiles(), SourceConfig())


@pytest.mark.parametrize(
    ("metadata", "keys"),
    [
        (b'{"caption": "the second"}', ["shot.2", "shot"]),
        (b'{"captions": ["the second"]}', ["shot.2", "shot"]),
        (b'{"width": 40}', ["shot"]),
        (b"[1]", ["shot"]),
        (b"{", ["shot"]),
    ],
)
def test_a_further_image_with_a_caption_in_its_metadata_is_a_sample(tmp_path, metadata, keys):
    members = {"shot.jpg": b"1", "shot.txt": b"x", "shot.2.jpg": b"2", "shot.2.json": metadata}
    with tarfile.open(tmp_path / "0.tar", "w") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    reader = READERS["webdataset"]
    found = list(reader.scan(Part(str(tmp_path / "0.tar")), BeamFiles(), SourceConfig(), 10**6))
    assert [item.key for item in found if isinstance(item, RawPair)] == keys
    assert found[-1] == Members(4, 2 * len(keys))


def test_captions_of_listed_images_may_have_suffixes_in_upper_case(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "list.txt").write_text("sub/A.PNG\nsub/b.png\n")
    texts = {"A.TXT": "first", "b.txt": "second"}
    for name, text in texts.items():
        (tmp_path / "sub" / name).write_text(text)
    for name in ("A.PNG", "b.png"):
        (tmp_path / "sub" / name).write_bytes(picture())
    config = SourceConfig(format="list")
    found = inventory.take(str(tmp_path), BeamFiles(), config)
    assert len(found.named) == 4
    assert not found.passed_over
    pairs = READERS["list"].scan(found.parts[0][1], BeamFiles(), config, 10**6)
    assert [pair.text for pair in pairs if isinstance(pair, RawPair)] == [b"first", b"second"]


@pytest.mark.parametrize(
    ("names", "labels"),
    [
        (("cat/train/1.png", "cat/test/2.png", "dog/train/3.png"), {0: (0,), 1: (0,), 2: (1,)}),
        (("train/cat/1.png", "test/cat/2.png", "train/dog/3.png"), {0: (0,), 1: (0,), 2: (1,)}),
        (("train/1.png", "test/2.png"), {0: (), 1: ()}),
    ],
)
def test_classes_stand_above_splits_or_below_them(tmp_path, names, labels):
    for name in names:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture())
    config = SourceConfig(class_folders=True)
    found = {}
    for _, part in inventory.take(str(tmp_path), BeamFiles(), config).parts:
        for pair in READERS["images"].scan(part, BeamFiles(), config, 10**6):
            assert isinstance(pair, RawPair)
            found[names.index(pair.key)] = class_labels.resolve(
                pair.label, class_labels.ClassNames()
            ).ids
    assert found == labels


@pytest.mark.parametrize(
    ("metadata", "captions"),
    [
        (b'{"caption": ["a", null, "b"]}', ("a", "b")),
        (b"{\"caption\": \"['a', 'b']\"}", ("a", "b")),
        (b'{"captions": {"en": "[\'a\', \'b\']", "de": null}}', ("a", "b")),
        (b'{"captions": [["a"], "b"]}', ("a", "b")),
        (b'{"caption": "[a] b"}', ("[a] b",)),
    ],
)
def test_lists_of_captions_in_metadata_are_read_as_those_of_tables(metadata, captions):
    pair = RawPair(key="a", source="s", shard="s.tar", image=picture(), metadata=metadata)
    outcome = rules.examine(pair, IngestConfig())
    assert not isinstance(outcome, rules.Rejection)
    assert outcome[0].text == captions


def test_no_pair_is_rejected_for_a_label_that_is_too_long_a_number(tmp_path):
    digits = "9" * 5000
    metadata = f'{{"caption": "x", "label": {digits}}}'.encode()
    pair = RawPair(key="a", source="s", shard="s.tar", image=picture(), metadata=metadata)
    (tmp_path / "t.jsonl").write_text(f'{{"image": "a.png", "caption": "x", "label": {digits}}}')
    table, config = READERS["table"], SourceConfig()
    (row,) = table.scan(Part(str(tmp_path / "t.jsonl")), BeamFiles(), config, 10**6)
    assert isinstance(row, RawPair)
    assert row.problem is None
    assert row.label == digits
    outcome = rules.examine(pair, IngestConfig())
    assert not isinstance(outcome, rules.Rejection)
    assert outcome[0].label == ()
    assert digits in outcome[0].meta
