import io
import tarfile

import pytest

from sigline.components.ingest import readers, rules


def _tar(members, form=tarfile.USTAR_FORMAT):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def _scan(content, shard="data/emoji-00003.tar"):
    return list(readers.WebDatasetReader().scan(io.BytesIO(content), shard, 1000))


GOOD = [("a.png", b"A"), ("a.txt", b"x"), ("a.json", b"{}"), ("b.jpg", b"B"), ("b.txt", b"y")]


def test_members_that_share_a_name_are_one_sample():
    first, second = _scan(_tar(GOOD))
    assert (first.key, first.image, first.text, first.metadata) == ("a", b"A", b"x", b"{}")
    assert (second.key, second.image, second.text, second.metadata) == ("b", b"B", b"y", None)
    assert {pair.source for pair in (first, second)} == {"emoji"}


def test_fetch_returns_what_scan_saw():
    content = _tar(GOOD)
    pairs = _scan(content)
    fetched = readers.WebDatasetReader().fetch(io.BytesIO(content), [p.locator for p in pairs])
    assert list(fetched) == [b"A", b"B"]


def test_same_name_in_two_folders_is_two_samples():
    pairs = _scan(
        _tar([("x/a.png", b"1"), ("x/a.txt", b"t"), ("y/a.png", b"2"), ("y/a.txt", b"u")])
    )
    assert [pair.key for pair in pairs] == ["x/a", "y/a"]


def test_unknown_members_of_a_sample_and_files_without_suffix_are_passed_over():
    pairs = _scan(_tar([("a.png", b"A"), ("a.txt", b"x"), ("a.cls", b"3"), ("README", b"hi")]))
    assert [pair.key for pair in pairs] == ["a"]


def test_sample_of_unknown_members_only_is_not_lost():
    pairs = _scan(_tar([("a.avif", b"A"), ("a.caption", b"x"), *GOOD[3:]]))
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
    assert last.problem[0] == rules.DAMAGED_ARCHIVE


def test_hostile_names_are_only_keys():
    pairs = _scan(_tar([("../../etc/passwd.png", b"A"), ("../../etc/passwd.txt", b"x")]))
    assert [pair.key for pair in pairs] == ["../../etc/passwd"]


def test_large_image_is_a_problem_and_is_not_read():
    first, second = _scan(_tar([("a.png", bytes(1001)), ("a.txt", b"x"), *GOOD[3:]]))
    assert first.problem[0] == rules.images.TOO_MANY_BYTES
    assert first.image is None
    assert second.problem is None


# Cut in the data of b's image, in its header, and before the end mark.
@pytest.mark.parametrize("cut", [3 * 1024 + 512, 3 * 1024 + 100, 5 * 1024])
def test_cut_archive_keeps_what_came_before_and_says_so(cut):
    content = _tar(GOOD)[:cut]
    *good, last = _scan(content)
    assert good[0].key == "a"
    assert good[0].problem is None
    assert last.problem[0] == rules.DAMAGED_ARCHIVE


def test_broken_header_in_the_middle_is_damage_and_not_the_end():
    content = bytearray(_tar(GOOD))
    content[3 * 1024 : 3 * 1024 + 512] = b"\xaa" * 512
    first, last = _scan(bytes(content))
    assert first.key == "a"
    assert last.problem[0] == rules.DAMAGED_ARCHIVE


@pytest.mark.parametrize("content", [b"", b"no tar at all" * 100])
def test_file_that_is_no_archive_is_one_problem(content):
    (pair,) = _scan(content)
    assert pair.problem[0] == rules.DAMAGED_ARCHIVE


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("a/noto-emoji-00000.tar", "noto-emoji"),
        ("00012.tar", "00012"),
        ("scenes-heldout-00001.tar", "scenes-heldout"),
        ("cc3m_train_003.tar", "cc3m_train"),
    ],
)
def test_source_name(path, source):
    assert readers.source_name(path) == source


def test_reader_is_chosen_by_suffix():
    assert readers.reader_for("x/y.tar") is not None
    assert readers.reader_for("x/y.json") is None
