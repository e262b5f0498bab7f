"""Benchmarks as `clip_benchmark_export_wds` writes them."""

import io
import tarfile

import numpy as np
import pytest
from PIL import Image

from sigline.components.ingest import clip_benchmark
from sigline.components.shared.files import BeamFiles

# As in ImageNet two classes have the same name.
NAMES = ("tench", "missile", "missile", "jay")


def _image(form, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 255, (9, 11, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, form, lossless=True)
    return buffer.getvalue(), pixels


def _npy(values):
    buffer = io.BytesIO()
    np.save(buffer, np.asarray(values))
    return buffer.getvalue()


def _write(folder, shards, *, split="test", kind=None, classes=NAMES, templates=("a {c}.",)):
    """Writes shards of samples, each the contents of its members by suffix."""
    (folder / split).mkdir(parents=True)
    number = 0
    for place, samples in enumerate(shards):
        with tarfile.open(folder / split / f"{place}.tar", "w") as archive:
            for sample in samples:
                for suffix, content in sample.items():
                    member = tarfile.TarInfo(f"s{number:07d}.{suffix}")
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))
                number += 1
    (folder / split / "nshards.txt").write_text(f"{len(shards)}\n")
    for name, lines in (
        ("dataset_type.txt", [kind]),
        ("classnames.txt", classes),
        ("zeroshot_classification_templates.txt", templates),
    ):
        if lines and lines[0]:
            (folder / name).write_text("\n".join(lines) + "\n")
    return folder


def _read(folder):
    benchmark = clip_benchmark.open_split(folder, "test")
    shards = [list(clip_benchmark.records(benchmark, x, BeamFiles())) for x in benchmark.shards]
    return benchmark, [record for shard in shards for record in shard]


def test_classification(tmp_path):
    shards = [
        [{"webp": _image("WEBP", 0)[0], "cls": b"0"}, {"png": _image("PNG", 1)[0], "cls": b"3"}],
        [{"jpg": _image("JPEG", 2)[0], "cls": b"2"}, {"jpeg": _image("JPEG", 3)[0], "cls": b"1"}],
    ]
    benchmark, records = _read(_write(tmp_path / "birds", shards))
    assert benchmark.labels.names == ("tench", "missile", "jay")
    assert benchmark.labels.templates == ("a {}.",)
    assert [x.key for x in records] == [
        "0/s0000000",
        "0/s0000001",
        "1/s0000002",
        "1/s0000003",
    ]
    assert [item.label for item in records] == [(0,), (2,), (1,), (1,)]
    captions = ["a tench.", "a jay.", "a missile.", "a missile."]
    assert [item.text for item in records] == [(caption,) for caption in captions]
    assert {item.source for item in records} == {"birds"}
    # JPEG and PNG are kept as they are; others without loss.
    assert records[1].image == shards[0][1]["png"]
    assert records[2].image == shards[1][0]["jpg"]
    np.testing.assert_array_equal(Image.open(io.BytesIO(records[0].image)), _image("WEBP", 0)[1])


def test_several_labels(tmp_path):
    image = _image("PNG")[0]
    given = [[1, 0, 0, 1], [0, 1, 1, 0], [0, 0, 0, 0]]
    samples = [{"png": image, "npy": _npy(row)} for row in given]
    samples.append({"png": image, "npy": _npy(np.array([0, 0, 0, 1], np.float32))})
    _, records = _read(_write(tmp_path / "many", [samples], kind="multilabel"))
    assert [item.label for item in records] == [(0, 2), (1,), (), (2,)]


def test_retrieval(tmp_path):
    samples = [
        {"png": _image("PNG", 0)[0], "txt": b"A dog.\nA cat."},
        {"png": _image("PNG", 1)[0], "txt": "Ein Bär \n".encode()},
    ]
    benchmark, records = _read(_write(tmp_path / "both", [samples], kind="retrieval"))
    assert benchmark.labels is None
    assert [item.text for item in records] == [("A dog.", "A cat."), ("Ein Bär",)]
    assert [item.label for item in records] == [(), ()]


def test_classes_need_no_names_and_no_templates(tmp_path):
    samples = [{"png": _image("PNG")[0], "cls": b"7"}]
    benchmark, records = _read(_write(tmp_path / "a", [samples], classes=(), templates=()))
    assert benchmark.labels is None
    assert records[0].label == (7,)
    benchmark, _ = _read(_write(tmp_path / "b", [[samples[0] | {"cls": b"1"}]], templates=()))
    assert benchmark.labels.templates == ("a photo of {}",)


def _header_of(shape):
    return _npy([1, 0, 0, 1]).replace(b"(4,)", shape)


@pytest.mark.parametrize(
    ("kind", "sample", "message"),
    [
        ("classification", {"cls": b"4"}, "one of 4 classes, not 4"),
        ("classification", {"cls": b"-1"}, "must be a class id, not '-1'"),
        ("classification", {"cls": b"9" * 30}, "must be a class id"),
        ("classification", {}, "there is no label"),
        ("multilabel", {"cls": b"1"}, "magic string"),
        ("multilabel", {"npy": b"junk"}, "magic"),
        ("multilabel", {"npy": _header_of(b"(9,)")}, "must be a vector of numbers"),
        ("multilabel", {"npy": _npy([[1, 0], [0, 1]])}, "must be a vector of numbers"),
        ("multilabel", {"npy": _npy([0, 0, 0, 0, 1])}, "one of 4 classes, not 4"),
        ("multilabel", {"npy": _npy(np.array([{}], object))}, "must be a vector of numbers"),
        ("retrieval", {"txt": b"\n \n"}, "there is no caption"),
        ("retrieval", {"txt": b"\xff"}, "invalid start byte"),
        ("retrieval", {"txt": b"a dog", "png": b"\x89PNG junk"}, "0/s0000000: "),
    ],
)
def test_no_sample_is_left_out(tmp_path, kind, sample, message):
    samples = [{"png": _image("PNG")[0]} | sample]
    with pytest.raises(ValueError, match=message):
        _read(_write(tmp_path / "x", [samples], kind=kind))


def test_shard_that_was_cut_off_is_named(tmp_path):
    folder = _write(tmp_path / "x", [[{"png": _image("PNG")[0], "cls": b"0"}] * 3])
    path = folder / "test" / "0.tar"
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(ValueError, match=r"0\.tar must be readable.*damaged_archive"):
        _read(folder)


def test_what_a_folder_says_must_fit(tmp_path):
    folder = _write(tmp_path / "x", [[{"png": _image("PNG")[0], "cls": b"0"}]])
    assert clip_benchmark.has_split(folder, "test")
    assert not clip_benchmark.has_split(folder, "train")
    for name, content, message in (
        ("classnames.txt", "a\n\nb\n", "names must be distinct and not empty"),
        ("zeroshot_classification_templates.txt", "a photo\n", "exactly once"),
        ("dataset_type.txt", "captions", "must hold classification, multilabel or retrieval"),
        ("test/nshards.txt", "three", "must hold the number of shards"),
        ("test/nshards.txt", "3", r"Missing: 2, such as 1\.tar, 2\.tar"),
    ):
        path = folder / name
        before = path.read_text() if path.is_file() else None
        path.write_text(content)
        with pytest.raises(ValueError, match=message):
            clip_benchmark.open_split(folder, "test")
        if before is None:
            path.unlink()
        else:
            path.write_text(before)
