"""The pipeline as Kubeflow runs it: compiled, and each task run as its container's command."""

import importlib
import json
import os
import signal
import threading
import time
from pathlib import Path

import pytest
import yaml
from tiny_model import OVERRIDES

from sigline.components.scenes import generate
from sigline.pipeline import environment as environments
from sigline.schemas import signatures, versions

pytestmark = [pytest.mark.tfx, pytest.mark.slow]

MOUNT = "/mnt/sigline"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kubeflow")
    faults = {generate.CORRUPT: 0.02, generate.EMPTY_TEXT: 0.01}
    generate.write_scenes(folder / "volume/data", count=1000, seed=1, faults=faults)
    return folder


def _environment(folder: Path, root: str, data: str, **changes) -> environments.Environment:
    values = {
        "pipeline_name": "scenes",
        "root": root,
        "input_base": data,
        "recipe": "siglip_small",
        "overrides": OVERRIDES,
        "ingest": {"eval_sources": [generate.HELD_OUT_SOURCE], "eval_share": 0.2},
        "index": {"top": 20},
        "kubeflow": {
            "image": "registry.example.com/sigline:1",
            "claim": "sigline",
            "mount": MOUNT,
            "retries": 1,
            "secrets": {"REGISTRY_TOKEN": "tokens/registry"},
            "secret_files": {"/etc/sigline/keys": "signing"},
            "image_pull_secrets": ["regcred"],
            "resources": {
                "default": {"cpu": 2, "memory": "8Gi"},
                "Trainer": {
                    "image": "registry.example.com/sigline-tpu:1",
                    "accelerator": "google.com/tpu",
                    "accelerators": 4,
                    "node_selector": {
                        "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
                        "cloud.google.com/gke-tpu-topology": "2x2",
                    },
                    "tolerations": ["google.com/tpu"],
                },
            },
        },
    }
    path = folder / "environment.yaml"
    path.write_text(yaml.safe_dump(values | changes))
    return environments.load(path)


@pytest.fixture(scope="module")
def compiled(folder):
    """The package and its specification."""
    from sigline.pipeline.kubeflow import compiling

    environment = _environment(folder, f"{MOUNT}/demo", f"{MOUNT}/data")
    path = folder / "scenes.yaml"
    spec = compiling.compile_pipeline(environment, path)
    first = path.read_bytes()
    compiling.compile_pipeline(environment, path)
    assert path.read_bytes() == first, "the same environment gives the same package"
    return path, spec


def test_kubeflow_s_own_code_loads_the_package(compiled):
    from google.protobuf import json_format
    from kfp import components
    from kfp.kubernetes import kubernetes_executor_config_pb2
    from kfp.pipeline_spec import pipeline_spec_pb2

    path, _ = compiled
    loaded = components.load_component_from_file(str(path))
    assert loaded.name == "scenes"
    assert set(loaded.component_spec.inputs) == {"recipe", "span", "overrides", "steps", "gate"}
    spec, platform = yaml.safe_load_all(path.read_text())
    message = json_format.ParseDict(spec, pipeline_spec_pb2.PipelineSpec())
    assert message.schema_version == "2.1.0"
    executors = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    assert set(executors) == set(spec["deploymentSpec"]["executors"])
    for config in executors.values():
        json_format.ParseDict(config, kubernetes_executor_config_pb2.KubernetesExecutorConfig())


def test_modules_of_every_command_can_be_imported(compiled):
    _, spec = compiled
    for executor in spec["deploymentSpec"]["executors"].values():
        container = executor["container"]
        assert container["command"][:2] == ["python", "-m"]
        assert hasattr(importlib.import_module(container["command"][2]), "main")
        path = container["args"][container["args"].index("--executor_class_path") + 1]
        module, _, name = path.rpartition(".")
        assert hasattr(importlib.import_module(module), name), path


def test_trainer_gets_its_accelerator_and_all_tasks_the_volume(compiled):
    path, spec = compiled
    _, platform = yaml.safe_load_all(path.read_text())
    trainer = spec["deploymentSpec"]["executors"]["Trainer_executor"]["container"]
    assert trainer["image"] == "registry.example.com/sigline-tpu:1"
    assert trainer["resources"]["accelerator"]["resourceType"] == "google.com/tpu"
    assert trainer["resources"]["resourceMemoryLimit"] == "8Gi"
    executors = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    assert (
        executors["Trainer_executor"]["nodeSelector"]["labels"]["cloud.google.com/gke-tpu-topology"]
        == "2x2"
    )
    assert "nodeSelector" not in executors["CheckData_executor"]
    for config in executors.values():
        assert config["pvcMount"] == [{"constant": "sigline", "mountPath": MOUNT}]
        assert config["secretAsEnv"][0]["keyToEnv"] == [
            {"secretKey": "registry", "envVar": "REGISTRY_TOKEN"}
        ]


def test_only_what_its_parameters_determine_is_cached(compiled):
    _, spec = compiled
    tasks = spec["components"]["tfx-dag"]["dag"]["tasks"]
    cached = {name for name, task in tasks.items() if task["cachingOptions"].get("enableCache")}
    assert cached == {"IngestExamples", "ProvideSchema"}
    assert tasks["Trainer"]["retryPolicy"]["maxRetryCount"] == 1
    assert "retryPolicy" not in tasks["CheckData"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kubeflow": None}, "no `kubeflow` section"),
        ({"root": "/elsewhere"}, "root must lie below /mnt/sigline"),
        ({"serving_dir": "serving"}, "serving_dir must lie below /mnt/sigline"),
        ({"kubeflow": {"image": "a/b:1"}}, "claim must name the volume"),
        (
            {"kubeflow": {"image": "a", "claim": "x", "resources": {"trainer": {"cpu": 1}}}},
            "resources must name tasks: .*Received: trainer",
        ),
        ({"infra": "tfx"}, "infra must be sigline on Kubeflow"),
        ({"recipe": "siglip_smal"}, "Unknown recipe"),
        ({"overrides": ["stepz=1"]}, "stepz"),
    ],
)
def test_what_kubeflow_cannot_run_is_refused(folder, tmp_path, changes, message):
    from sigline.pipeline.kubeflow import compiling

    values = {"root": f"{MOUNT}/demo", "data": f"{MOUNT}/data"} | changes
    if changes.get("kubeflow", "") is None:
        del values["kubeflow"]
        import dataclasses

        environment = dataclasses.replace(_environment(folder, **values), kubeflow=None)
    else:
        environment = _environment(folder, **values)
    with pytest.raises(ValueError, match=message):
        compiling.compile_pipeline(environment, tmp_path / "x.yaml")


def test_vertex_job_names_run_by_placeholder(folder, tmp_path):
    from sigline.pipeline.kubeflow import compiling, packages

    environment = _environment(
        folder,
        "/gcs/bucket/demo",
        "/gcs/bucket/data",
        serving_dir="gs://bucket/serving",
        kubeflow={"image": "a/b:1", "pipeline_root": "gs://bucket/artifacts"},
    )
    path = tmp_path / "scenes.json"
    compiling.compile_pipeline(environment, path, engine="vertex")
    job = json.loads(path.read_text())
    assert job["runtimeConfig"]["gcsOutputDirectory"] == "gs://bucket/artifacts"
    command = packages.read(path).spec["deploymentSpec"]["executors"]["Trainer_executor"]
    assert command["container"]["command"][-2:] == ["--run", "{{$.pipeline_job_uuid}}"]


def _kill_with_a_checkpoint(run, checkpoints: Path, killed: list[int]) -> None:
    """Kills the task that is running, once, as soon as there is a checkpoint."""
    end = time.monotonic() + 900
    while time.monotonic() < end and not list(checkpoints.glob("*/checkpoints/checkpoint")):
        time.sleep(0.02)
    killed.append(run.process_id)
    os.kill(run.process_id, signal.SIGKILL)


@pytest.fixture(scope="module")
def run(compiled, folder):
    """A run whose trainer was killed once."""
    from sigline.pipeline.kubeflow import dry_run, packages

    package = packages.read(compiled[0]).on(folder / "volume")
    os.environ["REGISTRY_TOKEN"] = "none"
    try:
        run = dry_run.DryRun(package, folder / "logs", preload=True)
        killed: list[int] = []
        arguments = run, folder / "volume/demo/checkpoints", killed
        threading.Thread(target=_kill_with_a_checkpoint, args=arguments, daemon=True).start()
        state = run.run()
    finally:
        del os.environ["REGISTRY_TOKEN"]
    failed = {x.name: x.reason for x in run.tasks.values() if x.state != "SUCCEEDED"}
    assert state == "SUCCEEDED", failed
    assert len(killed) == 1
    return run


@pytest.fixture(scope="module")
def verdict(run, folder):
    path = folder / "volume/demo/runs" / run.name / "verdict.json"
    return json.loads(path.read_text())


def test_compiled_package_publishes_what_the_local_runner_publishes(
    run, verdict, folder, whole_run
):
    local = whole_run.report
    assert verdict["verdict"] == "released"
    assert local.verdict["blessed"]
    assert verdict["counts"] == local.counts
    accuracy = {
        name: item["zero_shot_accuracy"]["value"]
        for name, item in (("kubeflow", verdict["metrics"]), ("local", local.metrics))
    }
    assert accuracy["kubeflow"] == accuracy["local"]
    published = folder / "volume/demo/serving/1"
    assert versions.verify(published) is not None
    assert versions.verify(folder / "volume/demo/index/1") is not None
    # To the bit, though one of them was killed and went on.
    metadata = json.loads(
        (published / signatures.ASSETS_DIR / signatures.METADATA_FILE).read_text()
    )
    assert metadata["model_digest"] == whole_run.model["model_digest"]


def test_retry_goes_on_from_the_checkpoint(run, verdict):
    assert run.tasks["Trainer"].attempts == 2
    assert verdict["training"]["first_step"] in (50, 100)


def test_exit_handler_reports_the_verdict(run, verdict):
    assert run.tasks["ReportRun"].state == "SUCCEEDED"
    said = run.tasks["ReportRun"].log.read_text()
    assert f"Run {run.name}: released" in said
    assert verdict["published"]["path"] in said
    assert "pairs written" in said


def test_second_run_of_the_same_data_publishes_nothing_new(run, verdict, compiled, folder):
    from sigline.pipeline.kubeflow import dry_run, packages

    package = packages.read(compiled[0]).on(folder / "volume")
    os.environ["REGISTRY_TOKEN"] = "none"
    try:
        again = dry_run.DryRun(package, folder / "logs", preload=True)
        assert again.run() == "SUCCEEDED"
    finally:
        del os.environ["REGISTRY_TOKEN"]
    summary = json.loads((folder / "volume/demo/runs" / again.name / "verdict.json").read_text())
    assert summary["published"] == verdict["published"] | {"copied": False}
    # It trained nothing, was compared with the data before, and not with itself.
    assert summary["training"]["first_step"] == 150
    (earlier,) = json.loads(
        again.tasks["LastAcceptedData"].artifacts["statistics"]["metadata"]["stands_for"]
    )
    assert run.name in earlier["uri"]
    found = again.tasks["LastBlessedModel"].artifacts["model"]["metadata"]["stands_for"]
    assert json.loads(found) == []


def test_failure_is_one_line_and_is_reported_at_the_end(compiled, folder):
    from sigline.pipeline.kubeflow import dry_run, packages

    package = packages.read(compiled[0]).on(folder / "volume")
    os.environ["REGISTRY_TOKEN"] = "none"
    try:
        run = dry_run.DryRun(package, folder / "logs", parameters={"overrides": "stepz=1"})
        assert run.run() == "FAILED"
    finally:
        del os.environ["REGISTRY_TOKEN"]
    failed = run.tasks["PlanRun"]
    assert failed.reason.startswith("PlanRun failed: ")
    assert "stepz" in failed.reason
    assert run.tasks["Trainer"].state == "SKIPPED"
    assert run.tasks["ReportRun"].state == "SUCCEEDED"
    summary = json.loads((folder / "volume/demo/runs" / run.name / "verdict.json").read_text())
    assert summary["verdict"] == "failed"
    assert "stepz" in summary["failures"][0]
