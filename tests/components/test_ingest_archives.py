"""What lies in archives: every member is read, or passed over by name."""

import bz2
import collections
import gzip
import io
import lzma
import tarfile

import pytest
import zstandard

from sigline.components.ingest import compression, reasons, sources
from sigline.components.ingest.readers.tables import TableReader
from sigline.components.ingest.readers.webdataset import WebDatasetReader

SHARD = "in/shots-000.tar"
HARD, SYMBOLIC = tarfile.LNKTYPE, tarfile.SYMTYPE
COMPRESS = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": zstandard.ZstdCompressor().compress,
}


def tar(members):
    """Returns an archive; the content of a link is `(type, target)`."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            if isinstance(content, bytes):
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
            else:
                info.type, info.linkname = content
                archive.addfile(info)
    return buffer.getvalue()


class OneFile:
    def __init__(self, content):
        self._content = content

    def open(self, path):
        return io.BytesIO(self._content)


def scan(content, limit=1000, path=SHARD):
    """Returns the pairs, what was passed over by name, and the members; all members add up."""
    files, config = OneFile(content), sources.SourceConfig()
    items = list(WebDatasetReader().scan(sources.Part(path), files, config, limit))
    pairs = [item for item in items if isinstance(item, sources.RawPair)]
    passed = [
        (item.path.removeprefix(path + "/"), item.reason)
        for item in items
        if isinstance(item, sources.PassedOver)
    ]
    *_, members = items
    assert members.total == members.read + len(passed)
    return pairs, passed, members


def contents(pairs):
    return [(pair.key, pair.image, pair.text) for pair in pairs]


def numbered(count, form="shot.{:04d}", start=0):
    return [
        (form.format(i) + suffix, content + b"%d" % i)
        for i in range(start, start + count)
        for suffix, content in ((".jpg", b"J"), (".txt", b"T"))
    ]


@pytest.mark.parametrize("form", ["shot.{:04d}", "a.b/{}.5", "v1.{}.final", "0.{:02d}"])
def test_dots_before_the_suffix_are_part_of_the_key(form):
    pairs, passed, _ = scan(tar(numbered(20, form)))
    expected = [(form.format(i), b"J%d" % i, b"T%d" % i) for i in range(20)]
    assert contents(pairs) == expected
    assert passed == []


def test_further_images_of_a_sample_are_no_samples():
    members = []
    for i in range(3):
        for suffix in (".cls", ".depth.png", ".jpg", ".seg.json", ".seg.png", ".txt"):
            members.append((f"{i:03d}{suffix}", suffix.encode()))
    pairs, passed, _ = scan(tar(members))
    assert contents(pairs) == [(f"{i:03d}", b".jpg", b".txt") for i in range(3)]
    assert [pair.label for pair in pairs] == [b".cls"] * 3
    extra = [(name, reasons.EXTRA_MEMBER) for name, _ in members if name.count(".") == 2]
    assert sorted(passed) == sorted(extra)


def test_name_with_dots_that_has_image_and_text_is_a_sample_beside_its_key():
    members = [("shot.jpg", b"J"), ("shot.txt", b"T"), *numbered(3)]
    pairs, passed, _ = scan(tar(members))
    assert sorted(pair.key for pair in pairs) == ["shot", "shot.0000", "shot.0001", "shot.0002"]
    assert passed == []


def test_many_names_with_dots_need_no_text_to_be_samples():
    members = [(f"shot.{i}.{kind}", b"x") for i in range(100) for kind in ("jpg", "json")]
    pairs, passed, _ = scan(tar(members))
    assert [pair.key for pair in pairs] == [f"shot.{i}" for i in range(100)]
    assert passed == []


def test_joined_archives_are_read_to_the_end():
    joined = b"".join(tar(numbered(2, "a{}", start)) for start in (0, 2, 4))
    pairs, passed, _ = scan(joined)
    assert contents(pairs) == [(f"a{i}", b"J%d" % i, b"T%d" % i) for i in range(6)]
    assert [joined[pair.place.offset :][: pair.place.size] for pair in pairs] == [
        b"J%d" % i for i in range(6)
    ]
    assert passed == []


@pytest.mark.parametrize("form", COMPRESS)
def test_joined_compressed_archives_are_read_to_the_end(form):
    first, second = (COMPRESS[form](tar(numbered(2, "a{}", start))) for start in (0, 2))
    # The first bytes tell what a file is, whatever its name says.
    for path in (f"{SHARD}.{form}", SHARD):
        pairs, _, _ = scan(first + second, path=path)
        assert contents(pairs) == [(f"a{i}", b"J%d" % i, b"T%d" % i) for i in range(4)]
        assert {pair.place for pair in pairs} == {None}


@pytest.mark.parametrize("form", COMPRESS)
def test_cut_compressed_archive_says_so(form):
    import random

    noise = [random.Random(i).randbytes(900) for i in range(300)]
    content = COMPRESS[form](tar([(f"{i:03d}.png", noise[i]) for i in range(300)]))
    pairs, _, _ = scan(content[: len(content) * 2 // 3])
    assert [pair.image for pair in pairs[:-1]] == noise[: len(pairs) - 1]
    assert pairs[-1].problem.reason == reasons.DAMAGED_ARCHIVE
    if form != "bz2":  # Its blocks hold more than this archive.
        assert len(pairs) > 100


def test_bytes_behind_the_end_mark_are_named():
    pairs, passed, _ = scan(tar(numbered(1)) + b"no archive" * 100)
    assert [pair.key for pair in pairs] == ["shot.0000"]
    assert passed == [("1000 bytes behind the end", reasons.TRAILING_BYTES)]
    _, passed, _ = scan(tar(numbered(1)) + bytes(3 * 2**20))
    assert [reason for _, reason in passed] == [reasons.TRAILING_BYTES]


@pytest.mark.parametrize("form", [None, *COMPRESS])
def test_links_are_read_as_what_they_lead_to(form):
    members = [
        ("all/1.jpg", b"ONE"),
        ("all/1.txt", b"one"),
        ("cats/a.jpg", (HARD, "all/1.jpg")),
        ("cats/a.txt", b"a"),
        ("cats/b.jpg", (SYMBOLIC, "../late/2.jpg")),
        ("cats/b.txt", (SYMBOLIC, "./a.txt")),
        ("cats/c.png", (SYMBOLIC, "b.jpg")),
        ("cats/c.txt", b"c"),
        ("late/2.jpg", b"TWO"),
        ("late/2.txt", b"two"),
    ]
    content = tar(members)
    pairs, passed, members = scan(COMPRESS[form](content) if form else content)
    assert sorted(contents(pairs)) == [
        ("all/1", b"ONE", b"one"),
        ("cats/a", b"ONE", b"a"),
        ("cats/b", b"TWO", b"a"),
        ("cats/c", b"TWO", b"c"),
        ("late/2", b"TWO", b"two"),
    ]
    assert passed == []
    assert members == (10, 10)
    if form is None:
        for pair in pairs:
            assert content[pair.place.offset :][: pair.place.size] == pair.image


def test_links_that_lead_nowhere_are_named():
    members = [
        ("a.jpg", (HARD, "b.jpg")),  # Which stands behind it.
        ("a.txt", b"a"),
        ("b.jpg", b"B"),
        ("b.txt", b"b"),
        ("c.jpg", (SYMBOLIC, "/etc/passwd")),
        ("d.jpg", (SYMBOLIC, "../../secret.jpg")),
        ("e.jpg", (SYMBOLIC, "f.jpg")),
        ("f.jpg", (SYMBOLIC, "e.jpg")),
        ("g.jpg", (SYMBOLIC, "missing.jpg")),
        ("h.jpg", (HARD, "folder")),
    ]
    pairs, passed, _ = scan(tar(members))
    assert sorted(contents(pairs), key=str) == [("a", None, b"a"), ("b", b"B", b"b")]
    assert dict(passed) == {
        "a.jpg": reasons.BROKEN_LINK,
        "c.jpg": reasons.UNSAFE_LINK,
        "d.jpg": reasons.UNSAFE_LINK,
        "e.jpg": reasons.BROKEN_LINK,
        "f.jpg": reasons.BROKEN_LINK,
        "g.jpg": reasons.BROKEN_LINK,
        "h.jpg": reasons.BROKEN_LINK,
    }


def test_large_target_of_a_link_is_a_problem_and_is_not_read():
    members = [("a.jpg", bytes(2000)), ("b.jpg", (HARD, "a.jpg")), ("b.txt", b"b")]
    pairs, _, _ = scan(tar(members))
    assert [pair.problem.reason for pair in pairs] == [reasons.TOO_MANY_BYTES] * 2
    assert [pair.image for pair in pairs] == [None, None]


def test_members_that_belong_to_no_sample_are_named():
    members = [
        ("./", (tarfile.DIRTYPE, "")),
        ("pipe.jpg", (tarfile.FIFOTYPE, "")),
        ("README.md", b"r"),
        ("LICENSE", b"l"),
        ("x/._a.jpg", b"mac"),
        ("x/noname", b"n"),
        ("x/a.jpg", b"A"),
        ("x/a.txt", b"a"),
        ("x/a.wav", b"w"),
    ]
    pairs, passed, members = scan(tar(members))
    assert contents(pairs) == [("x/a", b"A", b"a")]
    assert dict(passed) == {
        ".": reasons.FOLDER,
        "pipe.jpg": reasons.SPECIAL_FILE,
        "README.md": reasons.DOCUMENT,
        "LICENSE": reasons.DOCUMENT,
        "x/._a.jpg": reasons.HIDDEN,
        "x/noname": reasons.UNKNOWN_FORMAT,
        "x/a.wav": reasons.EXTRA_MEMBER,
    }
    assert members == (9, 2)


def test_every_member_is_read_or_named_whatever_is_cut_off():
    first = tar([*numbered(5), ("x.jpg", (HARD, "shot.0001.jpg")), ("x.txt", b"x"), *numbered(2)])
    whole = first + tar(numbered(3, "b{}"))
    end = 512 * (2 * 15 + 1 + 1)  # Behind the first block of the first end mark.
    for cut in range(1, len(whole), 509):
        pairs, passed, members = scan(whole[:cut])
        problems = [pair.problem.reason for pair in pairs if pair.problem is not None]
        if end <= cut <= len(first):
            assert (problems, members) == ([], (16, 16))
        elif len(first) < cut < len(first) + 512:
            assert passed == [(f"{cut - len(first)} bytes behind the end", reasons.TRAILING_BYTES)]
        elif cut < len(whole) - 10240 + 512 * (2 * 6 + 1):
            assert problems == [reasons.DAMAGED_ARCHIVE]
        assert all(pair.image for pair in pairs if pair.problem is None and pair.key != "x")


@pytest.mark.parametrize(
    "name",
    ["a.tar", "A.TAR", "a.Tar.Gz", "a.tgz", "a.tar.bz2", "a.tbz2", "a.TAR.ZST", "a.tzst", "a.txz"],
)
def test_archives_are_told_by_their_names(name):
    assert WebDatasetReader().accepts(f"in/{name}")


@pytest.mark.parametrize("form", COMPRESS)
def test_compressed_tables_are_read(form):
    rows = [b"image,caption\n", *(b"%d.png,text %d\n" % (i, i) for i in range(50))]
    content = COMPRESS[form](b"".join(rows[:20])) + COMPRESS[form](b"".join(rows[20:]))
    path = f"in/T.CSV.{form}"
    reader, files, config = TableReader(), OneFile(content), sources.SourceConfig()
    assert reader.accepts(path)
    (part,) = reader.parts(path, files, config)
    pairs = list(reader.scan(part, files, config, 0))
    assert [pair.image_path for pair in pairs] == [f"in/{i}.png" for i in range(50)]
    *_, last = reader.scan(part, OneFile(content[:-5]), config, 0)
    assert last.problem.reason == reasons.DAMAGED_ARCHIVE


@pytest.mark.parametrize("form", COMPRESS)
def test_stream_that_grows_is_read_piece_by_piece(form):
    content = COMPRESS[form](bytes(2**24))
    read = collections.Counter()

    class Counted(io.BytesIO):
        def read(self, size=-1):
            read["calls"] += 1
            return super().read(size)

    with compression.decompressed(Counted(content)) as stream:
        assert stream.read(100) == bytes(100)
        # Nothing that follows was unpacked for these.
        assert read["calls"] < 5
        assert sum(len(piece) for piece in iter(lambda: stream.read(2**16), b"")) == 2**24 - 100
