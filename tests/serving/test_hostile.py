"""Input that no honest client sends: each gets its status, and costs no other request."""

import json
import os
import resource
import socket
import threading
import urllib.error
import urllib.request
import zlib
from pathlib import Path

import grpc
import numpy as np
import pytest
import small_servers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

from sigline.serving.client import Client
from sigline.serving.protocol import tensors

PREDICT = "/tensorflow.serving.PredictionService/Predict"


@pytest.fixture(scope="module")
def stub(server):
    options = [("grpc.max_send_message_length", -1)]
    return prediction_service_pb2_grpc.PredictionServiceStub(
        grpc.insecure_channel(server.address, options=options)
    )


def _request(signature, **inputs):
    request = predict_pb2.PredictRequest()
    request.model_spec.name, request.model_spec.signature_name = "sigline", signature
    for name, values in inputs.items():
        tensors.fill(request.inputs[name], np.array(values, object))
    return request


def _jpeg_bomb():
    """A JPEG of 631 bytes whose header claims 13,000 x 13,000 pixels."""
    import io

    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGB", (16, 16)).save(buffer, "JPEG")
    content = bytearray(buffer.getvalue())
    start = content.index(b"\xff\xc0") + 5
    content[start : start + 4] = (13_000).to_bytes(2, "big") * 2
    return bytes(content)


def _png_bomb():
    """A PNG that claims 12,000 x 12,000 pixels, with all of them inside."""

    def chunk(kind, data):
        check = zlib.crc32(kind + data).to_bytes(4, "big")
        return len(data).to_bytes(4, "big") + kind + data + check

    header = (12_000).to_bytes(4, "big") * 2 + b"\x08\x02\x00\x00\x00"
    rows = zlib.compress(b"\0" * (12_000 * (3 * 12_000 + 1)), 9)
    magic = b"\x89PNG\r\n\x1a\n"
    return magic + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@pytest.fixture(scope="module")
def image(scene_records):
    return scene_records[0].image


@pytest.fixture(scope="module", autouse=True)
def used_before(server, image):
    """Calls every signature once: TensorFlow optimizes the graph of each at its first call."""
    client = Client(server.address, timeout_seconds=120)
    client.embed_texts(["a"])
    client.embed_images([image])
    client.compare(image, ["a"])
    for signature in ("serving_default", "embed_image", "classify"):
        client.predict(signature, {"image_bytes": [image]})
    client.close()


def _lying(size):
    request = _request("embed_text", text=[b"a"])
    request.inputs["text"].tensor_shape.dim[0].size = size
    return request


def _numbers(signature, name, content=b"", dtype=1, sizes=(1,)):
    request = _request(signature)
    proto = request.inputs[name]
    proto.dtype, proto.tensor_content = dtype, content
    for size in sizes:
        proto.tensor_shape.dim.add(size=size)
    return request


def _cases(image):
    bad = grpc.StatusCode.INVALID_ARGUMENT
    return {
        "cut image": (_request("embed_image", image_bytes=[image[: len(image) // 2]]), bad),
        "no image": (_request("embed_image", image_bytes=[b""]), bad),
        "text for an image": (_request("embed_image", image_bytes=[b"hello"]), bad),
        "jpeg bomb": (_request("embed_image", image_bytes=[_jpeg_bomb()]), bad),
        "png bomb": (_request("embed_image", image_bytes=[_png_bomb()]), bad),
        "bomb among good ones": (
            _request("embed_image", image_bytes=[image, _jpeg_bomb(), image]),
            bad,
        ),
        "million texts": (_request("embed_text", text=[b"a"] * 10**6), bad),
        "long text": (_request("embed_text", text=[b"a" * 10**6]), bad),
        "hundred megabytes": (
            _request("embed_text", text=[b"a" * 100 * 2**20]),
            grpc.StatusCode.RESOURCE_EXHAUSTED,
        ),
        "nan for a text": (
            _numbers("embed_text", "text", np.array([np.nan], np.float32).tobytes()),
            bad,
        ),
        "shape that lies": (_lying(10**12), bad),
        "negative shape": (_lying(-1), bad),
        "overflowing shape": (
            _numbers("embed_text", "text", b"", 1, (2**40, 2**40, 2**40)),
            bad,
        ),
        "axes without end": (_numbers("embed_text", "text", b"", 7, (2**62,) * 20_000), bad),
        "inputs without end": (
            _request("embed_text", **{f"x{i}": [b"a"] for i in range(1000)}),
            bad,
        ),
        "content that does not fit": (_numbers("embed_text", "text", b"abc"), bad),
        "strings as content": (_numbers("embed_text", "text", b"abc", 7), bad),
        "unknown type": (_numbers("embed_text", "text", b"", 21), bad),
        "type that does not exist": (_numbers("embed_text", "text", b"", 4711), bad),
        "two axes": (_request("embed_text", text=[[b"a"]]), bad),
        "other signature": (_request("other", text=[b"a"]), grpc.StatusCode.FAILED_PRECONDITION),
        "no input": (_request("embed_text"), bad),
        "input too much": (_request("embed_text", text=[b"a"], more=[b"a"]), bad),
        "half of similarity": (_request("similarity", text=[b"a"]), bad),
    }


def _code(call):
    try:
        call()
    except grpc.RpcError as error:
        return error.code()
    return grpc.StatusCode.OK


def test_hostile_requests_get_their_status(stub, image):
    cases = _cases(image)
    stub.Predict(_request("embed_image", image_bytes=[image]))
    found = {name: _code(lambda r=request: stub.Predict(r)) for name, (request, _) in cases.items()}
    assert found == {name: code for name, (_, code) in cases.items()}


def test_inputs_that_nobody_asked_for_take_no_memory(stub):
    request = _request("embed_text")
    for number in range(200):
        proto = request.inputs[f"x{number}"]
        proto.dtype = 1
        proto.float_val.append(1.0)
        proto.tensor_shape.dim.add(size=4 * 2**20)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert _code(lambda: stub.Predict(request)) == grpc.StatusCode.INVALID_ARGUMENT
    # They claim 3 GiB.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 * 1024


@pytest.mark.parametrize(
    "texts", [[b"\xff\xfe"], [b"\0"], ["\U0001f600" * 500], ["\u202e\u0000abc"], [b""], []]
)
def test_strange_texts_are_answered(stub, texts):
    texts = [x.encode() if isinstance(x, str) else x for x in texts]
    request = _request("embed_text", text=texts)
    values = tensors.to_array(stub.Predict(request).outputs["embedding"])
    assert values.shape == (len(texts), 32)
    assert np.isfinite(values).all()


def test_memory_stays_within_bounds_under_bombs(stub, image):
    bombs = [_jpeg_bomb(), _png_bomb()]
    request = _request("embed_image_safe", image_bytes=[image, *bombs])
    stub.Predict(request)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(20):
        answer = stub.Predict(request)
        assert list(answer.outputs["valid"].bool_val) == [True, False, False]
    # One of them would take 500 MiB.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 * 1024


def test_others_are_answered_meanwhile(server, stub, image):
    expected = Client(server.address).embed_texts(["a red ring"])
    stop, failures = threading.Event(), []

    def attack():
        for request, _ in _cases(image).values():
            if stop.is_set():
                return
            _code(lambda r=request: stub.Predict(r))
        stop.set()

    attackers = [threading.Thread(target=attack) for _ in range(2)]
    for thread in attackers:
        thread.start()
    count = 0
    client = Client(server.address)
    while not stop.is_set():
        found = client.embed_texts(["a red ring"])
        failures += [found] if not np.allclose(found, expected, atol=1e-5) else []
        count += 1
    for thread in attackers:
        thread.join()
    assert count > 10
    assert not failures


def test_bytes_that_are_no_message_are_refused(server):
    channel = grpc.insecure_channel(server.address)
    call = channel.unary_unary(PREDICT)
    for content in (b"\xff" * 100, b"\x0a\xff\xff\xff\xff\x0f", os.urandom(1000)):
        code = _code(lambda c=content: call(c, timeout=60))
        # gRPC's own word for what cannot be read.
        assert code in (grpc.StatusCode.INTERNAL, grpc.StatusCode.INVALID_ARGUMENT)


@pytest.mark.parametrize(
    "content",
    [b"GET / HTTP/1.1\r\n\r\n", b"\0" * 10_000, b"POST /v1/models/sigline:predict HTTP/1.1\r\n"],
)
def test_other_protocols_and_half_requests_harm_nobody(server, content):
    for port in (server.port, server.rest_port):
        with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
            connection.sendall(content)
    assert Client(server.address).embed_texts(["a"]).shape == (1, 32)


def _post(server, body):
    url = f"http://127.0.0.1:{server.rest_port}/v1/models/sigline:predict"
    try:
        with urllib.request.urlopen(urllib.request.Request(url, body), timeout=60) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(
        st.sampled_from(["b64", "text", "image_bytes"]) | st.text(max_size=5), inner, max_size=3
    ),
    max_leaves=12,
)
FUZZED = settings(
    max_examples=200,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@FUZZED
@given(
    st.fixed_dictionaries(
        {},
        optional={
            "instances": JSON,
            "inputs": JSON,
            "signature_name": st.sampled_from(
                ["embed_text", "embed_image_safe", "similarity", "classify"]
            )
            | JSON,
        },
    )
)
def test_any_json_is_answered_or_refused_in_one_line(server, content):
    status, answer = _post(server, json.dumps(content).encode())
    assert status in (200, 400), answer
    found = json.loads(answer)
    assert status == 200 or ("\n" not in found["error"] and found["error"])


@FUZZED
@given(st.binary(max_size=300))
def test_any_bytes_are_refused_over_rest(server, content):
    status, answer = _post(server, content)
    assert status in (200, 400), answer


@FUZZED
@given(
    dtype=st.integers(-5, 130),
    shape=st.lists(st.integers(-(2**62), 2**62), max_size=4)
    | st.lists(st.integers(0, 3), max_size=3),
    content=st.binary(max_size=40),
    strings=st.lists(st.binary(max_size=10), max_size=4),
    numbers=st.lists(st.floats(width=32), max_size=4),
    integers=st.lists(st.integers(-(2**31), 2**31 - 1), max_size=4),
    unknown_rank=st.booleans(),
)
def test_any_tensor_is_read_as_tensorflow_does_or_refused(
    dtype, shape, content, strings, numbers, integers, unknown_rank
):
    import tensorflow as tf
    from tensorflow.core.framework import tensor_pb2

    proto = tensor_pb2.TensorProto(tensor_content=content, string_val=strings)
    proto.dtype = dtype  # An open enumeration: any number is taken.
    proto.float_val.extend(numbers)
    proto.int_val.extend(integers)
    for size in shape:
        proto.tensor_shape.dim.add(size=size)
    proto.tensor_shape.unknown_rank = unknown_rank
    try:
        found = tensors.to_array(proto, max_bytes=2**20, max_strings=10)
    except ValueError:
        return
    assert found.nbytes <= 2**20
    expected = tf.make_ndarray(proto)
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype
    if found.dtype == object:
        assert found.tolist() == expected.tolist()
    else:
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    "array",
    [
        np.float32([[1.5, np.nan], [np.inf, -0.0]]),
        np.float32(3.0),
        np.zeros((0, 3), np.float32),
        np.array([1, -(2**31)], np.int32),
        np.array([2**62], np.int64),
        np.array([True, False]),
        np.array([1e300]),
        np.array([[b"a", b"\0\xff"]], object),
        np.array(["\u00e4", ""]),
        np.array([200], np.uint8),
    ],
)
def test_tensor_that_is_written_is_what_tensorflow_reads(array):
    import tensorflow as tf
    from tensorflow.core.framework import tensor_pb2

    proto = tensor_pb2.TensorProto()
    tensors.fill(proto, array)
    expected = tf.make_ndarray(proto)
    found = tensors.to_array(proto)
    np.testing.assert_array_equal(found, expected)
    if array.dtype.kind not in "OU":
        np.testing.assert_array_equal(found, array)
        assert found.dtype == array.dtype


def test_array_of_another_type_is_refused():
    from tensorflow.core.framework import tensor_pb2

    with pytest.raises(TypeError, match="Received: dtype=complex64"):
        tensors.fill(tensor_pb2.TensorProto(), np.zeros(3, np.complex64))


def test_text_that_fails_the_model_costs_its_batch_mates_nothing(tmp_path):
    from sigline.serving.server.batching import BatchingConfig

    base = Path(tmp_path) / "versions"
    small_servers.write_version(base, 1, fails_on="13")
    batching = BatchingConfig(num_batch_threads=1, batch_timeout_seconds=0.05)
    with small_servers.running(base, batching=batching) as server:
        results = {}

        def ask(number):
            client = Client(server.address)
            try:
                results[number] = client.embed_texts([str(number)]).tolist()
            except Exception as error:
                results[number] = getattr(error, "code", repr(error))

        threads = [threading.Thread(target=ask, args=(i,)) for i in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert results.pop(13) == "INVALID_ARGUMENT"
    assert results == {i: [[1.0, float(i)]] for i in range(20) if i != 13}


def test_number_that_stands_for_gigabytes_is_refused():
    from tensorflow.core.framework import tensor_pb2

    proto = tensor_pb2.TensorProto(dtype=1, float_val=[1.0])
    proto.tensor_shape.dim.add(size=10**10)
    with pytest.raises(ValueError, match=r"may have 1024 bytes\. Received: 40000000000"):
        tensors.to_array(proto, max_bytes=1024)
