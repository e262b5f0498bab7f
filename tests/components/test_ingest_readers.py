import gzip
import io
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sigline.components.ingest import inventory, readers, reasons, sources
from sigline.schemas import entries


def _tar(members, form=tarfile.USTAR_FORMAT):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


class Memory(dict):
    """Files by path, in memory."""

    def open(self, path):
        if path not in self:
            raise FileNotFoundError(2, "No such file or directory", path)
        return io.BytesIO(self[path])

    def find(self, folder):
        return sorted(path for path in self if path.startswith(folder + "/"))

    def entries(self, folder):
        return [entries.Entry(path) for path in self.find(folder)]


def _read(reader, path, content, others=None, limit=1000, **options):
    files, config = Memory({path: content} | (others or {})), sources.SourceConfig(**options)
    return [
        pair
        for part in readers.READERS[reader].parts(path, files, config)
        for pair in readers.READERS[reader].scan(part, files, config, limit)
        if isinstance(pair, sources.RawPair)
    ]


def _scan(content, shard="data/emoji-00003.tar"):
    return _read("webdataset", shard, content)


GOOD = [("a.png", b"A"), ("a.txt", b"x"), ("a.json", b"{}"), ("b.jpg", b"B"), ("b.txt", b"y")]


def test_members_that_share_a_name_are_one_sample():
    first, second = _scan(_tar(GOOD))
    assert (first.key, first.image, first.text, first.metadata) == ("a", b"A", b"x", b"{}")
    assert (second.key, second.image, second.text, second.metadata) == ("b", b"B", b"y", None)
    assert {pair.source for pair in (first, second)} == {"emoji"}


def test_places_are_where_the_images_lie():
    content = _tar(GOOD)
    places = [pair.place for pair in _scan(content)]
    assert [content[p.offset : p.offset + p.size] for p in places] == [b"A", b"B"]
    assert {p.path for p in places} == {"data/emoji-00003.tar"}


def test_same_name_in_two_folders_is_two_samples():
    pairs = _scan(
        _tar([("x/a.png", b"1"), ("x/a.txt", b"t"), ("y/a.png", b"2"), ("y/a.txt", b"u")])
    )
    assert [pair.key for pair in pairs] == ["x/a", "y/a"]


def test_unknown_members_of_a_sample_and_files_without_suffix_are_passed_over():
    pairs = _scan(_tar([("a.png", b"A"), ("a.txt", b"x"), ("a.cls", b"3"), ("README", b"hi")]))
    assert [pair.key for pair in pairs] == ["a"]


def test_sample_of_unknown_members_only_is_not_lost():
    pairs = _scan(_tar([("a.heic", b"A"), ("a.caption", b"x"), *GOOD[3:]]))
    assert [(pair.key, pair.image) for pair in pairs] == [("a", None), ("b", b"B")]


def test_samples_that_share_a_name_are_not_merged():
    pairs = _scan(_tar([("a.png", b"1"), ("a.txt", b"x"), ("a.png", b"2"), ("a.txt", b"y")]))
    assert [(pair.image, pair.text) for pair in pairs] == [(b"1", b"x"), (b"2", b"y")]


def test_header_that_leads_nowhere_is_damage_and_no_endless_loop():
    content = bytearray(_tar([("a.xyz", b"A" * 100), *GOOD[3:]]))
    # A negative size in base 256, and the header's checksum to match.
    content[124:136] = b"\xff" * 11 + b"\x00"
    content[148:156] = b" " * 8
    content[148:156] = b"%06o\0 " % sum(content[:512])
    (*_, last) = _scan(bytes(content))
    assert last.problem[0] == reasons.DAMAGED_ARCHIVE


def test_hostile_names_are_only_keys():
    pairs = _scan(_tar([("../../etc/passwd.png", b"A"), ("../../etc/passwd.txt", b"x")]))
    assert [pair.key for pair in pairs] == ["../../etc/passwd"]


def test_large_image_is_a_problem_and_is_not_read():
    first, second = _scan(_tar([("a.png", bytes(1001)), ("a.txt", b"x"), *GOOD[3:]]))
    assert first.problem[0] == reasons.TOO_MANY_BYTES
    assert first.image is None
    assert second.problem is None


# Cut in the data of b's image, in its header, and before the end mark.
@pytest.mark.parametrize("cut", [3 * 1024 + 512, 3 * 1024 + 100, 5 * 1024])
def test_cut_archive_keeps_what_came_before_and_says_so(cut):
    content = _tar(GOOD)[:cut]
    *good, last = _scan(content)
    assert good[0].key == "a"
    assert good[0].problem is None
    assert last.problem[0] == reasons.DAMAGED_ARCHIVE


def test_broken_header_in_the_middle_is_damage_and_not_the_end():
    content = bytearray(_tar(GOOD))
    content[3 * 1024 : 3 * 1024 + 512] = b"\xaa" * 512
    first, last = _scan(bytes(content))
    assert first.key == "a"
    assert last.problem[0] == reasons.DAMAGED_ARCHIVE


@pytest.mark.parametrize("content", [b"", b"no tar at all" * 100])
def test_file_that_is_no_archive_is_one_problem(content):
    (pair,) = _scan(content)
    assert pair.problem[0] == reasons.DAMAGED_ARCHIVE


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("a/noto-emoji-00000.tar", "noto-emoji"),
        ("00012.tar", "00012"),
        ("scenes-heldout-00001.tar", "scenes-heldout"),
        ("cc3m_train_003.tar", "cc3m_train"),
        ("train-00003-of-00010.parquet", "train"),
        ("caf\udce9-0.tar", "caf\ufffd"),
    ],
)
def test_source_name(path, source):
    assert sources.family(path) == source


def test_compressed_archive_gives_the_same_pairs_without_places():
    plain = _scan(_tar(GOOD))
    packed = _scan(gzip.compress(_tar(GOOD)), "data/emoji-00003.tar.gz")
    assert [p.place for p in packed] == [None, None]
    for field in ("key", "source", "image", "text", "metadata", "position"):
        assert [getattr(p, field) for p in packed] == [getattr(p, field) for p in plain]


@pytest.mark.parametrize("damage", ["cut", "flipped"])
def test_damaged_compressed_archive_keeps_what_came_before(damage):
    import random

    noise = random.Random(0).randbytes(900)
    many = [(f"{i:03d}.{kind}", noise) for i in range(300) for kind in ("png", "txt")]
    content = bytearray(gzip.compress(_tar(many), compresslevel=0))
    if damage == "cut":
        del content[len(content) // 2 :]
    else:
        # The header of a block of deflate.
        content[content.index(many[300][0].encode()) - 5 :] = b"\xff" * 2000
    *good, last = _scan(bytes(content), "x-0.tar.gz")
    assert len(good) > 100
    assert all(pair.problem is None and pair.image == noise for pair in good)
    assert last.problem.reason == reasons.DAMAGED_ARCHIVE


def test_extended_header_is_bounded():
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        info = tarfile.TarInfo("a.png")
        info.pax_headers = {"comment": "x" * 2**21}
        archive.addfile(info)
    (pair,) = _scan(buffer.getvalue())
    assert pair.problem.reason == reasons.DAMAGED_ARCHIVE
    assert "a header of" in pair.problem.detail


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("GNU.sparse.size", "abc"),
        ("GNU.sparse.realsize", "x"),
        ("GNU.sparse.map", "a,b"),
        ("size", "9" * 30),
    ],
)
def test_hostile_extended_header_is_damage(name, value):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for member, headers in (("a.png", {}), ("b.png", {name: value})):
            info = tarfile.TarInfo(member)
            info.pax_headers = headers
            archive.addfile(info)
    *_, last = _scan(buffer.getvalue())
    assert last.problem.reason == reasons.DAMAGED_ARCHIVE


def test_endless_extended_headers_are_damage():
    header = tarfile.TarInfo("x").create_pax_global_header({"comment": "x"})
    (pair,) = _scan(header * 3000 + bytes(1024))
    assert pair.problem.reason == reasons.DAMAGED_ARCHIVE


def test_sparse_member_has_no_place():
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        info = tarfile.TarInfo("a.png")
        info.size = 3
        info.pax_headers = {"GNU.sparse.map": "5,3", "GNU.sparse.size": "8"}
        archive.addfile(info, io.BytesIO(b"abc"))
    (pair,) = _scan(buffer.getvalue())
    assert pair.image == bytes(5) + b"abc"
    assert pair.place is None


def test_image_after_one_that_is_too_large_is_another_sample():
    members = [("a.jpg", bytes(1001)), ("a.png", b"A"), ("a.txt", b"x")]
    first, second = _scan(_tar(members))
    assert first.problem.reason == reasons.TOO_MANY_BYTES
    assert (second.image, second.text, second.problem) == (b"A", b"x", None)


def test_class_file_is_the_label():
    (pair,) = _scan(_tar([("a.png", b"A"), ("a.cls", b"7"), ("a.txt", b"x")]))
    assert pair.label == b"7"


TABLE = b'image,caption,license\na.png,a dog,cc0\nb/c.png,"one\ntwo ""three""",by\n'


@pytest.mark.parametrize(
    ("path", "content"),
    [
        ("d/t.csv", TABLE),
        ("d/t.csv.gz", gzip.compress(TABLE, mtime=0)),
        ("d/t.csv", b"\xef\xbb\xbf" + TABLE.replace(b"\n", b"\r\n").replace(b"one\r", b"one")),
        (
            "d/t.jsonl",
            b'{"image": "a.png", "caption": "a dog", "license": "cc0"}\n\n'
            b'{"image": "b/c.png", "caption": ["one\\ntwo \\"three\\""], "license": "by"}',
        ),
    ],
)
def test_table_gives_paths_captions_and_all_other_columns(path, content):
    first, second = _read("table", path, content)
    assert (first.image_path, first.captions) == ("d/a.png", (("a dog", None),))
    assert (second.image_path, second.captions) == ("d/b/c.png", (('one\ntwo "three"', None),))
    assert [pair.extra for pair in (first, second)] == [{"license": "cc0"}, {"license": "by"}]
    assert first.image is None
    assert first.source == "t"


def test_named_columns_are_taken_and_no_others():
    content = b"id,image,pic,caption,alt,title\n7,x,a.png,no,one,two\n"
    options = {"image": "pic", "caption": ("title", "alt"), "root": "pictures"}
    (pair,) = _read("table", "d/t.csv", content, **options)
    assert pair.image_path == "pictures/a.png"
    assert pair.captions == (("two", None), ("one", None))
    assert pair.key == "7"
    assert pair.extra == {"image": "x", "caption": "no"}


def test_languages_go_with_their_captions():
    content = b'{"image": "a.png", "caption": ["a dog", "ein Hund"], "language": ["en", "de"]}'
    (pair,) = _read("table", "d/t.jsonl", content)
    assert pair.captions == (("a dog", "en"), ("ein Hund", "de"))


@pytest.mark.parametrize(
    "path", ["../a.png", "/etc/passwd", "b/../../a.png", "https://x.org/a.png", "a\\b.png", ".."]
)
def test_path_that_leads_out_of_the_root_is_refused(path):
    for name, content in {
        "table": b"image,caption\n" + path.encode() + b",x\nb.png,y\n",
        "list": path.encode() + b"\nb.png\n",
    }.items():
        first, second = _read(name, "d/t.csv" if name == "table" else "d/t.txt", content)
        assert first.problem.reason == reasons.UNSAFE_PATH
        assert first.image_path is None
        assert (second.image_path, second.problem) == ("d/b.png", None)


@pytest.mark.parametrize(
    ("root", "path", "expected"),
    [
        ("/d", "/d/x/a.png", "/d/x/a.png"),
        ("/d/", "x/../a.png", "/d/a.png"),
        ("/", "/data/a.png", "/data/a.png"),
        ("/d", "..a.png", "/d/..a.png"),
        ("gs://bucket/d", "x/a.png", "gs://bucket/d/x/a.png"),
        ("gs://bucket/d", "gs://bucket/d/a.png", "gs://bucket/d/a.png"),
        ("gs://bucket/d", "gs://other/a.png", None),
        ("/d", "/dd/a.png", None),
        ("/d", "/d/../e/a.png", None),
        ("/d", "\ud800.png", None),
        ("/d", ".", None),
        ("", "/etc/passwd", None),
    ],
)
def test_paths_count_from_the_root(root, path, expected):
    assert sources.image_below(root, path).get("image_path") == expected


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (b"a.png", reasons.INVALID_ROW),
        (b"a.png,b,c", reasons.INVALID_ROW),
        (b'a.png,"never closed', reasons.INVALID_ROW),
        (b'a.png,"closed" twice"', reasons.INVALID_ROW),
        (b"a.png," + b"x" * 2**18, reasons.INVALID_ROW),
        (b"a.png," + b"x" * 2**21, reasons.INVALID_ROW),
        (b'a",b,"c', reasons.INVALID_ROW),
    ],
)
def test_broken_row_costs_no_other(row, reason):
    rest = b"".join(b"%d.png,text %d\n" % (i, i) for i in range(3000))
    first, broken, *others = _read(
        "table", "t.csv", b"image,caption\nfirst.png,x\n" + row + b"\n" + rest
    )
    assert first.image_path == "first.png"
    assert broken.problem.reason == reason
    assert [pair.image_path for pair in others] == [f"{i}.png" for i in range(3000)]


@pytest.mark.parametrize("line", [b"{", b"[1]", b"nothing", b"[" * 100_000, b"x" * 2**21])
def test_broken_line_costs_no_other(line):
    good = b'{"image": "a.png", "caption": "x"}\n'
    first, broken, last = _read("table", "t.jsonl", good + line + b"\n" + good)
    assert first.image_path == last.image_path == "a.png"
    assert broken.problem.reason == reasons.INVALID_ROW


def test_bytes_that_are_no_text_stay_with_their_row():
    first, second = _read("table", "t.csv", b"image,caption\na.png,caf\xe9\nb.png,y\n")
    assert first.captions == (("caf\udce9", None),)
    assert second.captions == (("y", None),)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", reasons.DAMAGED_ARCHIVE),
        ("image,caption\na,b\n".encode("utf-16"), reasons.INVALID_UTF8),
        (b'"image,caption\na.png,x\n', reasons.INVALID_ROW),
    ],
)
def test_table_that_cannot_be_read_is_one_problem(content, reason):
    (pair,) = _read("table", "t.csv", content)
    assert pair.problem.reason == reason


def test_cut_compressed_table_keeps_what_came_before():
    import random

    draw = random.Random(0)
    rows = b"".join(b"%d.png,%d\n" % (i, draw.getrandbits(64)) for i in range(5000))
    content = gzip.compress(b"image,caption\n" + rows)
    *good, last = _read("table", "t.csv.gz", content[: len(content) // 2])
    assert len(good) > 1000
    assert all(pair.problem is None for pair in good)
    assert last.problem.reason == reasons.DAMAGED_ARCHIVE


def test_ranges_of_lines_give_every_line_once(monkeypatch):
    from sigline.components.ingest.readers import tables

    lines = [b'{"image": "%d.png", "caption": "%s"}' % (i, b"x" * (i % 7)) for i in range(50)]
    for size in range(1, 120):
        monkeypatch.setattr(tables, "_PART_BYTES", size)
        pairs = _read("table", "t.jsonl", b"\n".join(lines))
        assert [pair.image_path for pair in pairs] == [f"{i}.png" for i in range(50)]


def test_missing_columns_are_named():
    (pair,) = _read("table", "d/t.csv", b"picture,words\na.png,x\n")
    assert pair.problem.reason == reasons.MISSING_IMAGE
    assert "picture, words" in pair.problem.detail


def test_list_takes_captions_from_beside_the_images():
    others = {"d/a.txt": b"a dog", "d/x/b.txt": b"a cat"}
    pairs = _read("list", "d/l.txt", b"a.png\n\nx/b.jpg\n", others)
    assert [(p.image_path, p.text) for p in pairs] == [
        ("d/a.png", b"a dog"),
        ("d/x/b.jpg", b"a cat"),
    ]
    (pair,) = _read("list", "d/l.txt", b"c.png")
    assert (pair.image_path, pair.text, pair.problem) == ("d/c.png", None, None)


def test_rows_that_all_leave_a_quote_open_cost_no_square_of_time():
    pairs = _read("table", "t.csv", b"image,caption\n" + b'a",b,"c\n' * 3000)
    assert len(pairs) == 3000
    assert {pair.problem.reason for pair in pairs} == {reasons.INVALID_ROW}


def test_side_of_a_path_that_is_no_folder_costs_no_other_line():
    class Strict(Memory):
        def open(self, path):
            if path.startswith("d/a.jpg/"):
                raise NotADirectoryError(20, "Not a directory", path)
            return super().open(path)

    files, config = Strict({"d/l.txt": b"a.jpg\na.jpg/b.jpg\nc.jpg\n"}), sources.SourceConfig()
    reader = readers.READERS["list"]
    (part,) = reader.parts("d/l.txt", files, config)
    assert len(list(reader.scan(part, files, config, 1000))) == 3


FOLDER = {
    "d/a.png": b"A",
    "d/a.txt": b"x",
    "d/a.json": b"{}",
    "d/two_words/b.JPG": b"B",
    "d/two_words/._b.JPG": b"mac",
    "d/.checkpoints/b.JPG": b"hidden",
    "d/zoo/c.webp": b"C",
    "d/zoo/orphan.txt": b"y",
    "d/classes.json": b"{}",
}


def test_folder_joins_what_shares_a_name():
    pairs = _read("images", "d", b"", FOLDER)
    assert [(p.key, p.image_path, p.text, p.metadata) for p in pairs] == [
        ("a.png", "d/a.png", b"x", b"{}"),
        ("two_words/b.JPG", "d/two_words/b.JPG", None, None),
        ("zoo/c.webp", "d/zoo/c.webp", None, None),
        ("zoo/orphan.txt", None, b"y", None),
    ]


def test_folders_can_be_classes():
    pairs = _read("images", "d", b"", FOLDER, class_folders=True)
    assert [(p.label, p.text) for p in pairs] == [
        (None, b"x"),
        (0, b"two words"),
        (1, b"zoo"),
        (1, b"y"),
    ]


def test_folder_is_read_in_parts(monkeypatch):
    from sigline.components.ingest.readers import folders

    whole = _read("images", "d", b"", FOLDER)
    monkeypatch.setattr(folders, "_PART_SAMPLES", 1)
    assert _read("images", "d", b"", FOLDER) == whole


def _parquet(rows, **options):
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), buffer, **options)
    return buffer.getvalue()


ROWS = [{"uid": f"u{i}", "jpg": b"%d" % i, "caption": f"text {i}", "n": i} for i in range(50)]


def test_parquet_gives_images_by_row_groups():
    content = _parquet(ROWS, row_group_size=20)
    files = Memory({"p.parquet": content})
    reader, config = readers.READERS["parquet"], sources.SourceConfig()
    assert len(list(reader.parts("p.parquet", files, config))) == 3
    pairs = _read("parquet", "p.parquet", content)
    assert [pair.image for pair in pairs] == [b"%d" % i for i in range(50)]
    assert [pair.key for pair in pairs] == [f"u{i}" for i in range(50)]
    assert pairs[7].captions == (("text 7", None),)
    assert pairs[7].extra == {"n": 7}
    assert len({pair.position for pair in pairs}) == 50


def test_parquet_may_hold_paths_nothing_and_structs():
    rows = [
        {"image": {"bytes": b"A", "path": "x.png"}, "caption": "x"},
        {"image": {"bytes": None, "path": "y.png"}, "caption": None},
        {"image": None, "caption": "z"},
    ]
    first, second, third = _read("parquet", "d/p.parquet", _parquet(rows))
    assert (first.image, first.image_path) == (b"A", None)
    assert (second.image_path, second.captions) == ("d/y.png", ())
    assert (third.image, third.image_path) == (None, None)


def test_damaged_parquet_is_a_problem():
    content = _parquet(ROWS, row_group_size=20)
    (pair,) = _read("parquet", "p.parquet", content[:-4])
    assert pair.problem.reason == reasons.DAMAGED_ARCHIVE
    middle = bytearray(content)
    middle[4:40] = bytes(36)
    pairs = _read("parquet", "p.parquet", bytes(middle))
    assert pairs[0].problem.reason == reasons.DAMAGED_ARCHIVE
    # The other row groups are whole.
    assert [pair.image for pair in pairs[1:]] == [b"%d" % i for i in range(20, 50)]


def test_text_in_parquet_that_is_no_utf8_costs_no_other_row():
    array = pa.array([b"good", b"caf\xe9", b"fine"]).cast(pa.binary())
    text = pa.StringArray.from_buffers(3, array.buffers()[1], array.buffers()[2])
    table = pa.table({"jpg": [b"A", b"B", b"C"], "caption": text})
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    first, second, third = _read("parquet", "p.parquet", buffer.getvalue())
    assert (first.problem, third.problem) == (None, None)
    assert second.problem.reason == reasons.INVALID_UTF8


@pytest.mark.parametrize("form", ["stream", "file"])
def test_arrow_of_hugging_face(form):
    table = pa.Table.from_pylist(
        [{"image": {"bytes": b"A", "path": None}, "text": f"t{i}", "label": i} for i in range(40)]
    )
    buffer = io.BytesIO()
    with getattr(pa.ipc, f"new_{form}")(buffer, table.schema) as writer:
        writer.write_table(table, max_chunksize=30)
    pairs = _read("huggingface", "data-00000-of-00001.arrow", buffer.getvalue())
    assert [(p.image, p.captions, p.label) for p in pairs] == [
        (b"A", ((f"t{i}", None),), i) for i in range(40)
    ]
    *_, last = _read("huggingface", "x.arrow", buffer.getvalue()[: len(buffer.getvalue()) // 2])
    assert last.problem.reason == reasons.DAMAGED_ARCHIVE


def test_arrow_whose_offsets_lead_astray_is_damage():
    table = pa.table({"jpg": [b"A" * 9, b"B" * 9, b"C" * 9], "caption": ["x", "y", "z"]})
    buffer = io.BytesIO()
    with pa.ipc.new_stream(buffer, table.schema) as writer:
        writer.write_table(table)
    content = bytearray(buffer.getvalue())
    offsets = np.array([0, 9, 18, 27], "<i4").tobytes()
    at = content.index(offsets)
    content[at : at + 16] = np.array([0, 2**30, 2**30, 2**30], "<i4").tobytes()
    (pair,) = _read("huggingface", "x.arrow", bytes(content))
    assert pair.problem.reason == reasons.DAMAGED_ARCHIVE


def test_value_that_python_lacks_costs_its_own_row():
    times = pa.array([0, 2**62, 1], pa.int64()).view(pa.timestamp("us"))
    table = pa.table({"jpg": [b"A", b"B", b"C"], "caption": ["x", "y", "z"], "t": times})
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    first, second, third = _read("parquet", "p.parquet", buffer.getvalue())
    assert (first.image, third.image) == (b"A", b"C")
    assert second.problem.reason == reasons.INVALID_ROW


def test_error_that_may_pass_is_no_damage():
    class Broken(Memory):
        def open(self, path):
            raise OSError(5, "Input/output error", path)

    config = sources.SourceConfig()
    for name, path in {
        "webdataset": "a.tar",
        "table": "a.csv",
        "parquet": "a.parquet",
        "tfrecord": "a.tfrecord",
        "huggingface": "a.arrow",
    }.items():
        with pytest.raises(OSError, match="Input/output"):
            list(readers.READERS[name].scan(sources.Part(path), Broken(), config, 1000))


def _tfrecord(tmp_path, rows, **options):
    import tensorflow as tf

    with tf.io.TFRecordWriter(str(tmp_path / "x"), **options) as writer:
        for row in rows:
            feature = {
                name: tf.train.Feature(bytes_list=tf.train.BytesList(value=value))
                if isinstance(value[0], bytes)
                else tf.train.Feature(int64_list=tf.train.Int64List(value=value))
                for name, value in row.items()
            }
            features = tf.train.Features(feature=feature)
            writer.write(tf.train.Example(features=features).SerializeToString())
    return (tmp_path / "x").read_bytes()


EXAMPLES = [
    {"jpg": [b"image %d" % i], "caption": [b"caf\xc3\xa9", b"two"], "label": [i], "w": [9]}
    for i in range(5)
]


@pytest.mark.parametrize("compression", ["", "GZIP"])
def test_tfrecords_give_their_features(tmp_path, compression):
    content = _tfrecord(tmp_path, EXAMPLES, options=compression)
    pairs = _read("tfrecord", "x-train.tfrecord-00000-of-00001", content)
    assert [pair.image for pair in pairs] == [b"image %d" % i for i in range(5)]
    assert pairs[3].captions == ((b"caf\xc3\xa9", None), (b"two", None))
    assert (pairs[3].label, pairs[3].extra) == (3, {"w": 9})


def test_damaged_record_costs_no_other(tmp_path):
    content = bytearray(_tfrecord(tmp_path, EXAMPLES))
    content[content.index(b"image 2")] ^= 1
    pairs = _read("tfrecord", "x.tfrecord", bytes(content))
    assert [pair.image for pair in pairs] == [b"image 0", b"image 1", None, b"image 3", b"image 4"]
    assert pairs[2].problem.reason == reasons.DAMAGED_ARCHIVE
    assert "record 2 at byte" in pairs[2].problem.detail


def test_large_record_is_passed_over(tmp_path):
    rows = [EXAMPLES[0], {"jpg": [bytes(2**21)]}, EXAMPLES[1]]
    first, large, last = _read("tfrecord", "x.tfrecord", _tfrecord(tmp_path, rows))
    assert (first.image, last.image) == (b"image 0", b"image 1")
    assert large.problem.reason == reasons.DAMAGED_ARCHIVE
    assert "the limit is" in large.problem.detail


@pytest.mark.parametrize(
    ("names", "format_name"),
    [
        (["00000.tar", "00000.parquet", "00000_stats.json"], "webdataset"),
        (["00000.tfrecord", "00000.parquet"], "tfrecord"),
        (["data_tfrecord-00000-of-00002.gz"], "tfrecord"),
        (["train/data-00000-of-00001.arrow", "train/state.json"], "huggingface"),
        (["pairs.csv", "images/a.jpg"], "table"),
        (["a.jpg", "a.txt"], "images"),
    ],
)
def test_format_is_told_by_the_files(names, format_name):
    files = Memory({f"base/{name}": b"" for name in names} | {"base/.hidden.tar": b""})
    found = inventory.take("base", files, sources.SourceConfig())
    assert list(found.read) == [format_name]
    assert sources.PassedOver("base/.hidden.tar", reasons.HIDDEN) in found.passed_over


def test_what_is_no_input_is_refused():
    files = Memory({"base/readme.md": b""})
    with pytest.raises(ValueError, match=r"pairs in any format.*readme\.md"):
        inventory.take("base", files, sources.SourceConfig())
    with pytest.raises(ValueError, match=r"must be one of auto, webdataset"):
        inventory.take("base", files, sources.SourceConfig(format="zip"))
    with pytest.raises(ValueError, match=r"must hold list"):
        inventory.take("base", files, sources.SourceConfig(format="list"))
