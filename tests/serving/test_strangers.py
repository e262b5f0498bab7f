"""Clients that begin something and never end it: they cost a keyed or honest client nothing."""

import asyncio
import contextlib
import json
import logging
import resource
import socket
import threading
import time
import urllib.request

import grpc
import pytest
import small_servers
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tensorflow_serving.apis import predict_pb2

from sigline.serving.bounded_log import BoundedLog
from sigline.serving.client import Client

KEY = "a-key-that-is-long-enough"
PREDICT = "/tensorflow.serving.PredictionService/Predict"
CHECK = "/grpc.health.v1.Health/Check"
REFLECT = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"
SECONDS = 1.0


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("strangers") / "model"
    folder.mkdir()
    small_servers.write_version(folder, 1)
    return folder


@pytest.fixture(scope="module", autouse=True)
def descriptors():
    """Both ends of all connections are in this process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 8192), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@contextlib.contextmanager
def _half_open(address, methods, count, channels=10):
    """Opens calls that never send their message, and holds them."""
    loop, ready, done = asyncio.new_event_loop(), threading.Event(), threading.Event()

    async def _hold():
        opened = [
            grpc.aio.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)])
            for _ in range(channels)
        ]
        calls = []
        for number in range(count):
            channel, method = opened[number % channels], methods[number % len(methods)]
            begin = channel.stream_stream if method == REFLECT else channel.stream_unary
            calls.append(begin(method)())
        for call in calls:
            with contextlib.suppress(grpc.RpcError, asyncio.CancelledError):
                await call.wait_for_connection()
        ready.set()
        while not done.is_set():
            await asyncio.sleep(0.05)
        for call in calls:
            call.cancel()
        for channel in opened:
            await channel.close()

    thread = threading.Thread(target=lambda: loop.run_until_complete(_hold()))
    thread.start()
    assert ready.wait(60)
    try:
        yield
    finally:
        done.set()
        thread.join()
        loop.close()


def _timed(work):
    begin = time.monotonic()
    found = work()
    return found, time.monotonic() - begin


@pytest.mark.parametrize("keys", [(KEY,), ()])
def test_calls_that_send_no_message_lock_nobody_out(base, keys):
    methods = [CHECK, PREDICT, REFLECT]
    with small_servers.running(base, api_keys=keys) as server:
        client = Client(server.address, api_key=KEY if keys else None)
        client.embed_texts(["1"])
        with _half_open(server.address, methods, 1000):
            for _ in range(5):
                found, seconds = _timed(lambda: client.embed_texts(["7"]))
                assert found.tolist() == [[1.0, 7.0]]
                assert seconds < SECONDS
            with grpc.insecure_channel(server.address) as channel:
                stub = health_pb2_grpc.HealthStub(channel)
                answer, seconds = _timed(lambda: stub.Check(health_pb2.HealthCheckRequest()))
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
            assert seconds < SECONDS
        client.close()


def test_call_that_sends_no_message_ends_in_time(base, monkeypatch):
    monkeypatch.setattr("sigline.serving.grpc_server._OPEN_SECONDS", 0.5)
    with (
        small_servers.running(base) as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        never, done = threading.Event(), threading.Event()

        def _nothing():
            never.wait(30)
            yield b""

        call = channel.stream_unary(CHECK).future(_nothing())
        call.add_done_callback(lambda _: done.set())
        assert done.wait(10)
        assert call.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        never.set()


@contextlib.contextmanager
def _sockets(port, count, content):
    opened = []
    try:
        for _ in range(count):
            one = socket.create_connection(("127.0.0.1", port), timeout=10)
            opened.append(one)
            with contextlib.suppress(OSError):
                one.sendall(content)
        yield opened
    finally:
        for one in opened:
            one.close()


def _ask(server):
    body = json.dumps({"instances": ["7"]}).encode()
    url = f"http://127.0.0.1:{server.rest_port}/v1/models/sigline:predict"
    with urllib.request.urlopen(urllib.request.Request(url, body), timeout=30) as answer:
        return json.load(answer)


def _is_closed(one):
    one.settimeout(10)
    try:
        return one.recv(100) == b""
    except ConnectionError:
        return True


def test_headers_that_are_sent_in_part_take_no_connection_for_long(base):
    settings = {"max_connections": 100, "header_seconds": 2.0}
    with small_servers.running(base, **settings) as server:
        part = b"POST /v1/models/sigline:predict HTTP/1.1\r\nHost: localhost\r\n"
        with _sockets(server.rest_port, 300, part) as opened:
            found, seconds = _timed(lambda: _ask(server))
            assert found == {"predictions": [[1.0, 7.0]]}
            assert seconds < SECONDS
            client = Client(server.address)
            assert client.embed_texts(["7"]).tolist() == [[1.0, 7.0]]
            client.close()
            begin = time.monotonic()
            assert all(map(_is_closed, opened))
            assert time.monotonic() - begin < 2.0 + 8.0


def test_connection_is_kept_for_the_next_request_and_closed_when_none_comes(base):
    with small_servers.running(base, header_seconds=0.5) as server:
        request = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
        with _sockets(server.rest_port, 1, b"") as (one,):
            for _ in range(3):
                one.sendall(request)
                assert b"200 OK" in one.recv(1000)
                # Longer than headers may take: nothing has begun.
                time.sleep(0.7)
            one.sendall(request[:20])
            begin = time.monotonic()
            assert _is_closed(one)
            assert time.monotonic() - begin < 5


def test_bodies_that_are_sent_in_part_keep_nobody_out(base):
    part = (
        b"POST /v1/models/sigline:predict HTTP/1.1\r\nHost: localhost\r\n"
        b"Content-Length: 1000\r\n\r\n{"
    )
    with (
        small_servers.running(base) as server,
        _sockets(server.rest_port, 300, part),
    ):
        for _ in range(3):
            found, seconds = _timed(lambda: _ask(server))
            assert found == {"predictions": [[1.0, 7.0]]}
            assert seconds < SECONDS


@pytest.mark.parametrize(
    "body",
    [
        b'{"instances":[' + b"[]," * 5_000_000 + b"[]]}",
        b'{"instances":[' + b"1," * 7_000_000 + b"1]}",
        b'{"instances":' + b"[" * 1_000_000 + b"]" * 1_000_000 + b"}",
    ],
    ids=["lists", "numbers", "nested"],
)
def test_body_of_many_values_stalls_nobody(base, body):
    url = "http://127.0.0.1:{}/v1/models/sigline:predict"
    with small_servers.running(base) as server:
        codes = []

        def _send():
            request = urllib.request.Request(url.format(server.rest_port), body)
            try:
                with urllib.request.urlopen(request, timeout=30) as answer:
                    codes.append(answer.status)
            except urllib.error.HTTPError as error:
                codes.append(error.code)

        senders = [threading.Thread(target=_send) for _ in range(3)]
        for sender in senders:
            sender.start()
        longest = 0.0
        while any(sender.is_alive() for sender in senders):
            longest = max(longest, _timed(lambda: _ask(server))[1])
        assert codes == [400] * 3
        assert longest < SECONDS


def test_name_that_a_client_makes_up_is_logged_in_part(base, caplog):
    with (
        small_servers.running(base, log_requests=True) as server,
        caplog.at_level(logging.INFO, "sigline.serving"),
        grpc.insecure_channel(server.address) as channel,
    ):
        request = predict_pb2.PredictRequest()
        request.model_spec.name = "n" * 2**20
        ask = channel.unary_unary(PREDICT)
        with pytest.raises(grpc.RpcError) as caught:
            ask(request.SerializeToString())
        assert caught.value.code() == grpc.StatusCode.NOT_FOUND
        logged = [r.fields for r in caplog.records if r.getMessage() == "request"]
        assert max(len(str(fields)) for fields in logged) < 2000


def test_wrong_keys_are_counted_and_logged(base, caplog):
    with (
        small_servers.running(base, api_keys=(KEY,)) as server,
        caplog.at_level(logging.INFO, "sigline.serving"),
        grpc.insecure_channel(server.address) as channel,
    ):
        ask = channel.unary_unary(PREDICT)
        for _ in range(2):
            with pytest.raises(grpc.RpcError) as caught:
                ask(b"", metadata=[("x-api-key", "another")])
            assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED
        with pytest.raises(urllib.error.HTTPError, match="401"):
            _ask(server)
        text = server.metrics.text().decode()
        assert 'sigline_refused_total{entrypoint="GRPC"} 2.0' in text
        assert 'sigline_refused_total{entrypoint="REST"} 1.0' in text
        assert len([r for r in caplog.records if r.getMessage() == "refused"]) == 3


def test_lines_of_one_kind_are_bounded_a_second():
    bounded, now = BoundedLog(lines=3), 1000.0

    def _record(message, created):
        found = logging.LogRecord("sigline", logging.INFO, "", 0, message, None, None)
        found.created = created
        return found

    passed = [bounded.filter(_record("refused", now)) for _ in range(10)]
    assert passed == [True] * 3 + [False] * 7
    assert bounded.filter(_record("another", now))
    later = _record("refused", now + 1)
    assert bounded.filter(later)
    assert later.fields == {"left_out": 7}
    again = _record("refused", now + 1)
    assert bounded.filter(again)
    assert not hasattr(again, "fields")
