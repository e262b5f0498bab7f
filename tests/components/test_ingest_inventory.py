"""Everything that lies in an input is read by one reader, or passed over by name."""

import io
import json
import os
import shutil
import socket
import tarfile
from pathlib import Path

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from sigline.components.ingest import account, input_files, inventory, reasons, sources, transforms
from sigline.components.ingest.options import IngestConfig
from sigline.components.ingest.readers import READERS
from sigline.components.shared.files import BeamFiles
from sigline.components.validate import gate, report
from sigline.schemas.entries import Entry, local_entries


def picture(seed, form="JPEG"):
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (24, 24, 3), np.uint8)
    Image.fromarray(pixels).save(buffer, form)
    return buffer.getvalue()


def write(path, content=b""):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def write_pairs(folder, names, suffix=".jpg"):
    for number, name in enumerate(names):
        write(folder / f"{name}{suffix}", picture(number))
        write(folder / f"{name}.txt", f"picture {name}")


def write_tar(path, names, *, mode="w"):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as archive:
        for number, name in enumerate(names):
            for suffix, content in ((".jpg", picture(number)), (".txt", f"text {name}".encode())):
                info = tarfile.TarInfo(name + suffix)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))


def write_saved(folder, rows, names=("data-00000-of-00001.arrow",), others=()):
    """Writes a data set as `save_to_disk` does; the others are files that it does not list."""
    folder.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist(rows)
    for name in (*names, *others):
        with pa.ipc.new_stream(str(folder / name), table.schema) as writer:
            writer.write_table(table)
    write(folder / "state.json", json.dumps({"_data_files": [{"filename": x} for x in names]}))
    write(folder / "dataset_info.json", "{}")


def rows_of(count):
    return [
        {"image": {"bytes": picture(i), "path": None}, "text": f"row {i}"} for i in range(count)
    ]


def take(folder, **options):
    config = sources.SourceConfig(**options).below(str(folder))
    found = inventory.take(str(folder), BeamFiles(), config)
    # The law, against a walk of its own.
    there = sum(len(paths) for paths in found.read.values()) + len(found.named)
    assert found.num_things == there + len(found.passed_over) == len(things_below(folder))
    return found


def things_below(folder):
    """Returns the real paths of all files below a folder, and the links that are not followed."""
    things, seen = [], {os.path.realpath(folder)}
    stack = [str(folder)]
    links = []
    while stack or links:
        if not stack:
            links.sort()
            link = links.pop(0)
            real = os.path.realpath(link)
            if real in seen or (os.path.realpath(os.path.dirname(link)) + "/").startswith(
                real + "/"
            ):
                things.append(link)
                continue
            seen.add(real)
            stack.append(link)
        path = stack.pop()
        children = [os.path.join(path, name) for name in os.listdir(path)]
        things += [path] if not children and path != str(folder) else []
        for child in children:
            if not os.path.isdir(child):
                things.append(child)
            elif os.path.islink(child):
                links.append(child)
            else:
                seen.add(os.path.realpath(child))
                stack.append(child)
    return things


def reads(found, folder):
    """Returns the files that are read, by format."""
    start = len(str(folder)) + 1
    return {name: sorted(path[start:] for path in paths) for name, paths in found.read.items()}


def passed(found, folder):
    start = len(str(folder)) + 1
    return {path[start:]: reason for path, reason in found.passed_over}


def pairs_of(found):
    """Returns the pairs with their sources."""
    return [
        (part.source or item.source, item)
        for name, part in found.parts
        for item in READERS[name].scan(part, BeamFiles(), sources.SourceConfig(), 2**20)
        if isinstance(item, sources.RawPair)
    ]


def test_links_to_folders_are_followed_once_and_never_in_a_circle(tmp_path):
    base, store = tmp_path / "in", tmp_path / "store"
    write_pairs(store / "cats", ["a", "b"])
    write_pairs(base / "own", ["c"])
    (base / "cats").symlink_to(store / "cats")
    (base / "cats_again").symlink_to(store / "cats")
    (base / "own_again").symlink_to(base / "own")
    (base / "up").symlink_to(tmp_path)
    (base / "own" / "round").symlink_to(base)
    (store / "cats" / "back").symlink_to(store)
    (base / "gone.jpg").symlink_to(store / "missing.jpg")
    (base / "itself").symlink_to(base / "itself")
    (base / "d.jpg").symlink_to(store / "cats" / "a.jpg")
    found = take(base)
    images = ["cats/a.jpg", "cats/a.txt", "cats/b.jpg", "cats/b.txt", "d.jpg"]
    assert reads(found, base) == {"images": [*images, "own/c.jpg", "own/c.txt"]}
    assert passed(found, base) == {
        "cats/back": reasons.LINK_CYCLE,
        "cats_again": reasons.LINKED_TWICE,
        "gone.jpg": reasons.BROKEN_LINK,
        "itself": reasons.BROKEN_LINK,
        "own/round": reasons.LINK_CYCLE,
        "own_again": reasons.LINKED_TWICE,
        "up": reasons.LINK_CYCLE,
    }


def test_pipes_and_sockets_are_not_opened(tmp_path):
    write_pairs(tmp_path, ["a"])
    os.mkfifo(tmp_path / "pipe.jpg")
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(tmp_path / "socket.tar"))
        assert passed(take(tmp_path), tmp_path) == {
            "pipe.jpg": reasons.SPECIAL_FILE,
            "socket.tar": reasons.SPECIAL_FILE,
        }
        assert input_files.input_files(str(tmp_path), sources.SourceConfig()) == [
            str(tmp_path / "a.jpg"),
            str(tmp_path / "a.txt"),
        ]


def test_folder_that_is_not_there_is_refused(tmp_path):
    assert local_entries(str(tmp_path / "away")) == []
    config = sources.SourceConfig()
    with pytest.raises(ValueError, match="with no files, if it is there"):
        inventory.take(str(tmp_path / "away"), BeamFiles(), config)


def test_folder_that_may_not_be_listed_is_named(tmp_path, monkeypatch):
    write_pairs(tmp_path, ["a"])
    write_pairs(tmp_path / "closed", ["b"])
    listed = os.scandir

    def refused(path):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", path)
        return listed(path)

    # The tests may run as root, whom no permission stops.
    monkeypatch.setattr(os, "scandir", refused)
    assert Entry(str(tmp_path / "closed"), "unreadable_folder") in local_entries(str(tmp_path))


@pytest.mark.parametrize("suffix", [".jfif", ".jpe", ".JPG", ".JPEG", ".Jif", ".pjpeg"])
def test_all_names_of_a_jpeg_are_read(suffix, tmp_path):
    write_pairs(tmp_path, ["a", "b"], suffix)
    assert len(pairs_of(take(tmp_path))) == 2


def test_upper_case_texts_and_metadata_are_read(tmp_path):
    write(tmp_path / "a.PNG", picture(0, "PNG"))
    write(tmp_path / "a.TXT", "a text")
    write(tmp_path / "b.png", picture(1, "PNG"))
    write(tmp_path / "b.JSON", '{"caption": "b"}')
    pairs = [pair for _, pair in pairs_of(take(tmp_path))]
    assert [(pair.text, pair.metadata) for pair in pairs] == [
        (b"a text", None),
        (None, b'{"caption": "b"}'),
    ]


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("A.TAR", "webdataset"),
        ("deep/er/a.tar.BZ2", "webdataset"),
        ("X.TFRECORD", "tfrecord"),
        ("deep/x.tfrecord-00000-of-00001.GZ", "tfrecord"),
        ("P.PARQUET", "parquet"),
        ("deep/T.CSV", "table"),
        ("T.Jsonl.ZST", "table"),
        ("X.ARROW", "huggingface"),
    ],
)
def test_formats_are_told_without_regard_to_case_and_depth(name, form, tmp_path):
    if form == "parquet":
        pq.write_table(pa.Table.from_pylist(rows_of(1)), tmp_path / name)
    write(tmp_path / name, (tmp_path / name).read_bytes() if form == "parquet" else b"")
    assert reads(take(tmp_path), tmp_path) == {form: [name]}


def test_every_format_of_an_input_is_read(tmp_path):
    write_tar(tmp_path / "a-000.tar", ["t0", "t1"])
    write_tar(tmp_path / "more" / "b-000.tar.bz2", ["t2"], mode="w:bz2")
    write(tmp_path / "tables" / "pairs.csv", "image,caption\nx.jpg,x\n")
    write(tmp_path / "tables" / "x.jpg", picture(1))
    write(tmp_path / "tables" / "unnamed.jpg", picture(2))
    pq.write_table(pa.Table.from_pylist(rows_of(2)), tmp_path / "rows.parquet")
    write_saved(tmp_path / "saved", rows_of(3))
    write_pairs(tmp_path / "folder", ["p", "q"])
    found = take(tmp_path)
    assert reads(found, tmp_path) == {
        "webdataset": ["a-000.tar", "more/b-000.tar.bz2"],
        "huggingface": ["saved/data-00000-of-00001.arrow"],
        "parquet": ["rows.parquet"],
        "table": ["tables/pairs.csv"],
        "images": ["folder/p.jpg", "folder/p.txt", "folder/q.jpg", "folder/q.txt"],
    }
    # Rows name pictures below their folder; which ones, reading them tells.
    assert found.named == (f"{tmp_path}/tables/unnamed.jpg", f"{tmp_path}/tables/x.jpg")
    assert len(pairs_of(found)) == 3 + 3 + 2 + 1 + 2


def test_files_that_describe_shards_are_no_data(tmp_path):
    write_tar(tmp_path / "00000.tar", ["a"])
    pq.write_table(pa.table({"url": ["http://x"], "caption": ["x"]}), tmp_path / "00000.parquet")
    pq.write_table(pa.table({"url": ["http://x"], "caption": ["x"]}), tmp_path / "urls.parquet")
    for name in (
        "00000_stats.json",
        "README.md",
        "LICENSE",
        "classes.json",
        "_SUCCESS",
        ".DS_Store",
    ):
        write(tmp_path / name, "{}")
    write(tmp_path / "00000.jsonl", "{}")
    write(tmp_path / "images.zip", "PK")
    found = take(tmp_path)
    assert reads(found, tmp_path) == {"webdataset": ["00000.tar"]}
    assert passed(found, tmp_path) == {
        "00000.parquet": reasons.COMPANION,
        "00000_stats.json": reasons.COMPANION,
        "00000.jsonl": reasons.COMPANION,
        "urls.parquet": reasons.OTHER_FORMAT,
        "README.md": reasons.DOCUMENT,
        "LICENSE": reasons.DOCUMENT,
        "classes.json": reasons.DOCUMENT,
        "_SUCCESS": reasons.DOCUMENT,
        ".DS_Store": reasons.HIDDEN,
        "images.zip": reasons.UNKNOWN_FORMAT,
    }


def test_format_that_is_named_leaves_the_others(tmp_path):
    write_tar(tmp_path / "a.tar", ["a"])
    write_pairs(tmp_path, ["b"])
    found = take(tmp_path, format="webdataset")
    assert passed(found, tmp_path) == {"b.jpg": reasons.OTHER_FORMAT, "b.txt": reasons.DOCUMENT}


def test_metadata_without_its_image_is_named(tmp_path):
    write(tmp_path / "a.jpg", picture(0))
    for name in ("a.json", "b.json"):
        write(tmp_path / name, '{"caption": "x"}')
    write(tmp_path / "other" / "captions.json", "{}")
    assert passed(take(tmp_path), tmp_path) == {
        "b.json": reasons.METADATA_ALONE,
        "other/captions.json": reasons.DOCUMENT,
    }


def test_classes_keep_their_labels_whatever_their_folders_hold(tmp_path):
    write_pairs(tmp_path / "ape", ["a"], ".jfif")
    write(tmp_path / "bee" / "b.heic", "not read")
    (tmp_path / "cat").mkdir()
    write(tmp_path / "dog" / ".DS_Store")
    write_pairs(tmp_path / "elk", ["e"])
    write(tmp_path / "docs" / "README.md")
    write(tmp_path / ".cache" / "f.jpg", picture(1))
    store = tmp_path.parent / f"{tmp_path.name}-store"
    write_pairs(store, ["f"])
    (tmp_path / "fox").symlink_to(store)
    (tmp_path / "gnu").symlink_to(store / "away")
    write_pairs(tmp_path / "hen", ["h"])
    labels = {pair.key: pair.label for _, pair in pairs_of(take(tmp_path, class_folders=True))}
    assert labels == {"ape/a.jfif": 0, "elk/e.jpg": 4, "fox/f.jpg": 5, "hen/h.jpg": 7}


def test_classes_of_splits_are_the_same(tmp_path):
    base = tmp_path / "pets-2024"
    for split, names in {"train": ["cat", "dog"], "val": ["dog", "eel"]}.items():
        for name in names:
            write_pairs(base / split / name, ["x"])
    found = [(s, pair.key, pair.label) for s, pair in pairs_of(take(base, class_folders=True))]
    assert found == [
        ("pets/train", "train/cat/x.jpg", 0),
        ("pets/train", "train/dog/x.jpg", 1),
        ("pets/val", "val/dog/x.jpg", 1),
        ("pets/val", "val/eel/x.jpg", 2),
    ]


def test_folder_of_a_class_that_is_named_like_a_split_is_none(tmp_path):
    for name in ("bus", "car", "train"):
        write_pairs(tmp_path / name, ["x"])
    found = pairs_of(take(tmp_path, class_folders=True))
    assert [(pair.key, pair.label) for _, pair in found] == [
        ("bus/x.jpg", 0),
        ("car/x.jpg", 1),
        ("train/x.jpg", 2),
    ]
    assert {source for source, _ in found} == {sources.family(str(tmp_path))}


@pytest.mark.parametrize("form", ["webdataset", "parquet", "table", "images", "arrow"])
def test_folders_of_splits_are_sources(form, tmp_path):
    base = tmp_path / "flowers"
    for number, split in enumerate(("train", "Validation")):
        folder = base / split
        if form == "webdataset":
            write_tar(folder / "00000.tar", ["x"])
        elif form == "images":
            write_pairs(folder / "deep", ["x"])
        elif form == "table":
            write(folder / "metadata.csv", "file_name,text\nx.jpg,x\n")
            write(folder / "x.jpg", picture(number))
        elif form == "parquet":
            folder.mkdir(parents=True)
            pq.write_table(pa.Table.from_pylist(rows_of(1)), folder / "0000.parquet")
        else:
            write_saved(folder, rows_of(1))
    found = [source for source, _ in pairs_of(take(base))]
    assert sorted(found) == ["flowers/Validation", "flowers/train"]


def test_splits_of_a_saved_dictionary_are_sources_and_caches_are_no_data(tmp_path):
    base = tmp_path / "birds"
    caches = ("cache-0123456789abcdef.arrow", "indices.arrow")
    write_saved(base / "train", rows_of(6), others=caches)
    write_saved(base / "mine", rows_of(4), others=("stray.arrow",))
    write(base / "dataset_dict.json", '{"splits": ["train", "mine"]}')
    found = take(base)
    counted = [source for source, _ in pairs_of(found)]
    assert {name: counted.count(name) for name in counted} == {"birds/train": 6, "birds/mine": 4}
    assert {k: v for k, v in passed(found, base).items() if k.endswith(".arrow")} == {
        f"train/{caches[0]}": reasons.CACHE,
        f"train/{caches[1]}": reasons.CACHE,
        "mine/stray.arrow": reasons.UNLISTED,
    }


def test_files_and_splits_that_a_saved_data_set_lacks_are_said(tmp_path):
    names = ("data-00000-of-00002.arrow", "data-00001-of-00002.arrow")
    write_saved(tmp_path / "train", rows_of(2), names=names)
    (tmp_path / "train" / names[1]).unlink()
    write(tmp_path / "dataset_dict.json", '{"splits": ["train", "test"]}')
    paths = [part.path for _, part in take(tmp_path).parts]
    assert paths == [f"{tmp_path}/test/state.json", *(f"{tmp_path}/train/{x}" for x in names)]


def test_cache_of_hugging_face_has_a_source_for_each_split(tmp_path):
    folder = tmp_path / "my_set" / "default" / "0.0.0" / "abc"
    split = {"num_examples": 2}
    about = {"splits": {"train": split | {"shard_lengths": [1, 1]}, "test": split}}
    files = ("my_set-train-00000-of-00002.arrow", "my_set-test.arrow")
    write_saved(folder, rows_of(1), names=files, others=("cache-00.arrow",))
    (folder / "state.json").unlink()
    write(folder / "dataset_info.json", json.dumps(about))
    found = take(tmp_path)
    assert [(x.path.rpartition("/")[2], x.source) for _, x in found.parts] == [
        ("my_set-test.arrow", "my_set/test"),
        ("my_set-train-00000-of-00002.arrow", "my_set/train"),
        # One that is missing.
        ("my_set-train-00001-of-00002.arrow", "my_set/train"),
    ]
    (cache,) = [path for path, reason in found.passed_over if reason == reasons.CACHE]
    assert cache.endswith("cache-00.arrow")


def test_rows_that_a_table_of_indices_chooses_are_refused(tmp_path):
    write_saved(tmp_path, rows_of(2))
    state = {"_data_files": [{"filename": "x.arrow"}], "_indices_files": [{"filename": "i.arrow"}]}
    write(tmp_path / "state.json", json.dumps(state))
    with pytest.raises(ValueError, match="flatten_indices"):
        inventory.take(str(tmp_path), BeamFiles(), sources.SourceConfig())


def test_older_versions_of_a_prepared_data_set_are_no_data(tmp_path):
    golden = Path(__file__).parent.parent / "golden" / "tfds" / "tinycaptions"
    shutil.copytree(golden / "1.1.0", tmp_path / "tiny" / "1.1.0")
    shutil.copytree(golden / "1.1.0", tmp_path / "tiny" / "1.0.0")
    found = take(tmp_path)
    assert list(found.read) == ["tfds"]
    assert len(pairs_of(found)) == 5
    older = [path for path, reason in found.passed_over if reason == reasons.OLDER_VERSION]
    assert older
    assert all("/1.0.0/" in path for path in older)


def write_fourteen_kinds(base, store):
    """Writes an input with all kinds of things; returns the reasons of those that hold no pairs."""
    # 1. Shards, with members of several kinds, and what describes them.
    with tarfile.open(base / "a-000.tar", "w") as archive:
        for name, kind, content in (
            ("photos", tarfile.DIRTYPE, b""),
            ("photos/shot.0001.jpg", tarfile.REGTYPE, picture(1)),
            ("photos/shot.0001.txt", tarfile.REGTYPE, b"one"),
            ("photos/shot.0002.jpg", tarfile.REGTYPE, picture(2)),
            ("photos/shot.0002.txt", tarfile.REGTYPE, b"two"),
            ("photos/again.jpg", tarfile.LNKTYPE, "photos/shot.0001.jpg"),
            ("photos/again.txt", tarfile.REGTYPE, b"one again"),
            ("photos/away.jpg", tarfile.SYMTYPE, "../../outside.jpg"),
            ("LICENSE", tarfile.REGTYPE, b"free"),
        ):
            info = tarfile.TarInfo(name)
            info.type = kind
            if isinstance(content, str):
                info.linkname = content
                archive.addfile(info)
            else:
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    write(base / "a-000_stats.json", "{}")
    # 2. Archives that were joined, below a folder.
    write_tar(base / "deep" / "b-000.tar", ["b0", "b1"])
    write_tar(store / "c.tar", ["b2", "b3"])
    with open(base / "deep" / "b-000.tar", "ab") as handle:
        handle.write((store / "c.tar").read_bytes())
    # 3. A compressed one, in upper case.
    write_tar(base / "deep" / "D-000.TAR.BZ2", ["d0"], mode="w:bz2")
    # 4. A table, with a picture that no row names.
    write(base / "table" / "PAIRS.CSV", "file_name,text\nx.jpg,a row\n")
    for number, name in enumerate(("x.jpg", "forgotten.jpg")):
        write(base / "table" / name, picture(number + 3))
    # 5. Parquet. 6. A saved DatasetDict with caches.
    pq.write_table(pa.Table.from_pylist(rows_of(2)), base / "rows.PARQUET")
    write_saved(base / "saved" / "train", rows_of(3), others=("cache-00ff.arrow",))
    write_saved(base / "saved" / "test", rows_of(2))
    write(base / "saved" / "dataset_dict.json", '{"splits": ["train", "test"]}')
    # 7. A folder of pictures by other names. 8. A link to such a folder.
    write_pairs(base / "loose", ["p", "q.1"], ".jfif")
    write_pairs(store / "linked", ["r"], ".JPE")
    (base / "linked").symlink_to(store / "linked")
    # 9. A circle of links. 10. A link to nothing. 11. A pipe. 12. Hidden files.
    (base / "loose" / "round").symlink_to(base)
    (base / "loose" / "gone.jpg").symlink_to(store / "gone.jpg")
    os.mkfifo(base / "pipe.tar")
    write(base / ".DS_Store")
    # 13. Documents. 14. Formats that nothing reads.
    for name in ("README.md", "LICENSE", "_SUCCESS"):
        write(base / name)
    write(base / "classes.json", '{"names": ["a", "b"]}')
    for name in ("images.zip", "loose/s.heic", "loose/noname"):
        write(base / name, "?")
    (base / "empty").mkdir()
    return {
        "a-000.tar/photos": reasons.FOLDER,
        "a-000.tar/photos/away.jpg": reasons.UNSAFE_LINK,
        "a-000.tar/LICENSE": reasons.DOCUMENT,
        "a-000_stats.json": reasons.COMPANION,
        "table/forgotten.jpg": reasons.UNNAMED_IMAGE,
        "saved/dataset_dict.json": reasons.DOCUMENT,
        "saved/train/cache-00ff.arrow": reasons.CACHE,
        **{
            f"saved/{split}/{name}": reasons.DOCUMENT
            for split in ("train", "test")
            for name in ("state.json", "dataset_info.json")
        },
        "loose/round": reasons.LINK_CYCLE,
        "loose/gone.jpg": reasons.BROKEN_LINK,
        "pipe.tar": reasons.SPECIAL_FILE,
        ".DS_Store": reasons.HIDDEN,
        "README.md": reasons.DOCUMENT,
        "LICENSE": reasons.DOCUMENT,
        "_SUCCESS": reasons.DOCUMENT,
        "classes.json": reasons.DOCUMENT,
        "images.zip": reasons.UNKNOWN_FORMAT,
        "loose/s.heic": reasons.UNKNOWN_FORMAT,
        "loose/noname": reasons.UNKNOWN_FORMAT,
        "empty": reasons.EMPTY_FOLDER,
    }


@pytest.fixture(scope="module")
def fourteen_kinds(tmp_path_factory):
    """The counts of an input with all kinds of things, what was expected, and the report."""
    folder = tmp_path_factory.mktemp("kinds")
    base, store, output = folder / "in", folder / "store", folder / "report"
    for path in (base, store, output, folder / "examples"):
        path.mkdir()
    expected = write_fourteen_kinds(base, store)
    there = len(things_below(base))
    with beam.Pipeline(runner="FnApiRunner") as pipeline:
        _ = pipeline | transforms.Ingest(
            str(base), str(folder / "examples"), str(output), IngestConfig(eval_share=0.5)
        )
    return json.loads((output / "counts.json").read_text()), expected, there, output


def test_read_and_passed_over_is_all_that_lies_there(fourteen_kinds):
    counts, expected, there, output = fourteen_kinds
    # By hand: three of the first shard, four, one, a row, two, five, two and one in folders.
    assert counts["input"] == 3 + 4 + 1 + 1 + 2 + 5 + 2 + 1 == counts["written"]
    account = counts["passed_over"]
    members = sum(name.startswith("a-000.tar/") for name in expected)
    assert account["members"] == {"total": 9 + 8 + 2, "read": 6 + 8 + 2, "passed_over": members}
    files = account["files"]
    assert files["total"] == there
    assert files["passed_over"] == len(expected) - members
    assert files["read"] == there - files["passed_over"]
    listed = [
        json.loads(line)
        for path in sorted((output / "passed_over").iterdir())
        for line in path.read_text().splitlines()
    ]
    assert {item["path"]: item["reason"] for item in listed} == expected
    assert len(listed) == len(expected)


def test_passed_over_things_are_grouped_by_folder_and_suffix(fourteen_kinds):
    counts, expected, _, _ = fourteen_kinds
    groups = counts["passed_over"]["groups"]
    named = [name for group in groups for name in group["names"]]
    assert sum(group["count"] for group in groups) == len(expected) == len(named)
    (zipped,) = [group for group in groups if group["suffix"] == ".zip"]
    assert zipped == {
        "folder": "",
        "suffix": ".zip",
        "reason": reasons.UNKNOWN_FORMAT,
        "counted": True,
        "count": 1,
        "names": ["images.zip"],
    }
    counted = [name for name, reason in expected.items() if reason not in reasons.EXPECTED]
    assert counts["passed_over"]["counted"] == len(counted) == 7


def test_report_and_gate_show_what_was_passed_over(fourteen_kinds):
    counts, _, _, _ = fourteen_kinds
    data = gate.Described(counts, {})
    limits = gate.DataGate(min_records=0)
    (problem,) = gate.data_problems(data, {}, limits)
    assert "7 things that may hold pairs were passed over beside 19 pairs, 26.9%" in problem
    assert "1 .zip in the folder (unknown_format), such as images.zip" in problem
    assert (
        gate.data_problems(data, {}, gate.DataGate(min_records=0, max_passed_over_share=0.3)) == []
    )
    page = report.page(data, {}, [])
    for shown in ("images.zip", "cache-00ff.arrow", "forgotten.jpg", "a-000.tar/photos"):
        assert shown in page


def test_documents_refuse_nobodys_data_and_thousands_of_pictures_do():
    def counts(thing, reason, number):
        items = [sources.PassedOver(thing.format(i), reason) for i in range(number)]
        ledger = account.ledger(items)
        summary = account.summary(
            ledger, account.ledger([]), num_files=(number, 0), num_members=(0, 0)
        )
        base = {"input": 20, "written": 20, "rejected": 0, "rejected_by_reason": {}}
        return gate.Described(
            base | {"splits": {"train": 10, "eval": 10}, "passed_over": summary}, {}
        )

    good = counts("README{}.md", reasons.DOCUMENT, 1000)
    assert gate.data_problems(good, {}, gate.DataGate()) == []
    (problem,) = gate.data_problems(
        counts("x/{}.heic", "unknown_format", 2000), {}, gate.DataGate()
    )
    assert "2000 .heic in x (unknown_format), such as 0.heic" in problem


def test_account_that_does_not_add_up_is_refused():
    one = account.ledger([sources.PassedOver("a.zip", reasons.UNKNOWN_FORMAT)])
    with pytest.raises(RuntimeError, match="total=3, read=1, passed_over=1"):
        account.summary(one, account.ledger([]), num_files=(3, 1), num_members=(0, 0))


def test_share_of_what_is_passed_over_is_no_percentage():
    with pytest.raises(ValueError, match=r"max_passed_over_share must be between 0 and 1"):
        gate.DataGate(max_passed_over_share=5)


def test_empty_folder_among_the_classes_is_one_of_them(tmp_path):
    write_pairs(tmp_path / "b", ["x"])
    config = sources.SourceConfig(class_folders=True)
    assert input_files.class_names(str(tmp_path), config) == ("b",)
    (tmp_path / "a").mkdir()
    assert input_files.class_names(str(tmp_path), config) == ("a", "b")
    assert input_files.class_names(str(tmp_path), sources.SourceConfig()) == ()


@pytest.mark.parametrize("name", ["t.parquet", "t.jsonl", "t.csv", "t.tar", "data.arrow"])
def test_file_that_may_not_be_read_stops_no_listing(name, tmp_path):
    class Closed(BeamFiles):
        def open(self, path):
            raise PermissionError(13, "Permission denied", path)

    write(tmp_path / name)
    if name == "data.arrow":
        write(tmp_path / "state.json")
    found = inventory.take(str(tmp_path), Closed(), sources.SourceConfig())
    ((_, part),) = found.parts
    assert part == sources.Part(str(tmp_path / name))


def test_splits_may_have_a_year(tmp_path):
    base = tmp_path / "coco"
    for split in ("train2017", "val2017"):
        write_pairs(base / split, ["x"])
    write(base / "annotations" / "captions.json", "{}")
    assert [source for source, _ in pairs_of(take(base))] == ["coco/train2017", "coco/val2017"]
