import asyncio
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest
import small_servers
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2

from sigline.serving.client import AsyncClient, Client
from sigline.serving.client import client as module
from sigline.serving.client.transport import ClientTls, Options, RequestError
from sigline.serving.protocol import protos, tensors


@pytest.fixture(scope="module")
def images(scene_records):
    return [item.image for item in scene_records[:5]]


@pytest.fixture(scope="module")
def direct(contract_base):
    return tf.saved_model.load(str(contract_base / "3"))


@pytest.fixture(params=["grpc", "rest"])
def client(request, server):
    rest = f"http://127.0.0.1:{server.rest_port}"
    return Client(server.address if request.param == "grpc" else rest)


def test_client_needs_no_tensorflow():
    code = (
        "import sys, sigline.serving.client\n"
        "assert not {'tensorflow', 'tensorflow_serving', 'aiohttp'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_messages_are_those_of_tf_serving():
    options = Options("m", version=3)
    request = options.request("s", {"a": ["x", b"\0y"], "b": []})
    real = predict_pb2.PredictRequest.FromString(request.SerializeToString())
    assert real.model_spec.name == "m"
    assert real.model_spec.version.value == 3
    assert real.model_spec.signature_name == "s"
    assert tf.make_ndarray(real.inputs["a"]).tolist() == [b"x", b"\0y"]
    assert tf.make_ndarray(real.inputs["b"]).shape == (0,)
    labelled = Options("m", label="canary").request("s", {})
    real = predict_pb2.PredictRequest.FromString(labelled.SerializeToString())
    assert real.model_spec.version_label == "canary"
    response = predict_pb2.PredictResponse()
    response.model_spec.version.value = 7
    for name, value in (("f", np.float32([[1, 2]])), ("i", np.int64([5])), ("b", [True])):
        response.outputs[name].CopyFrom(tf.make_tensor_proto(value))
    read = protos.PredictResponse.FromString(response.SerializeToString())
    assert read.model_spec.version.value == 7
    found = tensors.to_arrays(read.outputs)
    assert found["f"].tolist() == [[1, 2]]
    assert found["i"].tolist() == [5]
    assert found["b"].tolist() == [True]


def test_both_transports_give_the_models_answers(client, direct, images):
    texts = ["a red ring", "ein Ring \u00e4"]
    expected = direct.signatures["embed_text"](text=tf.constant(texts))["embedding"]
    np.testing.assert_allclose(client.embed_texts(texts), expected, atol=1e-6)
    vectors, valid = client.embed_images([*images, b"bad"])
    expected = direct.signatures["embed_image"](image_bytes=tf.constant(images))["embedding"]
    np.testing.assert_allclose(vectors[:5], expected, atol=1e-6)
    assert valid.tolist() == [True] * 5 + [False]
    assert client.compare(images[0], ["a", "b"]).shape == (2,)
    classes = client.predict("classify", {"image_bytes": images})["classes"]
    assert classes.shape == (5, 5)
    assert isinstance(classes[0, 0], bytes)
    with pytest.raises(RequestError, match="only JPEG and PNG") as caught:
        client.predict("embed_image", {"image_bytes": [b"x"]})
    assert caught.value.code == "INVALID_ARGUMENT"


def test_many_items_go_in_several_requests(client, images, monkeypatch):
    whole = client.embed_texts(["a", "b", "c"]), client.embed_images(images)
    monkeypatch.setattr(module, "_REQUEST_TEXTS", 2)
    monkeypatch.setattr(module, "_REQUEST_ITEMS", 2)
    parts = client.embed_texts(["a", "b", "c"]), client.embed_images(images)
    np.testing.assert_allclose(parts[0], whole[0], atol=1e-6)
    np.testing.assert_allclose(parts[1][0], whole[1][0], atol=1e-6)
    assert parts[1][1].all()


def test_classes_are_means_of_their_prompts(client, images):
    names, templates = ["red ring", "blue star"], ("a {}", "a photo of {}")
    scores, valid = client.classify(images, names, templates)
    assert valid.all()
    vectors = [[client.embed_texts([t.replace("{}", n)])[0] for t in templates] for n in names]
    means = np.mean(vectors, axis=1)
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    expected = client.embed_images(images)[0] @ means.T
    np.testing.assert_allclose(scores, expected, atol=1e-5)
    with pytest.raises(ValueError, match="in place of the name"):
        client.embed_classes(names, ["a photo"])


def test_coroutines_ask_beside_each_other(server, direct, images):
    texts = [f"number {i}" for i in range(40)]

    async def ask():
        client = AsyncClient(server.address)
        try:
            return await asyncio.gather(
                *(client.embed_texts([text]) for text in texts),
                client.embed_images([*images, b"bad"]),
                client.compare(images[0], texts[:2]),
            )
        finally:
            await client.close()

    *vectors, (_, valid), compared = asyncio.run(ask())
    expected = direct.signatures["embed_text"](text=tf.constant(texts))["embedding"]
    np.testing.assert_allclose(np.concatenate(vectors), expected, atol=1e-5)
    assert valid.tolist() == [True] * 5 + [False]
    assert compared.shape == (2,)


def test_coroutines_split_what_is_too_much(server, monkeypatch):
    monkeypatch.setattr(module, "_REQUEST_TEXTS", 7)
    texts = [f"number {i}" for i in range(100)]

    async def ask(**options):
        client = AsyncClient(server.address, **options)
        try:
            return await client.embed_texts(texts)
        finally:
            await client.close()

    expected = Client(server.address).embed_texts(texts)
    np.testing.assert_allclose(asyncio.run(ask()), expected, atol=1e-5)
    with pytest.raises(RequestError, match="NOT_FOUND"):
        asyncio.run(ask(model_name="other"))


def test_coroutine_is_told_why_it_is_refused(server):
    async def ask():
        client = AsyncClient(server.address, model_name="other")
        try:
            await client.embed_texts(["a"])
        finally:
            await client.close()

    with pytest.raises(RequestError, match=r"answered NOT_FOUND: Servable not found"):
        asyncio.run(ask())


def test_answer_names_the_version_over_grpc(server):
    assert Client(server.address).ask("embed_text", {"text": ["a"]}).version == 3
    assert Client(server.address, version=3).embed_texts(["a"]).shape == (1, 32)
    with pytest.raises(RequestError, match="Specific"):
        Client(server.address, version=4).embed_texts(["a"])


class _Clock:
    """Time that passes when the client pauses, and not otherwise."""

    def __init__(self):
        self.now = 0.0

    def monotonic(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds


@pytest.fixture
def clock(monkeypatch):
    found = _Clock()
    monkeypatch.setattr(module, "time", found)
    return found


class _Flaky(grpc.GenericRpcHandler):
    """Refuses a few calls before it answers."""

    def __init__(self, refusals, code):
        self.left, self.code, self.calls = refusals, code, 0

    def service(self, handler_call_details):
        def answer(request, context):
            self.calls += 1
            if self.left:
                self.left -= 1
                context.abort(self.code, "not now")
            response = predict_pb2.PredictResponse()
            response.outputs["embedding"].CopyFrom(tf.make_tensor_proto([[1.0]]))
            return response.SerializeToString()

        return grpc.unary_unary_rpc_method_handler(answer)


def _flaky(refusals, code):
    handler = _Flaky(refusals, code)
    server = grpc.server(ThreadPoolExecutor(4), handlers=[handler])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    return handler, server, f"127.0.0.1:{port}"


@pytest.mark.parametrize("code", [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED])
def test_what_may_pass_is_tried_again(code, clock):
    handler, server, address = _flaky(2, code)
    assert Client(address).embed_texts(["a"]).tolist() == [[1.0]]
    assert handler.calls == 3
    assert clock.now > 0
    server.stop(0)


def test_what_will_not_pass_is_not_tried_again():
    handler, server, address = _flaky(2, grpc.StatusCode.INVALID_ARGUMENT)
    with pytest.raises(RequestError, match="not now"):
        Client(address).embed_texts(["a"])
    assert handler.calls == 1
    server.stop(0)


def test_attempts_end_with_the_deadline(clock):
    handler, server, address = _flaky(100, grpc.StatusCode.UNAVAILABLE)
    with pytest.raises(RequestError, match=rf"{address} answered UNAVAILABLE: not now"):
        Client(address, timeout_seconds=60, retries=50).embed_texts(["a"])
    # Pauses double from 0.05 to 0.15 seconds on: from the eighth to the tenth they pass a minute.
    assert clock.now < 60
    assert 8 <= handler.calls <= 11
    server.stop(0)


@pytest.mark.parametrize("target", ["127.0.0.1:1", "http://127.0.0.1:1"])
def test_server_that_is_not_there_is_a_request_error(target):
    with pytest.raises(RequestError, match=r"127\.0\.0\.1:1 answered UNAVAILABLE"):
        Client(target, timeout_seconds=2, retries=0).embed_texts(["a"])


def test_keys_and_certificates_are_shown(versions_base, tmp_path):
    import trustme

    from sigline.serving.server import access

    authority, key = trustme.CA(), "a key that nobody guesses"
    issued, client = authority.issue_cert("localhost"), authority.issue_cert("c@example.org")
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    for name, found in (("server", issued), ("client", client)):
        found.private_key_pem.write_to_path(tmp_path / f"{name}.key")
        found.cert_chain_pems[0].write_to_path(tmp_path / f"{name}.pem")
    served = access.Tls(tmp_path / "server.pem", tmp_path / "server.key", tmp_path / "ca.pem")
    tls = ClientTls(tmp_path / "ca.pem", tmp_path / "client.pem", tmp_path / "client.key")
    with small_servers.running(versions_base, tls=served, api_keys=(key,)) as server:
        for target in (f"localhost:{server.port}", f"https://localhost:{server.rest_port}"):
            asked = Client(target, tls=tls, api_key=key).embed_texts(["3"])
            assert asked.tolist() == [[1.0, 3.0]]
            with pytest.raises(RequestError, match="An API key is needed") as caught:
                Client(target, tls=tls).embed_texts(["3"])
            assert caught.value.code == "UNAUTHENTICATED"


def test_lists_of_nothing_give_nothing(server):
    client = Client(server.address)
    assert client.embed_texts([]).shape == (0, 32)
    vectors, valid = client.embed_images([])
    assert (vectors.shape, valid.shape) == ((0, 32), (0,))


def test_client_may_be_shared_by_threads(server, direct):
    texts = [f"text {i}" for i in range(100)]
    expected = direct.signatures["embed_text"](text=tf.constant(texts))["embedding"]
    client, found = Client(server.address), {}

    def ask(number):
        found[number] = client.embed_texts([texts[number]])[0]

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(100)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    np.testing.assert_allclose([found[i] for i in range(100)], expected, atol=1e-5)
