"""Manifests of what the pipeline runs on: valid, and in accord with the environments."""

import importlib.metadata
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from sigline.pipeline import environment as environments

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "pipeline/deploy"
KUBERNETES = "1.33"


def _manifests(name: str) -> list[dict]:
    return list(yaml.safe_load_all((DEPLOY / name).read_text()))


def _clusters() -> list:
    found = []
    for name in ("flink.yaml", "spark.yaml"):
        for item in _manifests(name):
            found.append(pytest.param(item, id=f"{name}-{item['kind']}-{item['metadata']['name']}"))
    return found


@pytest.mark.parametrize("manifest", _clusters())
def test_manifest_is_valid_and_has_no_unknown_fields(manifest):
    kubernetes_validate.validate(manifest, KUBERNETES, strict=True)
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(manifest | {"spek": {}}, KUBERNETES, strict=True)


def test_trainer_s_job_is_valid():
    (jobset,) = _manifests("tpu-jobset.yaml")
    assert jobset["apiVersion"] == "jobset.x-k8s.io/v1alpha2"
    assert set(jobset["spec"]) == {"failurePolicy", "ttlSecondsAfterFinished", "replicatedJobs"}
    (replicated,) = jobset["spec"]["replicatedJobs"]
    assert set(replicated) == {"name", "replicas", "template"}
    job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "trainer"}}
    kubernetes_validate.validate(job | replicated["template"], KUBERNETES, strict=True)
    pod = replicated["template"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    # All chips of a host are asked for by one pod.
    chips = int(container["resources"]["limits"]["google.com/tpu"])
    rows, columns = pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x")
    assert chips == int(rows) * int(columns)


def test_trainer_s_command_is_one_that_sigline_takes():
    from sigline import cli
    from sigline.trainer import config

    (jobset,) = _manifests("tpu-jobset.yaml")
    template = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]
    (container,) = template["spec"]["containers"]
    given = cli._parser().parse_args([container["command"][1], *container["args"]])
    config.load_recipe(given.recipe)
    mounts = [item["mountPath"] for item in container["volumeMounts"]]
    for path in (*given.data, given.vocabulary, given.output):
        assert str(path).startswith(f"{mounts[0]}/"), path


@pytest.mark.parametrize("name", ["flink", "spark"])
def test_environment_reaches_what_the_manifests_start(name):
    environment = environments.load(name)
    options = dict(x.removeprefix("--").split("=", 1) for x in environment.beam_args)
    manifests = _manifests(f"{name}.yaml")
    services = {x["metadata"]["name"]: x["spec"] for x in manifests if x["kind"] == "Service"}
    for option in ("job_endpoint", "artifact_endpoint"):
        host, port = options[option].split(":")
        assert int(port) in [item["port"] for item in services[host]["ports"]]
    pods = [x["spec"]["template"] for x in manifests if x["kind"] == "Deployment"]
    containers = [(pod, c) for pod in pods for c in pod["spec"]["containers"]]
    ((pod, pool),) = [(pod, c) for pod, c in containers if c["args"] == ["--worker_pool"]]
    port = int(options["environment_config"].removeprefix("localhost:"))
    assert pool["ports"][0]["containerPort"] == port
    # Workers see what tasks see, at the same place.
    assert environment.kubeflow is not None
    assert pool["volumeMounts"][0]["mountPath"] == environment.kubeflow["mount"]
    (volume,) = pod["spec"]["volumes"]
    assert volume["persistentVolumeClaim"]["claimName"] == environment.kubeflow["claim"]
    # As many processes as there is room for.
    deployments = {x["metadata"]["name"]: x["spec"] for x in manifests if x["kind"] == "Deployment"}
    each = int(options["sdk_worker_parallelism"])
    assert pool["resources"]["requests"]["cpu"] == str(each)
    if name == "flink":
        assert f"numberOfTaskSlots: {each}" in str(deployments["flink-taskmanager"])
        replicas = deployments["flink-taskmanager"]["replicas"]
        assert int(options["parallelism"]) == replicas * each
    for service in services.values():
        assert any(service["selector"].items() <= p["metadata"]["labels"].items() for p in pods)


def test_images_of_beam_are_of_the_installed_version():
    version = importlib.metadata.version("apache-beam")
    assert f"apache/beam_python3.11_sdk:{version} " in (ROOT / "Dockerfile").read_text()
    for name in ("flink.yaml", "spark.yaml"):
        found = [
            container["image"]
            for item in _manifests(name)
            if item["kind"] == "Deployment"
            for container in item["spec"]["template"]["spec"]["containers"]
            if "job_server" in container["image"]
        ]
        assert [image.rpartition(":")[2] for image in found] == [version]


@pytest.mark.parametrize("name", ["flink.yaml", "spark.yaml"])
def test_ports_by_which_programs_come_are_closed_to_others(name):
    manifests = _manifests(name)
    policies = [item["spec"] for item in manifests if item["kind"] == "NetworkPolicy"]
    pods = [
        item["spec"]["template"]["metadata"]["labels"]["app"]
        for item in manifests
        if item["kind"] == "Deployment"
    ]
    closed, jobs = policies
    (chosen,) = closed["podSelector"]["matchExpressions"]
    assert set(pods) == set(chosen["values"])
    # From these alone, whatever the port.
    (rule,) = closed["ingress"]
    assert [x["podSelector"] for x in rule["from"]] == [closed["podSelector"]]
    assert "ports" not in rule
    (rule,) = jobs["ingress"]
    assert {item["port"] for item in rule["ports"]} == {8098, 8099}
    assert all("namespaceSelector" not in source for source in rule["from"])
