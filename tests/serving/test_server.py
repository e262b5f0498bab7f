import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest
import small_servers
import tensorflow as tf
from PIL import Image

from sigline.components.scenes import grammar
from sigline.schemas import signatures
from sigline.serving.client import Client, RequestError, image_files
from sigline.serving.server import server as serving_server


@pytest.fixture(scope="module")
def client(server):
    client = Client(server.address)
    yield client
    client.close()


@pytest.fixture(scope="module")
def images(scene_records):
    return [item.image for item in scene_records[:3]]


@pytest.fixture(scope="module")
def direct(contract_base):
    return tf.saved_model.load(str(contract_base / "3"))


def _stub(server):
    from tensorflow_serving.apis import prediction_service_pb2_grpc

    channel = grpc.insecure_channel(server.address)
    return prediction_service_pb2_grpc.PredictionServiceStub(channel)


def _request(**spec):
    from tensorflow_serving.apis import predict_pb2

    request = predict_pb2.PredictRequest()
    request.model_spec.name = spec.get("name", "sigline")
    request.model_spec.signature_name = spec.get("signature", signatures.EMBED_TEXT)
    if "version" in spec:
        request.model_spec.version.value = spec["version"]
    if "label" in spec:
        request.model_spec.version_label = spec["label"]
    for name, value in spec.get("inputs", {signatures.TEXT: np.array([b"a"], object)}).items():
        request.inputs[name].CopyFrom(tf.make_tensor_proto(value))
    return request


def test_answers_equal_the_model_called_directly(client, direct, images):
    texts = ["a red ring", "a blue star"]
    expected = direct.signatures[signatures.EMBED_TEXT](text=tf.constant(texts))
    np.testing.assert_allclose(client.embed_texts(texts), expected["embedding"], atol=1e-6)
    found, valid = client.embed_images([*images, b"bad"])
    expected = direct.signatures[signatures.EMBED_IMAGE](image_bytes=tf.constant(images))
    np.testing.assert_allclose(found[:3], expected["embedding"], atol=1e-6)
    assert valid.tolist() == [True, True, True, False]


def test_compare_gives_a_probability_per_text(client, images):
    probabilities = client.compare(images[0], ["a", "b", "c"])
    assert probabilities.shape == (3,)
    assert ((probabilities > 0) & (probabilities < 1)).all()


def test_classify_answers_with_names(client, images):
    answer = client.predict(signatures.CLASSIFY, {signatures.IMAGE_BYTES: images})
    assert answer[signatures.CLASSES].shape == (3, 5)
    assert answer[signatures.CLASSES][0, 0].decode() in grammar.label_set().names


def test_response_names_model_version_and_signature_in_typed_fields(server):
    response = _stub(server).Predict(_request())
    assert response.model_spec.name == "sigline"
    assert response.model_spec.version.value == 3
    assert response.model_spec.signature_name == signatures.EMBED_TEXT
    assert len(response.outputs["embedding"].float_val) == 32
    assert not response.outputs["embedding"].tensor_content


def test_signature_defaults_to_serving_default(server, images):
    inputs = {signatures.IMAGE_BYTES: np.array(images, object)}
    response = _stub(server).Predict(_request(signature="", inputs=inputs))
    assert response.model_spec.signature_name == signatures.SERVING_DEFAULT


# Codes and texts are TF Serving's.
@pytest.mark.parametrize(
    ("spec", "code", "message"),
    [
        (
            {"name": "other"},
            grpc.StatusCode.NOT_FOUND,
            "Servable not found for request: Latest(other)",
        ),
        ({"version": 7}, grpc.StatusCode.NOT_FOUND, "Specific(sigline, 7)"),
        ({"name": ""}, grpc.StatusCode.INVALID_ARGUMENT, "no name"),
        (
            {"label": "x"},
            grpc.StatusCode.INVALID_ARGUMENT,
            "Unrecognized servable version label: x",
        ),
        ({"signature": "x"}, grpc.StatusCode.FAILED_PRECONDITION, 'signature key "x" not found'),
        ({"inputs": {}}, grpc.StatusCode.INVALID_ARGUMENT, "Missing but required: {text}"),
        (
            {"inputs": {"text": np.array([1.0], np.float32)}},
            grpc.StatusCode.INVALID_ARGUMENT,
            "input text must be string. Received: float32",
        ),
        (
            {"inputs": {"text": np.array([[b"a"]], object)}},
            grpc.StatusCode.INVALID_ARGUMENT,
            "must have shape",
        ),
        (
            {"signature": "embed_image", "inputs": {"image_bytes": np.array([b"x"], object)}},
            grpc.StatusCode.INVALID_ARGUMENT,
            "only JPEG and PNG",
        ),
        (
            {"signature": "embed_image", "inputs": {"image_bytes": np.array([b"\x89PNG"], object)}},
            grpc.StatusCode.INVALID_ARGUMENT,
            "only JPEG and PNG",
        ),
    ],
)
def test_wrong_request_gets_tf_servings_status(server, spec, code, message):
    with pytest.raises(grpc.RpcError) as caught:
        _stub(server).Predict(_request(**spec))
    assert caught.value.code() == code
    assert message in caught.value.details()
    assert "\n" not in caught.value.details()


def test_request_without_model_spec_is_refused(server):
    from tensorflow_serving.apis import predict_pb2

    with pytest.raises(grpc.RpcError) as caught:
        _stub(server).Predict(predict_pb2.PredictRequest())
    assert caught.value.details() == "Missing ModelSpec"


def test_tensor_whose_shape_lies_is_refused(server):
    request = _request()
    request.inputs["text"].tensor_shape.dim[0].size = 10**12
    with pytest.raises(grpc.RpcError) as caught:
        _stub(server).Predict(request)
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT


def test_number_tensor_that_claims_gigabytes_is_refused(server):
    request = _request(inputs={"text": np.array([1.0], np.float32)})
    request.inputs["text"].tensor_shape.dim[0].size = 10**10
    with pytest.raises(grpc.RpcError, match="input text must be string") as caught:
        _stub(server).Predict(request)
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT


def test_output_filter_selects_and_checks(server, images):
    inputs = {signatures.IMAGE_BYTES: np.array(images, object)}
    request = _request(signature=signatures.EMBED_IMAGE_SAFE, inputs=inputs)
    request.output_filter.append("valid")
    assert list(_stub(server).Predict(request).outputs) == ["valid"]
    request.output_filter.append("nothing")
    with pytest.raises(grpc.RpcError, match="output_filter"):
        _stub(server).Predict(request)


def test_message_over_the_limit_is_refused(server):
    inputs = {"text": np.array([b"x" * (17 * 2**20)], object)}
    with pytest.raises(grpc.RpcError) as caught:
        _stub(server).Predict(_request(inputs=inputs))
    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED


def test_metadata_and_status_are_answered(server):
    from tensorflow_serving.apis import (
        get_model_metadata_pb2,
        get_model_status_pb2,
        model_service_pb2_grpc,
    )

    request = get_model_metadata_pb2.GetModelMetadataRequest()
    request.model_spec.name = "sigline"
    request.metadata_field.append("signature_def")
    answer = get_model_metadata_pb2.SignatureDefMap()
    assert _stub(server).GetModelMetadata(request).metadata["signature_def"].Unpack(answer)
    assert signatures.SIMILARITY in answer.signature_def
    status = get_model_status_pb2.GetModelStatusRequest()
    status.model_spec.name = "sigline"
    stub = model_service_pb2_grpc.ModelServiceStub(grpc.insecure_channel(server.address))
    (version,) = stub.GetModelStatus(status).model_version_status
    assert (version.version, version.state, version.status.error_code) == (3, 30, 0)


def test_search_ranks_files_and_reports_unreadable_ones(client, images, tmp_path):
    for index, image in enumerate(images):
        (tmp_path / f"{index}.png").write_bytes(image)
    (tmp_path / "bad.png").write_bytes(b"x")
    matches, unreadable = client.search("a red ring", image_files(tmp_path), top=2)
    assert len(matches) == 2
    assert matches[0].score >= matches[1].score
    assert [path.name for path in unreadable] == ["bad.png"]


def test_search_splits_large_folders_into_requests(client, scene_records, tmp_path, monkeypatch):
    from sigline.serving.client import client as module

    for index in range(7):
        (tmp_path / f"{index}.png").write_bytes(scene_records[index].image)
    whole, _ = client.search("a", image_files(tmp_path), top=7)
    monkeypatch.setattr(module, "_REQUEST_ITEMS", 2)
    parts, _ = client.search("a", image_files(tmp_path), top=7)
    assert [m.path for m in parts] == [m.path for m in whole]


def test_folder_without_images_is_refused(tmp_path):
    with pytest.raises(ValueError, match="folder with JPEG or PNG"):
        image_files(tmp_path)


def test_server_that_is_not_there_is_a_request_error():
    client = Client("127.0.0.1:1", timeout_seconds=2)
    with pytest.raises(RequestError, match=r"127\.0\.0\.1:1 answered UNAVAILABLE"):
        client.embed_texts(["a"])


@pytest.mark.parametrize("name", ["port", "rest_port"])
def test_port_that_is_taken_is_a_clear_error(server, contract_base, name):
    ports = {"port": 0} | {name: getattr(server, name)}
    config = serving_server.ServerConfig(models=serving_server.one_model(contract_base), **ports)
    with pytest.raises(OSError, match=rf"^{name} must be free"):
        serving_server.ModelServer(config)


def test_many_clients_get_their_own_answers(server, direct):
    texts = [f"a {color} {shape}" for color, shape in grammar.COMBINATIONS]
    expected = direct.signatures[signatures.EMBED_TEXT](text=tf.constant(texts))["embedding"]
    client = Client(server.address)
    with ThreadPoolExecutor(8) as pool:
        found = np.concatenate(list(pool.map(lambda text: client.embed_texts([text]), texts)))
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_image_as_png_and_lossless_copy_agree(client, images):
    buffer = io.BytesIO()
    Image.open(io.BytesIO(images[0])).save(buffer, "PNG", compress_level=1)
    vectors, _ = client.embed_images([images[0], buffer.getvalue()])
    np.testing.assert_allclose(vectors[0], vectors[1], atol=1e-6)


@pytest.mark.parametrize(
    ("method", "signature", "code", "message"),
    [
        ("Classify", "classify", "INVALID_ARGUMENT", "No classification inputs found"),
        ("Classify", "embed_image_safe", "INVALID_ARGUMENT", "No classification inputs found"),
        ("Classify", "similarity", "INVALID_ARGUMENT", "Expected one input Tensor"),
        ("Classify", "x", "FAILED_PRECONDITION", 'signature key "x" not found'),
        ("Regress", "embed_text", "INVALID_ARGUMENT", "No regression inputs found"),
        ("Regress", "classify", "INVALID_ARGUMENT", "Expected one output Tensor, found 2"),
    ],
)
def test_classify_and_regress_find_no_signature_of_theirs(server, method, signature, code, message):
    from tensorflow_serving.apis import classification_pb2, regression_pb2

    kinds = {
        "Classify": classification_pb2.ClassificationRequest,
        "Regress": regression_pb2.RegressionRequest,
    }
    request = kinds[method]()
    request.model_spec.name, request.model_spec.signature_name = "sigline", signature
    with pytest.raises(grpc.RpcError, match=message) as caught:
        getattr(_stub(server), method)(request)
    assert caught.value.code().name == code


def test_health_is_that_of_the_server_and_of_its_services(server):
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    stub = health_pb2_grpc.HealthStub(grpc.insecure_channel(server.address))
    for name in ("", "tensorflow.serving.PredictionService"):
        answer = stub.Check(health_pb2.HealthCheckRequest(service=name))
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
    with pytest.raises(grpc.RpcError, match="NOT_FOUND"):
        stub.Check(health_pb2.HealthCheckRequest(service="other"))


@pytest.mark.parametrize("package", ["grpc.reflection.v1", "grpc.reflection.v1alpha"])
def test_services_can_be_listed_and_described(server, package):
    from google.protobuf import descriptor_pb2
    from grpc_reflection.v1alpha import reflection_pb2

    with grpc.insecure_channel(server.address) as channel:
        ask = channel.stream_stream(
            f"/{package}.ServerReflection/ServerReflectionInfo",
            request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
            response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
        )
        symbols = ("tensorflow.serving.PredictionService", f"{package}.ServerReflection")
        requests = [reflection_pb2.ServerReflectionRequest(list_services="")]
        requests += [
            reflection_pb2.ServerReflectionRequest(file_containing_symbol=symbol)
            for symbol in symbols
        ]
        names, *files = ask(iter(requests))
    assert {item.name for item in names.list_services_response.service} == {
        "grpc.health.v1.Health",
        "grpc.reflection.v1.ServerReflection",
        "grpc.reflection.v1alpha.ServerReflection",
        "tensorflow.serving.ModelService",
        "tensorflow.serving.PredictionService",
    }
    for symbol, answer in zip(symbols, files, strict=True):
        content = answer.file_descriptor_response.file_descriptor_proto
        found = [descriptor_pb2.FileDescriptorProto.FromString(x) for x in content]
        services = {f"{file.package}.{x.name}": x for file in found for x in file.service}
        for method in services[symbol].method:
            # What it takes is described, too.
            assert any(
                method.input_type == f".{file.package}.{message.name}"
                for file in found
                for message in file.message_type
            )


def test_clients_may_not_say_what_is_served(server):
    from tensorflow_serving.apis import model_management_pb2, model_service_pb2_grpc

    stub = model_service_pb2_grpc.ModelServiceStub(grpc.insecure_channel(server.address))
    with pytest.raises(grpc.RpcError, match="--allow-reload") as caught:
        stub.HandleReloadConfigRequest(model_management_pb2.ReloadConfigRequest())
    assert caught.value.code() == grpc.StatusCode.PERMISSION_DENIED


def test_config_is_replaced_where_that_is_allowed(versions_base, tmp_path):
    from tensorflow_serving.apis import model_management_pb2, model_service_pb2_grpc

    from sigline.serving.server import model_config

    other = tmp_path / "other"
    small_servers.write_version(other, 4)
    with small_servers.running(versions_base, allow_reload=True) as server:
        stub = model_service_pb2_grpc.ModelServiceStub(grpc.insecure_channel(server.address))
        request = model_management_pb2.ReloadConfigRequest()
        models = [model_config.ModelConfig("other", str(other))]
        request.config.CopyFrom(model_config.to_proto(models))
        stub.HandleReloadConfigRequest(request)
        assert Client(server.address, model_name="other").embed_texts(["3"]).tolist() == [[4, 3]]
        with pytest.raises(RequestError, match="NOT_FOUND"):
            Client(server.address).embed_texts(["3"])
        request.config.Clear()
        with pytest.raises(grpc.RpcError, match="model_config_list") as caught:
            stub.HandleReloadConfigRequest(request)
        assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT


def test_config_file_is_taken_up_when_it_changes(versions_base, tmp_path):
    from sigline.serving.server import model_config

    small_servers.write_version(versions_base, 2)
    path = tmp_path / "models.config"

    def write(version):
        policy = model_config.VersionPolicy(None, (version,))
        models = [model_config.ModelConfig("m", str(versions_base), policy, {"stable": version})]
        scratch = tmp_path / "scratch"
        scratch.write_text(model_config.to_text(models))
        scratch.replace(path)

    write(1)
    settings = {"models": model_config.load(path), "model_config_file": path, "poll_seconds": 0.05}
    with small_servers.running(versions_base, **settings) as server:
        stub, request = _stub(server), _request(name="m", label="stable", inputs={})
        request.inputs["text"].CopyFrom(tf.make_tensor_proto([b"3"]))
        assert stub.Predict(request).model_spec.version.value == 1
        path.write_text("nonsense")
        write(2)
        end = time.monotonic() + 30
        while stub.Predict(request).model_spec.version.value == 1 and time.monotonic() < end:
            pass
        assert stub.Predict(request).model_spec.version.value == 2


def test_too_many_requests_at_a_time_are_refused(versions_base):
    from sigline.serving.server.requests import Limits

    with small_servers.running(versions_base, limits=Limits(max_requests=1)) as server:
        with (
            server._requests.admitted(),
            pytest.raises(RequestError, match="More than 1 requests at a time") as caught,
        ):
            Client(server.address, retries=0).embed_texts(["3"])
        assert caught.value.code == "RESOURCE_EXHAUSTED"
        assert Client(server.address).embed_texts(["3"]).tolist() == [[1, 3]]


def test_end_lets_what_is_in_flight_finish(versions_base):
    with small_servers.running(versions_base, lame_duck_seconds=0.2) as server:
        client = Client(server.address)
        with ThreadPoolExecutor(4) as pool:
            answers = [pool.submit(client.embed_texts, ["1"]) for _ in range(50)]
            answers[0].result(60)
            server.stop()
        # Whoever was let in is answered; the others are told to ask elsewhere.
        refused = [x.exception() for x in answers if x.exception() is not None]
        assert all(getattr(error, "code", "") == "UNAVAILABLE" for error in refused)


def test_server_logs_json_and_ends_in_order_on_sigterm(versions_base):
    command = [sys.executable, "-m", "sigline.cli", "serve", "--base-path", str(versions_base)]
    command += ["--port", "0", "--rest-port", "0", "--log-requests"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ
    )
    assert process.stdout is not None
    try:
        lines = [process.stdout.readline(), process.stdout.readline()]
        assert re.fullmatch(r"REST on 127\.0\.0\.1:\d+\n", lines[0])
        assert re.fullmatch(r"Serving version 1 of sigline on 127\.0\.0\.1:\d+\n", lines[1])
        client = Client(lines[1].split()[-1], timeout_seconds=120)
        assert client.embed_texts(["3"]).tolist() == [[1, 3]]
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0
    finally:
        process.kill()
    events = [json.loads(line) for line in errors.splitlines() if line.startswith("{")]
    names = [item["event"] for item in events]
    assert names == ["loaded", "serving", "request", "draining", "unloaded", "stopped"]
    request = events[2]
    assert (request["model"], request["code"], request["api"], request["entrypoint"]) == (
        "sigline",
        "OK",
        "Predict",
        "GRPC",
    )
