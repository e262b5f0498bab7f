import io

import grpc
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from sigline.components.scenes import grammar
from sigline.schemas import signatures, versions
from sigline.serving.client import Client, RequestError, image_files
from sigline.serving.server import ModelServer, newest_version
from sigline.trainer import config, export, two_tower


@pytest.fixture(scope="module")
def base_path(tmp_path_factory, vocabulary):
    tiny = config.tiny(config.load_recipe("siglip_demo"))
    base = tmp_path_factory.mktemp("serving")
    model, labels = two_tower.build(tiny), grammar.label_set()
    export.export(base / "3", model, config=tiny, vocabulary=vocabulary, labels=labels)
    return base


@pytest.fixture(scope="module")
def server(base_path):
    server = ModelServer(base_path, port=0)
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def client(server):
    client = Client(server.address)
    yield client
    client.close()


@pytest.fixture(scope="module")
def images(scene_records):
    return [item.image for item in scene_records[:3]]


@pytest.fixture(scope="module")
def direct(base_path):
    return tf.saved_model.load(str(base_path / "3"))


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
    with pytest.raises(grpc.RpcError, match="over the limit") as caught:
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
    assert (version.version, version.state) == (3, 30)


def test_search_ranks_files_and_reports_unreadable_ones(client, images, tmp_path):
    for index, image in enumerate(images):
        (tmp_path / f"{index}.png").write_bytes(image)
    (tmp_path / "bad.png").write_bytes(b"x")
    matches, unreadable = client.search("a red ring", image_files(tmp_path), top=2)
    assert len(matches) == 2
    assert matches[0].score >= matches[1].score
    assert [path.name for path in unreadable] == ["bad.png"]


def test_search_splits_large_folders_into_requests(client, scene_records, tmp_path, monkeypatch):
    from sigline.serving import client as module

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


def test_port_that_is_taken_is_a_clear_error(server, base_path):
    with pytest.raises(OSError, match="port must be free"):
        ModelServer(base_path, port=server.port)


def test_folder_without_versions_is_refused(tmp_path):
    with pytest.raises(ValueError, match="must hold a version directory"):
        newest_version(tmp_path)


def test_version_that_differs_from_its_manifest_is_refused(tmp_path):
    version = tmp_path / "1"
    version.mkdir()
    (version / "saved_model.pb").write_bytes(b"x")
    versions.write_manifest(version, versions.content(version))
    assert newest_version(tmp_path) == (1, version)
    (version / "saved_model.pb").write_bytes(b"y")
    with pytest.raises(ValueError, match="does not match its manifest"):
        newest_version(tmp_path)


def test_many_clients_get_their_own_answers(server, direct):
    from concurrent.futures import ThreadPoolExecutor

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
