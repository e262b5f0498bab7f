"""Every kind of bad input ends in its documented reason, and costs no other record."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter

import apache_beam as beam
import planted_faults
import pytest
from apache_beam.options.pipeline_options import PipelineOptions

from sigline.components.ingest import options, reasons, transforms
from sigline.schemas import tf_example

_INGEST = """
import sys, json, apache_beam as beam
from sigline.components.ingest import options, transforms
source, output, config = sys.argv[1:]
config = options.config_from_json(config)
with beam.Pipeline(runner="FnApiRunner") as pipeline:
    pipeline | transforms.Ingest(source, output + "/examples", output + "/report", config)
"""


def _ingest(source, output, arguments=(), **changes):
    for name in ("examples", "report"):
        (output / name).mkdir(parents=True, exist_ok=True)
    config = options.config_from_json(json.dumps(planted_faults.CONFIG | changes))
    pipeline_options = PipelineOptions(list(arguments))
    with beam.Pipeline(runner="FnApiRunner", options=pipeline_options) as pipeline:
        _ = pipeline | transforms.Ingest(
            str(source), str(output / "examples"), str(output / "report"), config
        )
    return output


def _written(output):
    return {
        tf_example.decode(item).key
        for path in output.glob("examples/Split-*/*")
        for item in tf_example.read_shard(str(path))
    }


def _rejected(output):
    return [
        json.loads(line)
        for path in sorted((output / "report" / "rejected").iterdir())
        for line in path.read_text().splitlines()
    ]


def _content(output):
    """Returns all that is written but how long it took."""
    found = {
        str(path.relative_to(output)): path.read_bytes()
        for path in output.rglob("*")
        if path.is_file()
    }
    for name in [name for name in found if name.endswith("_stats.json")]:
        stats = json.loads(found[name])
        found[name] = {k: v for k, v in stats.items() if "time" not in k and k != "duration"}
    return found


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("faults") / "shards"
    return folder, planted_faults.write_shards(folder)


@pytest.fixture(scope="module")
def ingested(shards, tmp_path_factory):
    return _ingest(shards[0], tmp_path_factory.mktemp("ingested"))


def test_there_are_at_least_forty_kinds(shards):
    assert sum(reason is not planted_faults.WRITTEN for reason in shards[1].values()) >= 60


def test_every_kind_ends_in_its_reason_and_costs_no_other_record(ingested, shards):
    expected = shards[1]
    archives = {key for key in expected if ".tar" in key}
    found = {
        item["shard"] if item["shard"] in archives else item["key"]: item["reason"]
        for item in _rejected(ingested)
    }
    assert found == {key: reason for key, reason in expected.items() if reason is not None}
    good = {key for key, reason in expected.items() if reason is planted_faults.WRITTEN}
    assert _written(ingested) == good


def test_what_is_read_is_written_or_rejected(ingested, shards):
    counts = json.loads((ingested / "report" / "counts.json").read_text())
    assert counts["input"] == counts["written"] + counts["rejected"] == len(shards[1])
    assert counts["rejected_by_reason"] == Counter(x["reason"] for x in _rejected(ingested))
    assert set(counts["rejected_by_reason"]) <= set(reasons.ALL)


def test_rejections_say_where_and_why(ingested):
    for item in _rejected(ingested):
        assert item["shard"].split(".")[1] == "tar"
        assert item["detail"]


def test_copies_name_what_they_are_copies_of(ingested):
    details = {item["key"]: item["detail"] for item in _rejected(ingested)}
    assert details["copy_exact"] == "the picture is that of 'good000'"
    assert details["copy_reencoded"] == "the picture looks like that of 'good001'"
    assert details["copy_of_held"] == (
        "the picture looks like that of 'held0', which is evaluated on"
    )


def test_report_has_pictures_of_what_can_be_shown(ingested):
    samples = json.loads((ingested / "report" / "samples.json").read_text())
    counts = json.loads((ingested / "report" / "counts.json").read_text())
    for reason, number in counts["rejected_by_reason"].items():
        assert len(samples[reason]) == min(number, 12)
    assert all(item["image"] and item["other"] for item in samples["duplicate"] + samples["leak"])
    assert all(item["image"] for item in samples["train"] + samples["eval"])
    assert all(item["image"] is None for item in samples["unsupported_image"])
    assert not any(item["image"] for item in samples["too_many_pixels"])


def test_profile_counts_every_record(ingested):
    profile = json.loads((ingested / "report" / "profile.json").read_text())
    counts = json.loads((ingested / "report" / "counts.json").read_text())
    for split, features in profile.items():
        for name in ("source", "captions", "aspect", "shorter side"):
            assert sum(features[name].values()) == counts["splits"][split]


def test_stats_are_img2datasets(ingested):
    stats = [json.loads(x.read_text()) for x in (ingested / "report" / "stats").iterdir()]
    counts = json.loads((ingested / "report" / "counts.json").read_text())
    assert sum(x["count"] for x in stats) == counts["input"]
    assert sum(x["successes"] for x in stats) == counts["written"]
    failed = sum(x["failed_to_download"] + x["failed_to_resize"] for x in stats)
    assert failed == counts["rejected"]
    for one in stats:
        assert sum(one["status_dict"].values()) == one["count"]
        assert one["end_time"] - one["start_time"] == pytest.approx(one["duration"])


def test_table_with_faults(tmp_path):
    expected = planted_faults.write_table(tmp_path / "table")
    output = _ingest(tmp_path / "table", tmp_path / "out", eval_sources=[])
    rejected = _rejected(output)
    assert Counter(x["reason"] for x in rejected if not x["key"]) == {"invalid_row": 2}
    found = {x["key"]: x["reason"] for x in rejected if x["key"]}
    assert found == {key: reason for key, reason in expected.items() if reason is not None}
    assert _written(output) == {key for key, reason in expected.items() if reason is None}


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        ["--direct_num_workers=2", "--direct_running_mode=multi_processing"],
        ["--direct_num_workers=4", "--direct_running_mode=multi_threading"],
    ],
    ids=["two processes", "four threads"],
)
def test_number_of_workers_changes_nothing(ingested, shards, tmp_path, arguments):
    assert _content(_ingest(shards[0], tmp_path, arguments)) == _content(ingested)


@pytest.mark.slow
@pytest.mark.parametrize("seen", ["examples/waiting/*", "examples/Split-*/*"])
def test_killed_and_run_again_it_writes_the_same(ingested, shards, tmp_path, seen):
    for name in ("examples", "report"):
        (tmp_path / name).mkdir()
    config = json.dumps(planted_faults.CONFIG)
    process = subprocess.Popen(
        [sys.executable, "-c", _INGEST, str(shards[0]), str(tmp_path), config],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob(seen)) and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "report" / "counts.json").exists()
    # What a kill in the middle of a shard leaves.
    (tmp_path / "examples" / "tmp-00-data_tfrecord-00000-of-00005.gz").write_bytes(b"half")
    assert _content(_ingest(shards[0], tmp_path)) == _content(ingested)
