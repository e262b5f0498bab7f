import json
import shutil

import apache_beam as beam
import pytest

from sigline.components.ingest import rules, transforms
from sigline.components.scenes import generate
from sigline.schemas import tf_example

FAULTS = {
    generate.CORRUPT: 0.05,
    generate.EXACT_DUPLICATE: 0.1,
    generate.REENCODED_DUPLICATE: 0.1,
    generate.EMPTY_TEXT: 0.05,
    generate.WRONG_EXTENSION: 0.05,
}


def _ingest(source, output, config=None):
    config = config or rules.IngestConfig(
        eval_sources=(generate.HELD_OUT_SOURCE,), eval_share=0.3, shard_records=40
    )
    for name in ("examples", "report"):
        (output / name).mkdir(parents=True)
    with beam.Pipeline(runner="FnApiRunner") as pipeline:
        _ = pipeline | transforms.Ingest(
            transforms.input_files(str(source)),
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
    import io

    import numpy as np
    from PIL import Image

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
    config = rules.IngestConfig(
        eval_sources=(generate.HELD_OUT_SOURCE,), eval_share=0.3, shard_records=40
    )
    options = beam.options.pipeline_options.PipelineOptions(
        ["--direct_num_workers=2", "--direct_running_mode=multi_threading"]
    )
    with beam.Pipeline(runner="FnApiRunner", options=options) as pipeline:
        _ = pipeline | transforms.Ingest(
            list(reversed(transforms.input_files(str(scenes)))),
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
    config = rules.IngestConfig(eval_sources=("scenes-heldotu",))
    with pytest.raises(ValueError, match=r"scenes-heldotu.*the input has"):
        _ingest(scenes, tmp_path, config)


def test_folder_without_shards_is_refused(tmp_path):
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(ValueError, match="must hold WebDataset shards"):
        transforms.input_files(str(tmp_path))


def test_broken_classes_file_is_refused(tmp_path):
    (tmp_path / "classes.json").write_text('{"names": []')
    with pytest.raises(ValueError, match="Expecting"):
        transforms.copy_classes(str(tmp_path), str(tmp_path / "out"))


@pytest.mark.slow
def test_noto_emoji_ingests_completely(noto_emoji, tmp_path):
    output = _ingest(noto_emoji, tmp_path, rules.IngestConfig())
    counts = _counts(output)
    assert counts["input"] == 3374 == counts["written"]
    for record in _records(output, "eval")[:50]:
        import io

        import numpy as np
        from PIL import Image

        image = Image.open(io.BytesIO(record.image))
        assert not image.has_transparency_data
        assert len(record.text) == len(record.language) >= 1
        if image.size == (128, 128):
            assert tuple(np.asarray(image.convert("RGB"))[0, 0]) == (255, 255, 255)
