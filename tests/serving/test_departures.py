"""Clients that leave are counted as cancelled, cost no other its answer, and are not computed."""

import json
import logging
import socket
import threading
import urllib.request

import grpc
import held_servers
import numpy as np
import pytest
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

from sigline.serving.protocol import tensors

HEAD = b"POST /v1/models/m:predict HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"


@pytest.fixture
def server(caplog):
    caplog.set_level(logging.WARNING)
    with held_servers.HeldServer() as found:
        yield found


@pytest.fixture
def call(server):
    """Begins a call over gRPC."""
    with grpc.insecure_channel(server.address) as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)

        def begin(text, **options):
            request = predict_pb2.PredictRequest()
            request.model_spec.name = "m"
            tensors.fill(request.inputs["text"], np.array([text]))
            return stub.Predict.future(request, **options)

        yield begin


def _post(server, text, cut=None):
    """Sends a request over REST, or its beginning; returns the connection."""
    body = json.dumps({"instances": [text]}).encode()
    connection = socket.create_connection(("127.0.0.1", server.rest_port), timeout=60)
    connection.sendall(HEAD % len(body) + body[:cut])
    return connection


def _failures(server):
    return [
        x for x in server.metrics.text().decode().splitlines() if "sigline_failures_total{" in x
    ]


def test_client_that_leaves_while_it_sends_is_cancelled(server, caplog):
    _post(server, "1", cut=3).close()
    server.wait_until(lambda: server.codes)
    assert server.codes == ["CANCELLED"]
    assert not _failures(server)
    assert not caplog.records
    assert server.requests.buffered.now == 0


def test_clients_that_leave_a_batch_cost_no_other_and_are_not_computed(server, call, caplog):
    first = call("0")
    server.wait_until(lambda: server.computed)
    mates = [call("1"), call("2")]
    rest, gone = _post(server, "8"), call("9")
    server.wait_until(lambda: sum(server.served.waiting().values()) == 4)
    rest.close()
    gone.cancel()
    server.wait_until(lambda: len(server.codes) == 2)
    assert server.codes == ["CANCELLED", "CANCELLED"]
    server.go_on.set()
    answers = [list(x.result().outputs["number"].float_val) for x in (first, *mates)]
    assert answers == [[0], [1], [2]]
    server.wait_until(lambda: len(server.codes) == 5)
    assert sorted(server.codes[2:]) == ["OK", "OK", "OK"]
    assert sorted(server.computed) == [b"0", b"1", b"2"]
    assert not _failures(server)
    assert not caplog.records


def test_client_that_leaves_while_it_is_computed_is_cancelled(server, caplog):
    rest = _post(server, "1")
    server.wait_until(lambda: server.computed == [b"1"])
    rest.close()
    # The server has heard of it when it answers a later connection.
    with urllib.request.urlopen(f"http://127.0.0.1:{server.rest_port}/healthz", timeout=60) as got:
        assert got.status == 200
    server.go_on.set()
    server.wait_until(lambda: server.codes)
    assert server.codes == ["CANCELLED"]
    assert not _failures(server)
    assert not caplog.records


def test_grpc_client_that_leaves_while_it_is_computed_is_cancelled(server, call, caplog):
    gone, ended = call("2"), threading.Event()
    gone.add_done_callback(lambda _: ended.set())
    server.wait_until(lambda: server.computed)
    gone.cancel()
    assert ended.wait(60)
    # The server has heard of it when a later call on the same connection has come.
    later = call("3")
    server.wait_until(lambda: server.served.waiting())
    server.go_on.set()
    later.result()
    server.wait_until(lambda: len(server.codes) == 2)
    assert sorted(server.codes) == ["CANCELLED", "OK"]
    assert not _failures(server)
    assert not caplog.records


def test_request_whose_deadline_passes_is_late_not_cancelled(server, call):
    first = call("0")
    server.wait_until(lambda: server.computed)
    with pytest.raises(grpc.RpcError) as caught:
        call("1", timeout=0.2).result()
    assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    server.wait_until(lambda: server.codes)
    assert server.codes == ["DEADLINE_EXCEEDED"]
    server.go_on.set()
    first.result()


def test_place_of_a_client_that_left_is_free_when_its_computation_ends():
    with held_servers.HeldServer(max_requests=1) as server:
        _post(server, "1").close()
        server.go_on.set()
        server.wait_until(lambda: server.codes == ["CANCELLED"] or server.codes == ["OK"])
        connection = _post(server, "2")
        assert b" 200 " in connection.recv(100)
        connection.close()
