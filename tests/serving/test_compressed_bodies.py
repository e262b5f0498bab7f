"""Compressed request bodies at a server: bounded, after access, and never the server's failure."""

import gzip
import http.client
import json
import logging
import threading
import urllib.error
import urllib.request
import zlib

import grpc
import numpy as np
import pytest
import small_servers
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

from sigline.serving.protocol import tensors
from sigline.serving.server.requests import Limits

KEY = "a key that nobody guesses"
PATH = "/v1/models/sigline:predict"
BODY = json.dumps({"instances": ["3"]}).encode()
MIB = 2**20


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compressed") / "versions"
    small_servers.write_version(folder, 1)
    return folder


@pytest.fixture(scope="module")
def numbers(base):
    with small_servers.running(base, limits=Limits(max_message_bytes=MIB)) as found:
        yield found


def _post(server, body, **headers):
    """Returns the status and the JSON of an answer."""
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    url = f"http://127.0.0.1:{server.rest_port}{PATH}"
    try:
        with urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=60) as got:
            return got.status, json.loads(got.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def _figures(server):
    url = f"http://127.0.0.1:{server.rest_port}/monitoring/prometheus/metrics"
    headers = {"x-api-key": KEY}
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers)) as answer:
        return answer.read().decode()


def _count(server, status):
    name = f':tensorflow:serving:request_count{{model_name="sigline",status="{status}"}} '
    lines = [line for line in _figures(server).splitlines() if line.startswith(name)]
    return float(lines[0].split()[-1]) if lines else 0.0


def _bomb(num_bytes):
    """Returns a gzip body of a thousandth of a size that it stands for; its end is left out."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    mebibyte = packer.compress(b" " * MIB) + packer.flush(zlib.Z_FULL_FLUSH)
    return gzip.compress(b"")[:10] + mebibyte * (num_bytes // MIB)


def _peak_bytes(work):
    """Returns by how much the process grew at most while it did something."""

    def field(name):
        with open("/proc/self/status") as lines:
            return next(1024 * int(x.split()[1]) for x in lines if x.startswith(name))

    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    before = field("VmRSS")
    work()
    return field("VmHWM") - before


def _raw_deflate(content):
    packer = zlib.compressobj(wbits=-15)
    return packer.compress(content) + packer.flush()


@pytest.mark.parametrize(
    ("body", "coding"),
    [
        (BODY, "identity"),
        (gzip.compress(BODY), "gzip"),
        (zlib.compress(BODY), "deflate"),
        (_raw_deflate(BODY), "deflate"),
        (gzip.compress(gzip.compress(BODY)), "gzip, gzip"),
    ],
    ids=["identity", "gzip", "zlib", "raw", "stacked"],
)
def test_compressed_request_is_answered(numbers, body, coding):
    assert _post(numbers, body, Content_Encoding=coding) == (200, {"predictions": [[1.0, 3.0]]})


@pytest.mark.parametrize(
    ("body", "coding", "status"),
    [
        (gzip.compress(BODY)[:-1], "gzip", 400),
        (BODY, "gzip", 400),
        (b"", "gzip", 400),
        (BODY, "deflate", 400),
        (BODY, "br", 415),
        (BODY, "zstd", 415),
        (BODY, "nonsense", 415),
        (gzip.compress(b" " * (MIB + 1)), "gzip", 413),
        (gzip.compress(_bomb(64 * MIB)), "gzip, gzip", 413),
    ],
    ids=lambda value: value if isinstance(value, str | int) else "",
)
def test_body_that_cannot_be_decoded_is_the_clients_failure(numbers, caplog, body, coding, status):
    with caplog.at_level(logging.WARNING):
        found, answer = _post(numbers, body, Content_Encoding=coding)
    assert found == status
    assert answer["error"]
    assert _count(numbers, "INTERNAL") == 0
    assert not caplog.records


def test_answer_names_the_codings_that_are_supported(numbers):
    connection = http.client.HTTPConnection("127.0.0.1", numbers.rest_port, timeout=60)
    connection.request("POST", PATH, BODY, {"Content-Encoding": "br"})
    assert connection.getresponse().headers["Accept-Encoding"] == "gzip, deflate"
    connection.close()


@pytest.mark.parametrize("stacked", [False, True])
def test_bomb_takes_no_more_memory_than_a_body_may(numbers, stacked):
    bomb = _bomb(2048 * MIB)
    body, coding = (gzip.compress(bomb), "gzip, gzip") if stacked else (bomb, "gzip")
    # The limit is on what is sent, too.
    body, status = body[:MIB], []
    peak = _peak_bytes(lambda: status.append(_post(numbers, body, Content_Encoding=coding)[0]))
    assert status == [413]
    assert peak < 64 * MIB


def test_probes_are_answered_while_bodies_are_decompressed(base):
    limits = Limits(max_message_bytes=256 * MIB)
    with small_servers.running(base, limits=limits) as server:
        statuses, begun = [], threading.Event()

        def send():
            begun.set()
            statuses.append(_post(server, _bomb(2048 * MIB), Content_Encoding="gzip")[0])

        sender = threading.Thread(target=send)
        sender.start()
        assert begun.wait(60)
        answered = 0
        while sender.is_alive():
            url = f"http://127.0.0.1:{server.rest_port}/healthz"
            with urllib.request.urlopen(url, timeout=60) as answer:
                assert answer.status == 200
            answered += 1
        sender.join()
    assert statuses == [413]
    assert answered > 3


def test_nothing_is_decompressed_without_a_key(base):
    with small_servers.running(base, api_keys=(KEY,)) as server:
        found = []
        peak = _peak_bytes(
            lambda: found.append(_post(server, _bomb(2048 * MIB), Content_Encoding="gzip"))
        )
        assert found[0][0] == 401
        assert peak < 64 * MIB
        headers = {"Content_Encoding": "gzip", "X_Api_Key": KEY}
        assert _post(server, gzip.compress(BODY), **headers)[0] == 200


def test_bodies_of_all_requests_are_bounded_together(base):
    limits = Limits(max_message_bytes=MIB, max_buffered_bytes=MIB)
    with small_servers.running(base, limits=limits) as server:
        with server._requests.buffered.reserve() as reservation:
            reservation.grow(MIB - 100)
            status, answer = _post(server, gzip.compress(b" " * 1000), Content_Encoding="gzip")
            assert (status, "send it again later" in answer["error"]) == (429, True)
            status, answer = _post(server, b" " * 1000)
            assert status == 429
        assert _post(server, BODY)[0] == 200
        assert server._requests.buffered.now == 0


def test_total_that_holds_no_message_is_refused():
    with pytest.raises(ValueError, match="max_buffered_bytes must be at least max_message_bytes"):
        Limits(max_message_bytes=2 * MIB, max_buffered_bytes=MIB)


@pytest.mark.parametrize("compression", [grpc.Compression.Gzip, grpc.Compression.Deflate])
def test_grpc_message_is_bounded_after_decompression(numbers, compression):
    stub = prediction_service_pb2_grpc.PredictionServiceStub(
        grpc.insecure_channel(
            f"127.0.0.1:{numbers.port}", options=[("grpc.max_send_message_length", -1)]
        )
    )
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "sigline"
    tensors.fill(request.inputs["text"], np.array(["3"]))
    answer = stub.Predict(request, compression=compression, timeout=60)
    assert list(answer.outputs["embedding"].float_val) == [1.0, 3.0]
    tensors.fill(request.inputs["text"], np.array([b" " * (8 * MIB)], object))
    with pytest.raises(grpc.RpcError) as caught:
        stub.Predict(request, compression=compression, timeout=60)
    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED


def _raw(server, *pieces):
    """Sends bytes as they are; returns the connection."""
    import socket

    connection = socket.create_connection(("127.0.0.1", server.rest_port), timeout=60)
    for piece in pieces:
        connection.sendall(piece)
    return connection


HEAD = b"POST " + PATH.encode() + b" HTTP/1.1\r\nHost: x\r\n"


@pytest.mark.parametrize("chunk", [b"zz\r\n", b"5\r\nabcdefgh\r\n", b"-1\r\n"])
def test_broken_chunks_are_the_clients_failure(numbers, caplog, chunk):
    with caplog.at_level(logging.WARNING):
        with _raw(numbers, HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + chunk) as connection:
            assert b" 400 " in connection.recv(100).partition(b"\r\n")[0]
        assert _count(numbers, "INTERNAL") == 0
    assert not caplog.records


def test_body_that_drips_ends_with_the_time_that_it_may_take(base):
    # No piece of it ever comes: how slowly does not matter.
    with small_servers.running(base, limits=Limits(timeout_seconds=0.3)) as server:
        head = HEAD + b"Content-Encoding: gzip\r\nContent-Length: 900\r\n\r\n"
        with _raw(server, head, gzip.compress(BODY)[:5]) as connection:
            assert b" 504 " in connection.recv(100).partition(b"\r\n")[0]
        assert server._requests.buffered.now == 0
