"""Dataflow, up to its border: objects in place of folders, and the job that would be submitted."""

import dataclasses
import json

import apache_beam as beam
import object_store
import pytest
from apache_beam.options.pipeline_options import PipelineOptions

from sigline.components.ingest import component, input_files, transforms
from sigline.components.scenes import generate
from sigline.pipeline import environment as environments

pytestmark = [pytest.mark.tfx, pytest.mark.slow]


@pytest.fixture
def scenes(tmp_path):
    generate.write_scenes(tmp_path / "data", count=60, seed=1, faults={generate.CORRUPT: 0.1})
    return tmp_path / "data"


def _ingest(source: str, output: str) -> None:
    config = component.config_from_json('{"shard_records": 10, "duplicates": {"keep": "best"}}')
    with beam.Pipeline("FnApiRunner") as pipeline:
        _ = pipeline | transforms.Ingest(source, f"{output}/examples", f"{output}/report", config)
    input_files.copy_classes(source, f"{output}/examples")


def _files(folder) -> dict[str, bytes]:
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def test_ingest_reads_and_writes_objects_as_it_does_files(scenes, tmp_path):
    object_store.put("ram://bucket/data", _files(scenes))
    _ingest("ram://bucket/data", "ram://bucket/output")
    for name in ("examples", "report"):
        (tmp_path / "output" / name).mkdir(parents=True)
    _ingest(str(scenes), str(tmp_path / "output"))
    found, expected = object_store.get("ram://bucket/output"), _files(tmp_path / "output")
    assert set(found) == set(expected)
    shards = [name for name in found if name.endswith(".gz")]
    assert len(shards) > 3
    for name in (*shards, "report/counts.json"):
        assert found[name] == expected[name], name


def test_job_names_the_image_and_what_workers_import(scenes, tmp_path):
    from apache_beam.runners.dataflow import DataflowRunner

    environment = environments.load("dataflow")
    (tmp_path / "staged").mkdir()
    # What is uploaded beforehand lies here, and the job is written in place of being submitted.
    here = [
        f"--temp_location={tmp_path}/tmp",
        f"--staging_location={tmp_path}/staged",
        f"--template_location={tmp_path}/job.json",
        "--no_auth",
    ]
    pipeline = beam.Pipeline("FnApiRunner")
    _ = pipeline | transforms.Ingest(
        str(scenes), "gs://b/examples", "gs://b/report", component.config_from_json("{}")
    )
    DataflowRunner().run_pipeline(pipeline, PipelineOptions([*environment.beam_args, *here]))
    job = json.loads((tmp_path / "job.json").read_text())
    (pool,) = job["environment"]["workerPools"]
    image = "europe-docker.pkg.dev/my-project/sigline/sigline-worker:latest"
    assert [x["containerImage"] for x in pool["sdkHarnessContainerImages"]] == [image]
    # A list of the libraries here, for the log; nothing to install.
    assert [x["name"] for x in pool["packages"]] == ["submission_environment_dependencies.txt"]
    shown = {
        item["key"]: item["value"]
        for item in job["environment"]["sdkPipelineOptions"]["display_data"]
    }
    assert "'tfx'" in shown["beam_plugins"]
    assert shown["sdk_location"] == "container"
    assert (tmp_path / "staged/pipeline.pb").stat().st_size


def test_only_what_handles_objects_alone_is_sent_there(tmp_path):
    from sigline.pipeline.kubeflow import compiling

    environment = environments.load("dataflow")
    spec = compiling.compile_pipeline(environment, tmp_path / "x.json", engine="vertex")
    elsewhere = set()
    for name, executor in spec["deploymentSpec"]["executors"].items():
        container = executor["container"]
        sent = "--runner=DataflowRunner" in container["args"]
        assert sent == ("--objects" in container["command"]), name
        elsewhere |= {name} if sent else set()
    assert elsewhere == {"IngestExamples_executor", "StatisticsGen_executor"}
    evaluated = spec["deploymentSpec"]["executors"]["EvaluateModel_executor"]["container"]
    assert "--runner=FnApiRunner" in evaluated["args"]


def test_vocabulary_that_its_workers_cannot_open_is_refused(tmp_path):
    from sigline.pipeline.kubeflow import compiling

    environment = environments.load("dataflow")
    filters = {"filters": {"vocabulary": "/gcs/my-bucket/sentencepiece.model", "max_tokens": 64}}
    with pytest.raises(ValueError, match=r"ingest\.filters\.vocabulary must be a file of the work"):
        compiling.compile_pipeline(
            dataclasses.replace(environment, ingest=environment.ingest | filters),
            tmp_path / "x.json",
            engine="vertex",
        )


def test_where_its_workers_see_no_data_it_is_refused(tmp_path):
    from sigline.pipeline import wiring
    from sigline.pipeline.kubeflow import compiling

    environment = environments.load("dataflow")
    with pytest.raises(ValueError, match="do not see the folders of this machine"):
        wiring.build(environment)
    kubeflow = environments.load("kubeflow")
    with pytest.raises(ValueError, match="DataflowRunner's workers do not see"):
        compiling.compile_pipeline(
            dataclasses.replace(kubeflow, beam_args=environment.beam_args), tmp_path / "x.yaml"
        )
