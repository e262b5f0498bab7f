"""Clients that begin something and never end it: they cost a keyed or honest client nothing."""

import asyncio
import concurrent.futures
import contextlib
import json
import logging
import resource
import socket
import threading
import time
import urllib.error
import urllib.request

import grpc
import pytest
import small_servers
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tensorflow_serving.apis import predict_pb2

from sigline.serving.client import Client
from sigline.serving.server.bounded_log import BoundedLog

KEY = "a-key-that-is-long-enough"
PREDICT = "/tensorflow.serving.PredictionService/Predict"
CHECK = "/grpc.health.v1.Health/Check"
REFLECT = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"


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
    """Opens calls that never send their message, and holds them; tells how many are open."""
    loop, ready, done = asyncio.new_event_loop(), threading.Event(), threading.Event()
    calls = []

    async def _hold():
        opened = [
            grpc.aio.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)])
            for _ in range(channels)
        ]
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
        yield lambda: sum(not call.done() for call in calls)
    finally:
        done.set()
        thread.join()
        loop.close()


@pytest.mark.parametrize("keys", [(KEY,), ()])
def test_calls_that_send_no_message_lock_nobody_out(base, monkeypatch, keys):
    """What they cost in time is measured by `make soak`."""
    monkeypatch.setattr("sigline.serving.server.grpc_server._PROBE_SECONDS", 300.0)
    methods = [CHECK, PREDICT, REFLECT]
    with small_servers.running(base, api_keys=keys) as server:
        client = Client(server.address, api_key=KEY if keys else None)
        client.embed_texts(["1"])
        with _half_open(server.address, methods, 1000) as num_open:
            for _ in range(5):
                assert client.embed_texts(["7"]).tolist() == [[1.0, 7.0]]
            with grpc.insecure_channel(server.address) as channel:
                stub = health_pb2_grpc.HealthStub(channel)
                answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=60)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
            assert num_open() > 0
        client.close()


def test_call_that_sends_no_message_ends_in_time(base, monkeypatch):
    monkeypatch.setattr("sigline.serving.server.grpc_server._PROBE_SECONDS", 0.5)
    with (
        small_servers.running(base) as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        never, done = threading.Event(), threading.Event()

        def _nothing():
            never.wait(60)
            yield b""

        call = channel.stream_unary(CHECK).future(_nothing())
        call.add_done_callback(lambda _: done.set())
        assert done.wait(60)
        assert call.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        never.set()


def test_connections_of_grpc_are_bounded(base):
    with small_servers.running(base, max_connections=8) as server, contextlib.ExitStack() as held:
        options = [("grpc.use_local_subchannel_pool", 1)]
        channels = [
            held.enter_context(grpc.insecure_channel(server.address, options)) for _ in range(20)
        ]

        def _code(channel):
            stub = health_pb2_grpc.HealthStub(channel)
            try:
                stub.Check(health_pb2.HealthCheckRequest(), timeout=60)
            except grpc.RpcError as error:
                return error.code()
            return grpc.StatusCode.OK

        codes = [_code(channel) for channel in channels]
        assert codes.count(grpc.StatusCode.OK) == 8
        assert codes.count(grpc.StatusCode.UNAVAILABLE) == 12
        # Those that are let in go on, and HTTP has connections of its own.
        assert _code(channels[codes.index(grpc.StatusCode.OK)]) == grpc.StatusCode.OK
        assert _ask(server) == {"predictions": [[1.0, 7.0]]}
        for channel in channels:
            channel.close()
        with grpc.insecure_channel(server.address, options) as later:
            grpc.channel_ready_future(later).result(60)
            assert _code(later) == grpc.StatusCode.OK


@contextlib.contextmanager
def _sockets(port, count, content):
    opened = []
    try:
        for _ in range(count):
            one = socket.create_connection(("127.0.0.1", port), timeout=60)
            opened.append(one)
            with contextlib.suppress(OSError):
                one.sendall(content)
        yield opened
    finally:
        for one in opened:
            one.close()


def _ask(server, body=b'{"instances": ["7"]}'):
    url = f"http://127.0.0.1:{server.rest_port}/v1/models/sigline:predict"
    with urllib.request.urlopen(urllib.request.Request(url, body), timeout=60) as answer:
        return json.load(answer)


def _is_closed(one):
    one.settimeout(60)
    try:
        return one.recv(100) == b""
    except ConnectionError:
        return True


def test_headers_that_are_sent_in_part_lock_nobody_out(base):
    with small_servers.running(base, max_connections=100, header_seconds=300.0) as server:
        part = b"POST /v1/models/sigline:predict HTTP/1.1\r\nHost: localhost\r\n"
        with _sockets(server.rest_port, 300, part):
            assert _ask(server) == {"predictions": [[1.0, 7.0]]}
            client = Client(server.address)
            assert client.embed_texts(["7"]).tolist() == [[1.0, 7.0]]
            client.close()


def test_headers_that_are_sent_in_part_take_no_connection_for_long(base):
    with small_servers.running(base, header_seconds=0.5) as server:
        part = b"POST /v1/models/sigline:predict HTTP/1.1\r\nHost: localhost\r\n"
        with _sockets(server.rest_port, 20, part) as opened:
            assert all(map(_is_closed, opened))


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
            assert _is_closed(one)


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
            assert _ask(server) == {"predictions": [[1.0, 7.0]]}


@pytest.mark.parametrize(
    "body",
    [
        b'{"instances":[' + b"[]," * 5_000_000 + b"[]]}",
        b'{"instances":[' + b"1," * 7_000_000 + b"1]}",
        b'{"instances":' + b"[" * 1_000_000 + b"]" * 1_000_000 + b"}",
    ],
    ids=["lists", "numbers", "nested"],
)
def test_body_of_many_values_is_not_parsed(base, monkeypatch, body):
    sizes, parse = [], json.loads

    def _loads(content, *args, **kwargs):
        sizes.append(len(content))
        return parse(content, *args, **kwargs)

    monkeypatch.setattr("sigline.serving.server.rest_bodies.json.loads", _loads)
    with small_servers.running(base) as server:
        with pytest.raises(urllib.error.HTTPError, match="400") as caught:
            _ask(server, body)
        with caught.value as answer:
            assert "JSON may hold" in parse(answer.read())["error"]
        assert _ask(server) == {"predictions": [[1.0, 7.0]]}
    assert max(sizes) < 10_000


def test_body_that_is_parsed_stalls_nobody(base, monkeypatch):
    begun, go_on, parse = threading.Event(), threading.Event(), json.loads

    def _loads(content, *args, **kwargs):
        if len(content) > 1000:
            begun.set()
            assert go_on.wait(60)
        return parse(content, *args, **kwargs)

    monkeypatch.setattr("sigline.serving.server.rest_bodies.json.loads", _loads)
    body = json.dumps({"instances": ["7" * 2000]}).encode()
    with (
        small_servers.running(base) as server,
        concurrent.futures.ThreadPoolExecutor(1) as pool,
    ):
        slow = pool.submit(_ask, server, body)
        assert begun.wait(60)
        assert _ask(server) == {"predictions": [[1.0, 7.0]]}
        assert not slow.done()
        go_on.set()
        with contextlib.suppress(urllib.error.HTTPError):
            slow.result(60)


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
    bounded, now = BoundedLog(max_lines=3), 1000.0

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
