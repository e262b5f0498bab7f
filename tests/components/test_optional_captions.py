"""Pictures without captions: what ingest keeps, counts and rejects, in every format."""

import csv
import dataclasses
import io
import json
import shutil
import tarfile

import apache_beam as beam
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from planted_faults import caption, encode, picture

from sigline.components.ingest import (
    group_transforms,
    inventory,
    options,
    placement,
    readers,
    reasons,
    remarks,
    rules,
    sources,
    transforms,
)
from sigline.components.ingest.options import IngestConfig
from sigline.components.shared.files import BeamFiles
from sigline.components.validate import gate, report
from sigline.schemas import tf_example

OPTIONAL = IngestConfig(captions="optional")
PNG = encode(picture(0))


def _outcome(config=OPTIONAL, **changes):
    values = {"key": "k", "source": "s", "shard": "s-0.tar", "image": PNG}
    outcome = rules.examine(sources.RawPair(**(values | changes)), config)
    return outcome if isinstance(outcome, rules.Rejection) else outcome[0]


@pytest.mark.parametrize(
    ("changes", "reason", "remark"),
    [
        ({}, reasons.MISSING_TEXT, []),
        ({"metadata": b'{"label": 3}'}, reasons.MISSING_TEXT, []),
        ({"captions": ()}, reasons.MISSING_TEXT, []),
        ({"text": b""}, reasons.EMPTY_TEXT, [remarks.CAPTIONS_EMPTY]),
        ({"text": "\u200b".encode()}, reasons.EMPTY_TEXT, [remarks.CAPTIONS_EMPTY]),
        ({"text": b"nan"}, reasons.MISSING_TEXT, [remarks.CAPTIONS_MISSING]),
        ({"captions": (("", None),)}, reasons.EMPTY_TEXT, [remarks.CAPTIONS_EMPTY]),
    ],
)
def test_picture_without_caption_is_kept_where_captions_are_optional(changes, reason, remark):
    row = _outcome(**changes)
    assert (row.text, row.language) == ((), ())
    assert row.to_record(PNG).text == ()
    assert rules.remarks_on(row) == remark
    assert _outcome(IngestConfig(), **changes).reason == reason


@pytest.mark.parametrize(
    ("filters", "changes", "reason"),
    [
        ({}, {"text": b"caf\xe9"}, reasons.INVALID_UTF8),
        ({}, {"text": b"word " * 4000}, reasons.TEXT_TOO_LONG),
        ({}, {"metadata": b'{"caption": 7}'}, reasons.INVALID_METADATA),
        ({"min_words": 2}, {"text": b"house"}, reasons.TEXT_TOO_SHORT),
        ({"file_names": True}, {"captions": (("IMG_1", None), ("", None))}, reasons.FILE_NAME_TEXT),
        ({"languages": ["en"]}, {"captions": (("ein Haus", "de"),)}, reasons.OTHER_LANGUAGE),
    ],
)
def test_picture_whose_captions_are_all_refused_is_rejected(filters, changes, reason):
    config = {"captions": "optional", "filters": filters}
    assert _outcome(options.config_from_json(json.dumps(config)), **changes).reason == reason


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("maybe", "captions must be required, or optional.*Received: captions='maybe'"),
        (True, "ingest.captions must be a text"),
        (None, "ingest.captions must be a text"),
    ],
)
def test_unknown_choice_is_refused(value, message):
    with pytest.raises(ValueError, match=message):
        options.config_from_json(json.dumps({"captions": value}))


def _csv(rows, path):
    names = list(dict.fromkeys(name for row in rows for name in row if name != "jpg"))
    lines = io.StringIO()
    writer = csv.DictWriter(lines, ["image", *names], lineterminator="\n")
    writer.writeheader()
    for number, row in enumerate(rows):
        path.parent.joinpath(f"{number}.png").write_bytes(row["jpg"])
        cells = {name: value for name, value in row.items() if name != "jpg"}
        writer.writerow(cells | {"image": f"{number}.png"})
    path.write_text(lines.getvalue())


def _tsv(rows, path):
    _csv(rows, path)
    path.write_text(path.read_text().replace(",", "\t"))


def _jsonl(rows, path):
    lines = []
    for number, row in enumerate(rows):
        path.parent.joinpath(f"{number}.png").write_bytes(row["jpg"])
        cells = {name: value for name, value in row.items() if name != "jpg"}
        lines.append(json.dumps(cells | {"image": f"{number}.png"}))
    path.write_text("\n".join(lines))


def _parquet(rows, path):
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=2)


def _arrow(rows, path):
    table = pa.Table.from_pylist(rows)
    with pa.ipc.new_stream(str(path), table.schema) as writer:
        writer.write_table(table)


def _tfrecord(rows, path):
    import tensorflow as tf

    with tf.io.TFRecordWriter(str(path)) as writer:
        for row in rows:
            features = {}
            for name, value in row.items():
                feature = tf.train.Feature()
                if isinstance(value, int):
                    feature.int64_list.value.append(value)
                elif value is not None:
                    value = value.encode() if isinstance(value, str) else value
                    feature.bytes_list.value.append(value)
                features[name] = feature
            message = tf.train.Example(features=tf.train.Features(feature=features))
            writer.write(message.SerializeToString())


TABLES = {
    "pairs.csv": _csv,
    "pairs.tsv": _tsv,
    "pairs.jsonl": _jsonl,
    "pairs.parquet": _parquet,
    "data-0.arrow": _arrow,
    "pairs.tfrecord": _tfrecord,
}


def _ingest(source, output, config=OPTIONAL):
    for name in ("examples", "report"):
        (output / name).mkdir(parents=True)
    folders = [str(source), str(output / "examples"), str(output / "report")]
    with beam.Pipeline(runner="FnApiRunner") as pipeline:
        _ = pipeline | transforms.Ingest(*folders, config)
    counts = json.loads((output / "report" / "counts.json").read_text())
    assert counts["input"] == counts["written"] + counts["rejected"]
    return counts, [
        tf_example.decode(item)
        for split in ("train", "eval")
        for path in sorted((output / "examples" / f"Split-{split}").iterdir())
        for item in tf_example.read_shard(str(path))
    ]


def _read(base, config):
    """Returns the outcomes of an input, images of files read."""
    outcomes = []
    for name, part in inventory.take(str(base), BeamFiles(), config.source).parts:
        for pair in readers.READERS[name].scan(part, BeamFiles(), config.source, 10**7):
            if not isinstance(pair, sources.RawPair):
                continue
            pair = rules.with_optional_captions(pair, config)
            if pair.image_path is not None:
                with open(pair.image_path, "rb") as handle:
                    pair = dataclasses.replace(pair, image=handle.read())
            outcome = rules.examine(pair, config)
            outcomes.append(outcome if isinstance(outcome, rules.Rejection) else outcome[0])
    return outcomes


@pytest.mark.parametrize("name", TABLES)
def test_table_with_null_captions_is_read(name, tmp_path):
    rows = [
        {"jpg": encode(picture(i)), "caption": text, "label": i}
        for i, text in enumerate(["a dog", None, None, "a cat"])
    ]
    TABLES[name](rows, tmp_path / name)
    outcomes = _read(tmp_path, OPTIONAL)
    assert [row.text for row in outcomes] == [("a dog",), (), (), ("a cat",)]
    assert [row.label for row in outcomes] == [(0,), (1,), (2,), (3,)]
    outcomes = _read(tmp_path, IngestConfig())
    rejected = [item for item in outcomes if isinstance(item, rules.Rejection)]
    empty = name in ("pairs.csv", "pairs.tsv")
    assert [x.reason for x in rejected] == 2 * ["empty_text" if empty else "missing_text"]


@pytest.mark.parametrize("name", TABLES)
def test_table_without_a_column_of_captions_is_read(name, tmp_path):
    rows = [{"jpg": encode(picture(i)), "label": i, "place": "x"} for i in range(3)]
    TABLES[name](rows, tmp_path / name)
    outcomes = _read(tmp_path, OPTIONAL)
    assert [(row.text, row.label) for row in outcomes] == [((), (i,)) for i in range(3)]
    assert all(json.loads(row.meta) == {"place": "x"} for row in outcomes)
    for rejection in _read(tmp_path, IngestConfig()):
        assert rejection.reason == reasons.MISSING_TEXT
        assert "no such column among" in rejection.detail


@pytest.mark.parametrize("name", TABLES)
def test_column_that_is_named_must_be_there_unless_rows_name_their_own(name, tmp_path):
    TABLES[name]([{"jpg": encode(picture(i)), "label": i} for i in range(2)], tmp_path / name)
    source = sources.SourceConfig(caption=("titel",))
    outcomes = _read(tmp_path, IngestConfig(captions="optional", source=source))
    if name in ("pairs.jsonl", "pairs.tfrecord"):
        assert [row.text for row in outcomes] == [(), ()]
    else:
        assert [item.reason for item in outcomes] == [reasons.MISSING_TEXT] * 2


def test_table_without_image_or_with_a_path_that_leads_out_stays_rejected(tmp_path):
    (tmp_path / "a.csv").write_text("photo,label\nx.png,1\n")
    (tmp_path / "b.jsonl").write_text('{"image": "../x.png", "label": 1}\n{"label": 1}\n')
    config = IngestConfig(captions="optional")
    refused = [item.reason for item in _read(tmp_path, config)]
    assert refused == [reasons.MISSING_IMAGE, reasons.UNSAFE_PATH, reasons.MISSING_IMAGE]


def test_prepared_data_set_without_names_of_classes_is_read(tmp_path):
    folder = tmp_path / "digits" / "1.0.0"
    folder.mkdir(parents=True)
    features = {"image": {"image": {}}, "label": {"classLabel": {"numClasses": "3"}}}
    described = {"featuresDict": {"features": features}}
    (folder / "features.json").write_text(json.dumps(described))
    about = {"name": "digits", "splits": [{"name": "train", "shardLengths": ["3"]}]}
    (folder / "dataset_info.json").write_text(json.dumps(about))
    rows = [{"image": encode(picture(i)), "label": i} for i in range(3)]
    _tfrecord(rows, folder / "digits-train.tfrecord-00000-of-00001")
    assert [(row.text, row.label) for row in _read(tmp_path, OPTIONAL)] == [
        ((), (i,)) for i in range(3)
    ]
    assert {item.reason for item in _read(tmp_path, IngestConfig())} == {"missing_text"}


def test_folders_of_images_need_no_texts(tmp_path):
    for number, folder in enumerate(("cat", "dog")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.png").write_bytes(encode(picture(number)))
    (tmp_path / "dog" / "a.json").write_text('{"place": "home"}')
    assert [row.text for row in _read(tmp_path, OPTIONAL)] == [(), ()]
    config = IngestConfig(captions="optional", source=sources.SourceConfig(class_folders=True))
    rows = _read(tmp_path, config)
    # The name of a class is the caption of an image with nothing beside it, as ever.
    assert [(row.text, row.label) for row in rows] == [(("cat",), (0,)), ((), (1,))]
    (tmp_path / "list.txt").write_text("cat/a.png\ndog/a.png\n")
    config = IngestConfig(captions="optional", source=sources.SourceConfig(format="list"))
    assert [row.text for row in _read(tmp_path, config)] == [(), ()]


def _write_tar(path, samples):
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        for key, members in samples.items():
            for suffix, content in members.items():
                info = tarfile.TarInfo(f"{key}.{suffix}")
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))


@pytest.fixture(scope="module")
def shard(tmp_path_factory):
    """A WebDataset of 60 samples: with captions, with labels alone, and with bad captions."""
    folder = tmp_path_factory.mktemp("shard")
    samples = {}
    for number in range(24):
        members = {"png": encode(picture(100 + number)), "cls": b"%d" % (number % 3)}
        samples[f"labelled{number:02d}"] = members
    for number in range(24):
        text = caption(number).encode()
        members = {"png": encode(picture(200 + number)), "cls": b"1", "txt": text}
        samples[f"captioned{number:02d}"] = members
    bad = [b"house", b"caf\xe9", b"Ein altes Haus am Fluss", *[b"the very same words"] * 4]
    for number, text in enumerate(bad):
        samples[f"bad{number}"] = {"png": encode(picture(300 + number)), "txt": text}
    samples["plain0"] = {"png": encode(picture(400)), "json": b'{"place": "home"}'}
    samples["plain1"] = {"png": encode(picture(401)), "txt": b""}
    samples["damaged"] = {"png": encode(picture(402))[:300], "cls": b"1"}
    # Copies of pictures with and without captions; the copy with a caption is the better one.
    samples["copy0"] = {"png": encode(picture(100)), "txt": caption(90).encode()}
    samples["copy1"] = {"png": encode(picture(201))}
    _write_tar(folder / "web-00000.tar", samples)
    held = {f"held{i}": {"png": encode(picture(500 + i)), "cls": b"2"} for i in range(3)}
    _write_tar(folder / "held-00000.tar", held)
    return folder


CONFIG = {
    "captions": "optional",
    "eval_sources": ["held"],
    "eval_share": 0.3,
    "shard_records": 16,
    "filters": {"min_words": 2, "languages": ["en"], "max_repeats": 3},
    "duplicates": {"keep": "best", "captions": True},
    "tags": {"most": 20, "min_count": 1},
}


@pytest.fixture(scope="module")
def ingested(shard, tmp_path_factory):
    output = tmp_path_factory.mktemp("ingested")
    config = options.config_from_json(json.dumps(CONFIG))
    return (*_ingest(shard, output, config), output)


def test_shard_of_images_with_labels_and_few_captions_is_ingested(ingested):
    counts, records, _ = ingested
    by_key = {item.key: item for item in records}
    assert counts["rejected_by_reason"] == {
        "text_too_short": 1,
        "invalid_utf8": 1,
        "other_language": 1,
        "repeated_text": 4,
        "corrupt_image": 1,
        "duplicate": 2,
    }
    expected = {f"labelled{i:02d}" for i in range(1, 24)} | {"plain0", "plain1"}
    expected |= {f"held{i}" for i in range(3)}
    assert {key for key, item in by_key.items() if not item.text} == expected
    assert counts["without_captions"] == len(expected)
    assert {item.label for key, item in by_key.items() if key in expected} == {
        *((i,) for i in range(3)),
        (),
    }
    assert by_key["copy0"].text == (caption(90),)
    assert by_key["captioned01"].text == (caption(1),)
    assert counts["remarks"] == {"captions_empty": 1}
    assert not by_key["labelled01"].tag
    assert by_key["captioned01"].tag


def test_report_shows_pictures_without_captions(ingested):
    counts, _, output = ingested
    profile, samples = (
        json.loads((output / "report" / name).read_text())
        for name in ("profile.json", "samples.json")
    )
    captionless = sum(profile[split]["captions"].get("0", 0) for split in ("train", "eval"))
    assert captionless == counts["without_captions"]
    data = gate.Described(counts, profile)
    assert data.captions_are_optional
    page = report.page(data, samples, [])
    assert f"<b>{captionless}</b>without captions" in page
    limits = gate.DataGate(max_rejected_share=0.2, max_shift={"words": 0.1, "captions": 0.1})
    assert gate.data_problems(data, {}, limits, data) == []


def test_default_rejects_pictures_without_captions(shard, tmp_path):
    required = {name: value for name, value in CONFIG.items() if name != "captions"}
    required["eval_sources"] = []
    config = options.config_from_json(json.dumps(required))
    counts, records = _ingest(shard, tmp_path, config)
    assert all(item.text for item in records)
    # Those with labels alone, the held ones, one with metadata, the copy, and the damaged one.
    assert counts["rejected_by_reason"]["missing_text"] == 24 + 3 + 1 + 1 + 1
    assert "without_captions" not in counts
    assert not gate.Described(counts, {}).captions_are_optional


def test_no_caption_at_all_is_no_error(tmp_path):
    (tmp_path / "in").mkdir()
    samples = {f"k{i}": {"png": encode(picture(i)), "cls": b"%d" % i} for i in range(12)}
    _write_tar(tmp_path / "in" / "a-0.tar", samples)
    config = {name: CONFIG[name] for name in ("captions", "filters", "duplicates", "tags")}
    config = options.config_from_json(json.dumps(config))
    counts, records = _ingest(tmp_path / "in", tmp_path / "out", config)
    assert (counts["written"], counts["without_captions"]) == (12, 12)
    profile = json.loads((tmp_path / "out" / "report" / "profile.json").read_text())
    data = gate.Described(counts, profile)
    assert "<b>12</b>without captions" in report.page(data, {}, [])
    # The written examples can be known of by a later run, as those of an earlier span.
    earlier = IngestConfig(
        captions="optional", earlier=(str(tmp_path / "out" / "examples"),), eval_share=0.5
    )
    counts, again = _ingest(tmp_path / "in", tmp_path / "again", earlier)
    assert (counts["written"], counts["eval_sets_unreadable"]) == (12, {})
    assert {item.key for item in again} == {item.key for item in records}


def test_images_with_files_of_their_own_are_ingested_without_captions(tmp_path):
    (tmp_path / "in").mkdir()
    rows = [{"jpg": encode(picture(i)), "label": i} for i in range(6)]
    _csv(rows, tmp_path / "in" / "pairs.csv")
    counts, records = _ingest(tmp_path / "in", tmp_path / "out")
    assert (counts["written"], counts["without_captions"]) == (6, 6)
    assert sorted(item.label for item in records) == [(i,) for i in range(6)]


def test_evaluation_set_without_a_column_of_captions_is_looked_at(tmp_path):
    for name, numbers in (("in", range(6)), ("held", range(3))):
        (tmp_path / name).mkdir()
        rows = [{"jpg": encode(picture(i)), "label": i} for i in numbers]
        _parquet(rows, tmp_path / name / "pairs.parquet")
    config = IngestConfig(captions="optional", eval_sets=(str(tmp_path / "held"),))
    counts, records = _ingest(tmp_path / "in", tmp_path / "out", config)
    assert counts["rejected_by_reason"] == {"leak": 3}
    assert counts["eval_sets_unreadable"] == {}
    assert sorted(item.label for item in records) == [(3,), (4,), (5,)]


def test_repeated_captions_cost_no_picture_without_one():
    config = options.config_from_json('{"captions": "optional", "filters": {"max_repeats": 1}}')
    texts = (None, None, b"the same", b"the same", b"another")
    rows = [
        dataclasses.replace(_outcome(config, key=f"k{i}", text=text), number=(0, i))
        for i, text in enumerate(texts)
    ]
    kept, rejected = [], []
    leave_out = group_transforms._LeaveOut(config)
    for row in rows:
        for tag, item in leave_out.process(row, {"the same": 2}, {"evaluated": None}):
            (kept if tag == group_transforms.ROWS else rejected).append(item)
    assert [row.key for row in kept] == ["k0", "k1", "k4"]
    assert [item.reason for _, item in rejected] == [reasons.REPEATED_TEXT] * 2


def test_of_copies_the_one_with_a_caption_is_the_best():
    config = IngestConfig(captions="optional")
    rows = [_outcome(key="a"), _outcome(key="b", text=b"a dog"), _outcome(key="c")]
    assert min(rows, key=lambda row: placement.rank(row, config)).key == "b"


@pytest.fixture(scope="module")
def validated():
    """Returns a function from serialized records to their statistics and TFDV's findings."""
    from sigline import quiet

    quiet.import_tfx()
    import tensorflow_data_validation as tfdv

    from sigline.schemas import artifacts

    schema = tfdv.load_schema_text(str(artifacts.SCHEMA))

    def _validated(path, schema=schema):
        settings = tfdv.StatsOptions(schema=schema, enable_semantic_domain_stats=True)
        statistics = tfdv.generate_statistics_from_tfrecord(str(path), stats_options=settings)
        return statistics, tfdv.validate_statistics(statistics, schema)

    return _validated


@pytest.mark.tfx
@pytest.mark.parametrize("texts", [[()] * 30, [(), ("a dog",)] * 15], ids=["none", "some"])
@pytest.mark.parametrize("absent", [False, True], ids=["empty", "absent"])
def test_absent_captions_are_an_anomaly_only_where_they_are_required(
    texts, absent, validated, scene_records, tmp_path
):
    import tensorflow as tf

    from sigline.components.validate import infer, schema_anomalies
    from sigline.schemas import artifacts

    serialized = []
    for item, text in zip(scene_records, texts, strict=False):
        item = dataclasses.replace(item, text=text, language=("en",) * len(text))
        example = tf.train.Example.FromString(tf_example.encode(item))
        for name in ("text", "language") if absent and not text else ():
            del example.features.feature[name]
        serialized.append(example.SerializeToString())
    tf_example.write_shard(str(tmp_path / "a.gz"), serialized)
    statistics, message = validated(tmp_path / "a.gz")
    assert sorted(schema_anomalies.described(message)) == ["language", "text"]
    assert schema_anomalies.described(message, optional=("text", "language")) == {}
    import tensorflow_data_validation as tfdv

    curated = tfdv.load_schema_text(str(artifacts.SCHEMA))
    inferred = infer.infer(curated, [statistics])
    assert not validated(tmp_path / "a.gz", inferred)[1].anomaly_info


@pytest.mark.tfx
def test_other_anomalies_of_captions_stay(validated):
    from tensorflow_metadata.proto.v0 import anomalies_pb2

    from sigline.components.validate import schema_anomalies

    message = anomalies_pb2.Anomalies()
    info = message.anomaly_info["text"]
    info.short_description, info.description = "Multiple errors", "both"
    kinds = anomalies_pb2.AnomalyInfo
    for kind, words in (
        (kinds.FEATURE_TYPE_LOW_NUMBER_VALUES, "Missing values"),
        (kinds.UNEXPECTED_DATA_TYPE, "Unexpected type"),
    ):
        info.reason.add(type=kind, short_description=words, description=words.lower())
    assert schema_anomalies.described(message) == {"text": "Multiple errors: both"}
    left = schema_anomalies.described(message, optional=("text",))
    assert left == {"text": "Unexpected type: unexpected type"}


@pytest.mark.tfx
@pytest.mark.parametrize("captions", ["optional", "required"])
def test_data_gate_passes_pictures_without_captions_where_they_are_optional(
    captions, ingested, validated, tmp_path
):
    """The component that writes what the gate finds, on the artifacts of a real ingest."""
    from tfx.types import artifact_utils, standard_artifacts

    from sigline.components.shared.artifact_types import DataReport, IngestReport
    from sigline.components.validate.component import ReportData
    from sigline.schemas import artifacts

    _, _, output = ingested
    folders = {name: tmp_path / name for name in ("statistics", "anomalies", "schema", "report")}
    for folder in folders.values():
        folder.mkdir()
    for split in ("train", "eval"):
        statistics, message = validated(output / "examples" / f"Split-{split}" / "*.gz")
        for name in ("statistics", "anomalies"):
            (folders[name] / f"Split-{split}").mkdir()
        path = folders["statistics"] / f"Split-{split}" / "FeatureStats.pb"
        path.write_bytes(statistics.SerializeToString())
        path = folders["anomalies"] / f"Split-{split}" / "SchemaDiff.pb"
        path.write_bytes(message.SerializeToString())
    (folders["schema"] / "schema.pbtxt").write_text(artifacts.SCHEMA.read_text())
    shutil.copytree(output / "report", tmp_path / "ingest")
    counts = json.loads((tmp_path / "ingest" / "counts.json").read_text())
    if captions == "required":
        del counts["without_captions"]
    (tmp_path / "ingest" / "counts.json").write_text(json.dumps(counts))

    def _artifact(kind, folder):
        made = kind()
        made.uri = str(folder)
        return made

    artifact_of = {
        "ingest_report": _artifact(IngestReport, tmp_path / "ingest"),
        "anomalies": _artifact(standard_artifacts.ExampleAnomalies, folders["anomalies"]),
        "statistics": _artifact(standard_artifacts.ExampleStatistics, folders["statistics"]),
        "schema": _artifact(standard_artifacts.Schema, folders["schema"]),
        "report": _artifact(DataReport, folders["report"]),
    }
    for name in ("anomalies", "statistics"):
        artifact_of[name].split_names = artifact_utils.encode_split_names(["train", "eval"])
    config = json.dumps({"max_rejected_share": 0.2, "max_skew": {"width": 1}})
    ReportData.EXECUTOR_SPEC.executor_class._FUNCTION(**artifact_of, config=config, code_digest="")
    problems = json.loads((folders["report"] / artifacts.PROBLEMS_FILE).read_text())
    if captions == "optional":
        assert problems == []
        assert "without captions" in (folders["report"] / artifacts.REPORT_FILE).read_text()
    else:
        assert [problem.split(":")[0] for problem in problems] == [
            f"split {split}, feature {name}"
            for split in ("eval", "train")
            for name in ("language", "text")
        ]
    assert artifact_of["report"].get_int_custom_property(artifacts.BLESSED_PROPERTY) == int(
        not problems
    )
