import hashlib
import io
import json
import shutil
import tarfile

import apache_beam as beam
import numpy as np
import power_cut
import pytest
from PIL import Image

from sigline.components.ingest import input_files, rules, sources, transforms
from sigline.components.ingest.options import IngestConfig
from sigline.components.scenes import draw, generate, grammar
from sigline.schemas import tf_example

FAULTS = {
    generate.CORRUPT: 0.05,
    generate.EXACT_DUPLICATE: 0.1,
    generate.REENCODED_DUPLICATE: 0.1,
    generate.EMPTY_TEXT: 0.05,
    generate.WRONG_EXTENSION: 0.05,
}


def _check_whole(state):
    """Returns whether a cut of the power left a manifest; all that it names is whole then."""
    if "examples/manifest.json" not in state:
        return False
    splits = json.loads(state["examples/manifest.json"])["splits"]
    for split, known in splits.items():
        for name, shard in known["shards"].items():
            content = state[f"examples/Split-{split}/{name}"]
            assert hashlib.sha256(content).hexdigest() == shard["sha256"]
    assert json.loads(state["report/counts.json"])["written"]
    return True


def test_cut_of_the_power_leaves_no_manifest_without_its_shards(tmp_path):
    generate.write_scenes(tmp_path / "data", count=60, seed=5)
    (tmp_path / "out").mkdir()
    found = power_cut.states(tmp_path / "out", lambda: _ingest(tmp_path / "data", tmp_path / "out"))
    assert {_check_whole(state) for state in found} == {True, False}


def _ingest(source, output, config=None):
    config = config or IngestConfig(
        eval_sources=(generate.HELD_OUT_SOURCE,), eval_share=0.3, shard_records=40
    )
    for name in ("examples", "report"):
        (output / name).mkdir(parents=True)
    with beam.Pipeline(runner="FnApiRunner") as pipeline:
        _ = pipeline | transforms.Ingest(
            str(source),
            str(output / "examples"),
            str(output / "report"),
            config,
        )
    return output


def _records(output, split):
    return [
        tf_example.decode(item)
        for path in sorted((output / "examples" / f"Split-{split}").iterdir())
        for item in tf_example.read_shard(str(path))
    ]


def _counts(output):
    return json.loads((output / "report" / "counts.json").read_text())


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes")
    generate.write_scenes(folder, count=300, seed=3, faults=FAULTS)
    return folder


@pytest.fixture(scope="module")
def ingested(scenes, tmp_path_factory):
    return _ingest(scenes, tmp_path_factory.mktemp("ingested"))


def test_every_pair_is_written_or_rejected(ingested, scenes):
    counts = _counts(ingested)
    assert counts["input"] == 300 == counts["written"] + counts["rejected"]
    planted = list(json.loads((scenes / generate.FAULTS_FILE).read_text()).values())
    assert counts["rejected_by_reason"] == {
        "corrupt_image": planted.count(generate.CORRUPT),
        "empty_text": planted.count(generate.EMPTY_TEXT),
    }
    assert sum(len(_records(ingested, split)) for split in ("train", "eval")) == counts["written"]


def test_rejections_name_the_planted_pairs(ingested, scenes):
    planted = json.loads((scenes / generate.FAULTS_FILE).read_text())
    expected = {k for k, v in planted.items() if v in (generate.CORRUPT, generate.EMPTY_TEXT)}
    lines = [
        json.loads(line)
        for path in (ingested / "report" / "rejected").iterdir()
        for line in path.read_text().splitlines()
    ]
    assert {line["key"] for line in lines} == expected
    assert all(line["shard"].endswith(".tar") and line["detail"] for line in lines)


def test_manifest_tells_records_sources_and_digests(ingested):
    from sigline.schemas import digests

    manifest = json.loads((ingested / "examples" / "manifest.json").read_text())["splits"]
    for split, content in manifest.items():
        assert sum(content["sources"].values()) == len(_records(ingested, split))
        for name, shard in content["shards"].items():
            path = ingested / "examples" / f"Split-{split}" / name
            assert digests.file_digest(path) == shard["sha256"]
            assert path.stat().st_size == shard["bytes"]
            assert len(list(tf_example.read_shard(str(path)))) == shard["records"]


def test_held_out_source_goes_to_eval_whole(ingested):
    assert not [r for r in _records(ingested, "train") if r.source == generate.HELD_OUT_SOURCE]
    held_out = [r for r in _records(ingested, "eval") if r.source == generate.HELD_OUT_SOURCE]
    assert len(held_out) == 15


def test_duplicates_do_not_straddle_the_splits(ingested, scenes):
    train, evaluation = (_records(ingested, split) for split in ("train", "eval"))
    assert not {r.image_sha256 for r in train} & {r.image_sha256 for r in evaluation}

    # Copies share captions and picture: the re-encoded ones are found by their source's caption set
    # and layout, that is, by a near-zero difference of the decoded pictures.
    def _small(records):
        return np.stack(
            [np.asarray(Image.open(io.BytesIO(r.image)).convert("RGB"), np.int16) for r in records]
        )

    left, right = _small(train), _small(evaluation)
    for picture in right:
        assert np.abs(left - picture).mean(axis=(1, 2, 3)).min() > 1.5


def test_output_is_the_same_in_every_run(ingested, scenes, tmp_path):
    again = _ingest(scenes, tmp_path / "again")
    first = {p.name: p.read_bytes() for p in (ingested / "examples").rglob("*") if p.is_file()}
    second = {p.name: p.read_bytes() for p in (again / "examples").rglob("*") if p.is_file()}
    assert first == second


def test_output_does_not_depend_on_the_folder(ingested, scenes, tmp_path):
    shutil.copytree(scenes, tmp_path / "moved")
    again = _ingest(tmp_path / "moved", tmp_path / "out")
    first = (ingested / "examples" / "manifest.json").read_bytes()
    assert (again / "examples" / "manifest.json").read_bytes() == first


def test_output_does_not_depend_on_the_runner(ingested, scenes, tmp_path):
    for name in ("examples", "report"):
        (tmp_path / name).mkdir()
    config = IngestConfig(
        eval_sources=(generate.HELD_OUT_SOURCE,), eval_share=0.3, shard_records=40
    )
    options = beam.options.pipeline_options.PipelineOptions(
        ["--direct_num_workers=2", "--direct_running_mode=multi_threading"]
    )
    with beam.Pipeline(runner="FnApiRunner", options=options) as pipeline:
        _ = pipeline | transforms.Ingest(
            str(scenes),
            str(tmp_path / "examples"),
            str(tmp_path / "report"),
            config,
        )
    for split in ("train", "eval"):
        assert _records(tmp_path, split) == _records(ingested, split)


def test_damaged_shard_costs_no_other_record(scenes, tmp_path):
    copy = tmp_path / "scenes"
    shutil.copytree(scenes, copy)
    shard = copy / "scenes-00000.tar"
    shard.write_bytes(shard.read_bytes()[:400_000])
    output = _ingest(copy, tmp_path / "out")
    counts = _counts(output)
    assert counts["rejected_by_reason"]["damaged_archive"] == 1
    assert counts["written"] > 50


def test_eval_source_that_the_input_lacks_is_refused(scenes, tmp_path):
    config = IngestConfig(eval_sources=("scenes-heldotu",))
    with pytest.raises(ValueError, match=r"scenes-heldotu.*the input has"):
        _ingest(scenes, tmp_path, config)


def test_folder_without_shards_is_refused(tmp_path):
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(ValueError, match="must hold pairs in any format"):
        _ingest(tmp_path, tmp_path / "out")


def test_broken_classes_file_is_refused(tmp_path):
    (tmp_path / "classes.json").write_text('{"names": []')
    with pytest.raises(ValueError, match="Expecting"):
        input_files.copy_classes(str(tmp_path), str(tmp_path / "out"))


def test_counts_name_what_is_left_out_of_pairs(tmp_path):
    (tmp_path / "in").mkdir()
    samples = _samples(4)
    for key, image, _ in samples:
        (tmp_path / "in" / f"{key}.png").write_bytes(image)
    rows = [
        {"caption": {"de": "Gorilla", "en": ["gorilla", "Gorilla"]}, "label": "GREAT ape"},
        {"caption": "['a dog', 'nan']", "label": "1.0"},
        {"caption": "a lynx", "label": "lynx"},
        {"caption": "nothing", "label": float("nan")},
    ]
    lines = [json.dumps(row | {"image": f"k{i:03d}.png"}) for i, row in enumerate(rows)]
    (tmp_path / "in" / "pairs.jsonl").write_text("\n".join(lines))
    (tmp_path / "in" / "classes.json").write_text('{"names": ["great ape", "dog"]}')
    output = _ingest(tmp_path / "in", tmp_path, IngestConfig())
    counts = _counts(output)
    assert (counts["written"], counts["rejected"]) == (4, 0)
    assert counts["remarks"] == {
        "captions_in_further_languages": 1,
        "captions_missing": 1,
        "labels_in_meta": 1,
        "labels_missing": 1,
    }
    records = [item for split in ("train", "eval") for item in _records(output, split)]
    by_text = {item.text[0]: item for item in records}
    assert by_text["Gorilla"].label == (0,)
    assert by_text["Gorilla"].text == ("Gorilla", "Gorilla", "gorilla")
    assert by_text["Gorilla"].language == ("de", "en", "en")
    assert by_text["a dog"].label == (1,)
    assert (by_text["a lynx"].label, by_text["a lynx"].meta) == ((), '{"label": "lynx"}')


@pytest.mark.slow
def test_noto_emoji_ingests_completely(noto_emoji, tmp_path):
    output = _ingest(noto_emoji, tmp_path, IngestConfig())
    counts = _counts(output)
    assert counts["input"] == 3374 == counts["written"]
    # 333 of the 37,114 names are that of another language, too.
    assert counts["remarks"] == {"captions_in_further_languages": 333}
    for record in _records(output, "eval")[:50]:
        assert set(record.language) == set(
            ["ar", "de", "en", "es", "fr", "hi", "ja", "ko", "pt", "ru", "zh"]
        )
        image = Image.open(io.BytesIO(record.image))
        assert not image.has_transparency_data
        assert len(record.text) == len(record.language) >= 1
        if image.size == (128, 128):
            assert tuple(np.asarray(image.convert("RGB"))[0, 0]) == (255, 255, 255)


def _samples(count):
    """Returns key, image and caption of scenes."""
    found = []
    for index in range(count):
        rng = np.random.default_rng(index)
        scene, buffer = grammar.sample_scene(rng, held_out=False), io.BytesIO()
        draw.draw_scene(scene, rng).save(buffer, "PNG")
        found.append((f"k{index:03d}", buffer.getvalue(), scene.captions()[0]))
    return found


def _write_webdataset(samples, folder):
    with tarfile.open(folder / "x-0.tar.gz", "w:gz") as archive:
        for key, image, text in samples:
            for suffix, content in (("png", image), ("txt", text.encode())):
                info = tarfile.TarInfo(f"{key}.{suffix}")
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))


def _write_images(samples, folder):
    for key, image, text in samples:
        (folder / f"{key}.png").write_bytes(image)
        (folder / f"{key}.txt").write_text(text)


def _write_csv(samples, folder):
    (folder / "images").mkdir()
    lines = ["key,image,caption"]
    for key, image, text in samples:
        (folder / "images" / f"{key}.png").write_bytes(image)
        lines.append(f'{key},images/{key}.png,"{text}"')
    (folder / "pairs.csv").write_text("\n".join(lines))


def _write_jsonl(samples, folder):
    (folder / "images").mkdir()
    lines = []
    for key, image, text in samples:
        (folder / "images" / f"{key}.png").write_bytes(image)
        lines.append(json.dumps({"key": key, "image": f"images/{key}.png", "caption": text}))
    (folder / "pairs.jsonl").write_text("\n".join(lines))


def _table(samples):
    import pyarrow as pa

    return pa.Table.from_pylist([{"key": k, "image": i, "caption": t} for k, i, t in samples])


def _write_parquet(samples, folder):
    import pyarrow.parquet as pq

    pq.write_table(_table(samples), folder / "pairs.parquet", row_group_size=16)


def _write_huggingface(samples, folder):
    import pyarrow as pa

    (folder / "train").mkdir()
    table = _table(samples)
    with pa.ipc.new_stream(str(folder / "train" / "data-0.arrow"), table.schema) as writer:
        writer.write_table(table)


def _write_tfrecord(samples, folder):
    import tensorflow as tf

    with tf.io.TFRecordWriter(str(folder / "pairs.tfrecord")) as writer:
        for key, image, text in samples:
            feature = {
                name: tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))
                for name, value in (
                    ("key", key.encode()),
                    ("image", image),
                    ("caption", text.encode()),
                )
            }
            features = tf.train.Features(feature=feature)
            writer.write(tf.train.Example(features=features).SerializeToString())


@pytest.mark.parametrize(
    "write",
    [
        _write_webdataset,
        _write_images,
        _write_csv,
        _write_jsonl,
        _write_parquet,
        _write_huggingface,
        _write_tfrecord,
    ],
)
def test_every_format_gives_the_same_records(write, tmp_path):
    samples = _samples(40)
    # One image that is no JPEG or PNG, one that is damaged, and one without caption.
    buffer = io.BytesIO()
    Image.open(io.BytesIO(samples[3][1])).convert("RGB").save(buffer, "WEBP", lossless=True)
    samples[3] = (samples[3][0], buffer.getvalue(), samples[3][2])
    samples[5] = (samples[5][0], b"\x89PNG\r\n\x1a\n damaged", samples[5][2])
    samples[7] = (samples[7][0], samples[7][1], "")
    (tmp_path / "in").mkdir()
    write(samples, tmp_path / "in")
    output = _ingest(tmp_path / "in", tmp_path / "out", IngestConfig(shard_records=16))
    counts = _counts(output)
    assert counts["input"] == len(samples) == counts["written"] + counts["rejected"]
    expected = {}
    for key, image, text in samples:
        found = rules.examine(
            sources.RawPair(key=key, source="", shard="", image=image, text=text.encode()),
            IngestConfig(),
        )
        if not isinstance(found, rules.Rejection):
            expected[key] = (found[1], (text,))
    assert counts["written"] == len(expected)
    assert sum(counts["rejected_by_reason"].values()) == counts["rejected"]
    written = [record for split in ("train", "eval") for record in _records(output, split)]
    assert {r.key.removesuffix(".png"): (r.image, r.text) for r in written} == expected
    assert not (output / "examples" / "waiting").exists()


def test_keys_are_unique_and_no_pair_is_lost_for_its_key(tmp_path):
    samples = [
        (("same", "other")[i % 2] if i < 4 else k, *x) for i, (k, *x) in enumerate(_samples(9))
    ]
    (tmp_path / "in").mkdir()
    _write_parquet(samples, tmp_path / "in")
    output = _ingest(tmp_path / "in", tmp_path / "out", IngestConfig())
    keys = [record.key for split in ("train", "eval") for record in _records(output, split)]
    assert len(set(keys)) == 9
    assert sum(key.startswith("same~") for key in keys) == 2
    assert sum("~" in key for key in keys) == 4


def test_key_that_is_no_unicode_costs_no_other(tmp_path):
    (tmp_path / "in").mkdir()
    Image.new("RGB", (20, 20), "red").save(tmp_path / "in" / "1.png")
    lines = ['{"image_path": "1.png", "caption": "c", "key": "k\\ud800"}']
    lines.append('{"image_path": "1.png", "caption": "c", "key": "k"}')
    (tmp_path / "in" / "pairs.jsonl").write_text("\n".join(lines))
    counts = _counts(_ingest(tmp_path / "in", tmp_path / "out", IngestConfig()))
    assert counts["rejected_by_reason"] == {"invalid_utf8": 1}
    assert counts["written"] == 1


def test_files_of_one_name_in_two_folders_stay_apart(tmp_path):
    samples = _samples(6)
    for name in ("train", "validation"):
        (tmp_path / "in" / name).mkdir(parents=True)
        _write_huggingface(samples, tmp_path / "in" / name)
    output = _ingest(tmp_path / "in", tmp_path / "out", IngestConfig())
    keys = [record.key for split in ("train", "eval") for record in _records(output, split)]
    assert len(keys) == len(set(keys)) == 12


def test_names_of_folders_are_no_patterns(tmp_path):
    folder = tmp_path / "in[1]*"
    folder.mkdir()
    _write_jsonl(_samples(6), folder)
    assert _counts(_ingest(folder, tmp_path / "out", IngestConfig()))["written"] == 6


def test_images_of_a_table_may_lie_elsewhere(tmp_path):
    samples = _samples(10)
    (tmp_path / "pictures").mkdir()
    _write_csv(samples, tmp_path / "pictures")
    (tmp_path / "in").mkdir()
    (tmp_path / "pictures" / "pairs.csv").rename(tmp_path / "in" / "pairs.csv")
    config = IngestConfig(source=sources.SourceConfig(root="../pictures"))
    assert _counts(_ingest(tmp_path / "in", tmp_path / "out", config))["written"] == 10
    files = input_files.input_files(str(tmp_path / "in"), config.source)
    assert len(files) == 11


def test_file_that_cannot_be_opened_costs_no_other(tmp_path):
    for name in ("in", "examples", "report"):
        (tmp_path / name).mkdir()
    _write_webdataset(_samples(5), tmp_path / "in")
    shutil.copy(tmp_path / "in" / "x-0.tar.gz", tmp_path / "in" / "y-0.tar.gz")
    folders = [str(tmp_path / name) for name in ("in", "examples", "report")]
    ingest = transforms.Ingest(*folders, IngestConfig())
    (tmp_path / "in" / "y-0.tar.gz").unlink()
    with beam.Pipeline(runner="FnApiRunner") as pipeline:
        _ = pipeline | ingest
    counts = _counts(tmp_path)
    assert counts["rejected_by_reason"] == {"damaged_archive": 1}
    assert (counts["input"], counts["written"]) == (6, 5)


def test_missing_and_forbidden_files_cost_no_other(tmp_path):
    samples = _samples(12)
    (tmp_path / "in").mkdir()
    _write_csv(samples, tmp_path / "in")
    names = [f"{key}.png" for key, *_ in samples]
    (tmp_path / "in" / "images" / names[2]).unlink()
    (tmp_path / "in" / "images" / names[4]).unlink()
    (tmp_path / "in" / "images" / names[4]).mkdir()
    output = _ingest(tmp_path / "in", tmp_path / "out", IngestConfig())
    assert _counts(output)["rejected_by_reason"]["missing_image"] == 2
    lines = [
        json.loads(line)
        for path in (output / "report" / "rejected").iterdir()
        for line in path.read_text().splitlines()
    ]
    assert {line["key"] for line in lines if line["reason"] == "missing_image"} == {
        samples[2][0],
        samples[4][0],
    }
    assert all(line["shard"] == "pairs.csv" for line in lines)
