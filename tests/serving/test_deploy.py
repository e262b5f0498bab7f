"""What TF Serving, Docker and Kubernetes are given, checked by schemas and by what it refers to."""

import re
import shlex
from pathlib import Path

import kubernetes_validate
import pytest
import signing_keys
import small_servers
import yaml
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format

from sigline import cli
from sigline.components.publish import publishing
from sigline.schemas import signing
from sigline.serving.protocol import protos
from sigline.serving.server import metrics, model_config

DEPLOY = Path(__file__).parents[2] / "serving" / "deploy"
FIELD = descriptor_pb2.FieldDescriptorProto


def _manifests():
    return list(yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text()))


def _message(**fields):
    """Returns a message with fields as TF Serving's protos have them, which its package lacks."""
    file = descriptor_pb2.FileDescriptorProto(name="t.proto", package="t", syntax="proto3")
    wrapper = file.message_type.add(name="Int64Value")
    wrapper.field.add(name="value", number=1, type=FIELD.TYPE_INT64, label=FIELD.LABEL_OPTIONAL)
    inner = file.message_type.add(name="PrometheusConfig")
    inner.field.add(name="enable", number=1, type=FIELD.TYPE_BOOL, label=FIELD.LABEL_OPTIONAL)
    inner.field.add(name="path", number=2, type=FIELD.TYPE_STRING, label=FIELD.LABEL_OPTIONAL)
    outer = file.message_type.add(name="Outer")
    for number, (name, kind) in enumerate(fields.items(), start=1):
        outer.field.add(
            name=name,
            number=number,
            type=FIELD.TYPE_MESSAGE,
            label=FIELD.LABEL_OPTIONAL,
            type_name=f".t.{kind}",
        )
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("t.Outer"))()


def test_models_are_read_as_tf_serving_reads_them():
    (model,) = model_config.load(DEPLOY / "models.config")
    assert model == model_config.ModelConfig("sigline", "/models/sigline")


def test_batching_and_monitoring_are_read_as_tf_serving_reads_them():
    # tensorflow_serving/servables/tensorflow/session_bundle_config.proto, BatchingParameters.
    names = (
        "max_batch_size",
        "batch_timeout_micros",
        "max_enqueued_batches",
        "num_batch_threads",
    )
    found = _message(**dict.fromkeys(names, "Int64Value"))
    text_format.Parse((DEPLOY / "batching.config").read_text(), found)
    assert [getattr(found, name).value for name in names] == [64, 0, 100, 2]
    # tensorflow_serving/config/monitoring_config.proto.
    found = _message(prometheus_config="PrometheusConfig")
    text_format.Parse((DEPLOY / "monitoring.config").read_text(), found)
    assert found.prometheus_config.enable
    assert found.prometheus_config.path == metrics.PATH


@pytest.mark.parametrize("manifest", _manifests(), ids=lambda x: x["kind"])
def test_manifest_is_valid_and_has_no_unknown_fields(manifest):
    kubernetes_validate.validate(manifest, "1.33", strict=True)
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(manifest | {"spek": {}}, "1.33", strict=True)


def test_manifests_refer_to_each_other():
    deployment, service, scaler, budget = _manifests()
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    for selector in (
        deployment["spec"]["selector"]["matchLabels"],
        service["spec"]["selector"],
        budget["spec"]["selector"]["matchLabels"],
    ):
        assert selector.items() <= labels.items()
    assert scaler["spec"]["scaleTargetRef"]["name"] == deployment["metadata"]["name"]
    pod = deployment["spec"]["template"]["spec"]
    (container,), (verify,) = pod["containers"], pod["initContainers"]
    ports = {item["name"]: item["containerPort"] for item in container["ports"]}
    assert ports == {"grpc": 8500, "rest": 8501}
    assert {item["targetPort"] for item in service["spec"]["ports"]} == set(ports)
    mounts = container["volumeMounts"] + verify["volumeMounts"]
    assert {x["name"] for x in mounts} == {x["name"] for x in pod["volumes"]}
    annotations = deployment["spec"]["template"]["metadata"]["annotations"]
    assert annotations["prometheus.io/path"] == metrics.PATH
    probe = container["readinessProbe"]["grpc"]["service"]
    assert probe == protos.PREDICT.split("/")[1]
    # It goes on answering for longer than its being gone takes to be known.
    pause = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
    assert pause < pod["terminationGracePeriodSeconds"]


def _instructions():
    text = re.sub(r"\\\n", " ", (DEPLOY / "Dockerfile").read_text())
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [(line.split()[0], line.partition(" ")[2].strip()) for line in lines]


def test_dockerfile_copies_what_is_there_and_names_what_it_copies():
    instructions = dict(_instructions())
    *sources, target = shlex.split(instructions["COPY"])
    assert all((DEPLOY / name).is_file() for name in sources)
    flags = dict(x[2:].split("=", 1) for x in yaml.safe_load(instructions["CMD"]))
    named = [value for value in flags.values() if value.startswith(target)]
    assert {Path(value).name for value in named} <= set(sources)
    assert len(named) == 2
    # Without a tag the image would be another one tomorrow.
    assert instructions["FROM"] == "tensorflow/serving:${TF_SERVING}"
    assert re.fullmatch(r"TF_SERVING=\d+\.\d+\.\d+", instructions["ARG"])
    assert instructions["USER"] != "root"
    assert instructions["EXPOSE"].split() == [flags["port"], flags["rest_api_port"]]


def test_compose_listens_at_the_loopback_address_and_mounts_read_only():
    services = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
    service, verify = services["serving"], services["verify"]
    assert service["depends_on"] == {"verify": {"condition": "service_completed_successfully"}}
    assert (DEPLOY / verify["build"] / "Dockerfile").is_file()
    assert all(volume.endswith(":ro") for volume in verify["volumes"])
    assert verify["volumes"][0] == service["volumes"][0]
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    assert all(volume.endswith(":ro") for volume in service["volumes"])
    (model,) = model_config.load(DEPLOY / "models.config")
    assert service["volumes"][0].split(":")[-2] == model.base_path
    assert service["read_only"] is True


def _verifying():
    """Returns what checks the versions before each of the servers starts, by file."""
    kserve = yaml.safe_load((DEPLOY / "kserve.yaml").read_text())["spec"]["predictor"]
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]["verify"]
    pod = _manifests()[0]["spec"]["template"]["spec"]
    mounts = [{"mountPath": volume.split(":")[-2]} for volume in compose["volumes"]]
    return {
        "kubernetes": (pod["initContainers"][0]["command"], pod),
        "kserve": (kserve["initContainers"][0]["command"], kserve),
        "compose": (compose["command"], {"initContainers": [{"volumeMounts": mounts}]}),
    }


@pytest.mark.parametrize("name", ["kubernetes", "kserve", "compose"])
def test_versions_are_verified_before_they_are_served(name, tmp_path):
    command, pod = _verifying()[name]
    mounts = [x["mountPath"] for x in pod["initContainers"][0]["volumeMounts"]]
    program, *arguments = command
    assert program == "sigline"
    base, key = (x for x in arguments if x.startswith("/"))
    assert base in mounts
    assert any(key.startswith(place) for place in mounts)
    # The command as it stands, on a folder that lies elsewhere.
    path = small_servers.write_version(tmp_path / "plain", 1)
    private, public = signing_keys.write(tmp_path, "ours", "P-256")
    publishing.publish(path, tmp_path / "models", signer=signing.Signer(private))
    local = {base: str(tmp_path / "models"), key: str(public)}
    arguments = [local.get(x, x) for x in arguments]
    assert cli.main(arguments) == 0
    (tmp_path / "models" / "1" / "added").write_bytes(b"")
    assert cli.main(arguments) == 1


def test_pods_that_verify_are_valid():
    pod = _verifying()["kserve"][1]
    spec = {x: pod[x] for x in ("initContainers", "volumes")}
    spec["containers"] = [{"name": "serving", "image": "serving"}]
    manifest = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": spec}
    kubernetes_validate.validate(manifest, "1.33", strict=True)
    names = {x["name"] for x in pod["volumes"]}
    assert {x["name"] for x in pod["initContainers"][0]["volumeMounts"]} == names


def test_kserve_names_the_runtime_of_the_dockerfile():
    found = yaml.safe_load((DEPLOY / "kserve.yaml").read_text())
    assert (found["apiVersion"], found["kind"]) == (
        "serving.kserve.io/v1beta1",
        "InferenceService",
    )
    model = found["spec"]["predictor"]["model"]
    assert model["modelFormat"]["name"] == "tensorflow"
    assert dict(_instructions())["ARG"] == f"TF_SERVING={model['runtimeVersion']}"
