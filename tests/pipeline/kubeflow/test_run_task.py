"""What containers make of what the backend hands them; no task is run."""

import json

import pytest

pytestmark = pytest.mark.tfx

MODEL = {"instanceSchema": "title: tfx.Model\ntype: object\n"}
TEXT = {"instanceSchema": "title: tfx.String\ntype: object\n"}


@pytest.fixture(scope="module")
def run_task():
    from sigline.pipeline.kubeflow import run_task

    return run_task


def _inputs(*artifacts):
    return {"inputs": {"artifacts": {"model": {"artifacts": list(artifacts)}}}}


DECLARED = {"artifacts": {"model": {"artifactType": MODEL}}}


@pytest.mark.parametrize(
    "kind", [None, {}, {"instanceSchema": ""}, {"schemaTitle": "system.Artifact"}]
)
def test_artifacts_without_a_type_get_the_declared_one(run_task, kind):
    given = _inputs({"uri": "minio://b/v2/m", "type": kind})
    run_task.prepare_inputs(given, DECLARED, "/mnt/x")
    (found,) = given["inputs"]["artifacts"]["model"]["artifacts"]
    assert found == {"uri": "/mnt/x/v2/m", "type": MODEL}


def test_artifacts_with_a_type_keep_it(run_task):
    given = _inputs({"uri": "/x", "type": {"schemaTitle": "tfx.Model"}})
    run_task.prepare_inputs(given, DECLARED, "")
    (found,) = given["inputs"]["artifacts"]["model"]["artifacts"]
    assert found["type"] == {"schemaTitle": "tfx.Model"}


def test_artifact_that_stands_for_others_gives_way_to_them(run_task):
    others = [{"uri": "/mnt/x/a"}, {"uri": "/mnt/x/b"}]
    given = _inputs({"uri": "minio://b/c", "metadata": {"stands_for": json.dumps(others)}})
    run_task.prepare_inputs(given, DECLARED, "/mnt/x")
    found = given["inputs"]["artifacts"]["model"]["artifacts"]
    assert [item["uri"] for item in found] == ["/mnt/x/a", "/mnt/x/b"]
    assert all(item["type"] == MODEL for item in found)


def test_artifact_that_stands_for_none_is_an_input_that_is_not_given(run_task):
    given = _inputs({"uri": "minio://b/c", "metadata": {"stands_for": "[]"}})
    run_task.prepare_inputs(given, DECLARED, "")
    assert given["inputs"]["artifacts"] == {}


@pytest.mark.parametrize(
    ("uri", "volume", "path"),
    [
        ("minio://bucket/v2/run/task/key", "/mnt/x", "/mnt/x/v2/run/task/key"),
        ("s3://bucket/v2/key", "/mnt/x/", "/mnt/x/v2/key"),
        ("gs://bucket/v2/key", "", "/gcs/bucket/v2/key"),
        ("minio://bucket/../../etc", "/mnt/x", "/mnt/x/etc"),
        ("/mnt/x/key", "/mnt/x", "/mnt/x/key"),
    ],
)
def test_uris_have_paths(run_task, uri, volume, path):
    assert run_task.path_of(uri, volume) == path


def test_outputs_are_empty_folders_and_are_named_by_their_uris_again(run_task, tmp_path):
    artifacts = {
        "model": {"artifacts": [{"uri": "minio://b/run/model", "type": MODEL}]},
        "word": {"artifacts": [{"uri": "minio://b/run/word", "type": TEXT}]},
    }
    half = tmp_path / "run/model/half"
    half.mkdir(parents=True)
    uris = run_task.place_outputs({"outputs": {"artifacts": artifacts}}, str(tmp_path))
    # What a try before has left is gone, and a value is a file of its own.
    assert list((tmp_path / "run/model").iterdir()) == []
    assert not (tmp_path / "run/word").exists()
    written = tmp_path / "output.json"
    uri = str(tmp_path / "run/model")
    written.write_text(json.dumps({"artifacts": {"model": {"artifacts": [{"uri": uri}]}}}))
    run_task.name_outputs(str(written), uris)
    (found,) = json.loads(written.read_text())["artifacts"]["model"]["artifacts"]
    assert found["uri"] == "minio://b/run/model"


def test_vertex_s_outputs_are_below_its_mount(run_task, tmp_path, monkeypatch):
    monkeypatch.setattr(run_task, "_LOCAL", {"gs://": f"{tmp_path}/"})
    artifacts = {"model": {"artifacts": [{"uri": "gs://b/run/model", "type": MODEL}]}}
    given = {"outputs": {"artifacts": artifacts, "outputFile": "gs://b/run/output.json"}}
    uris = run_task.place_outputs(given, "")
    assert given["outputs"]["outputFile"] == f"{tmp_path}/b/run/output.json"
    assert uris == {f"{tmp_path}/b/run/model": "gs://b/run/model"}
    assert (tmp_path / "b/run/model").is_dir()


def test_pointer_lies_where_the_launcher_uploads_from(run_task, tmp_path, monkeypatch):
    monkeypatch.setattr(run_task, "_LOCAL", {"minio://": f"{tmp_path}/launcher/"})
    (tmp_path / "launcher/bucket/run").mkdir(parents=True)
    run_task.name_outputs("", {"/mnt/x/run/model": "minio://bucket/run/model"})
    pointer = tmp_path / "launcher/bucket/run/model/volume.json"
    assert json.loads(pointer.read_text()) == {"path": "/mnt/x/run/model"}


def test_workers_elsewhere_are_handed_objects(run_task):
    parameters = {"input_base": "/gcs/b/data", "config": '{"eval_sets": ["/gcs/b/other"]}', "n": 3}
    given = {
        "inputs": {
            "parameterValues": parameters,
            "artifacts": {"x": {"artifacts": [{"uri": "/gcs/b/x"}]}},
        },
        "outputs": {"artifacts": {}, "outputFile": "/gcs/b/run/output.json"},
    }
    found = run_task.as_objects(given)
    assert found["inputs"]["parameterValues"] == {
        "input_base": "gs://b/data",
        "config": '{"eval_sets": ["gs://b/other"]}',
        "n": 3,
    }
    assert found["inputs"]["artifacts"]["x"]["artifacts"] == [{"uri": "gs://b/x"}]
    assert found["outputs"]["outputFile"] == "/gcs/b/run/output.json"
    assert parameters["input_base"] == "/gcs/b/data"
