"""Model configs change while clients ask: none of them is refused by what serves."""

import logging
import os
import shutil
import threading
import urllib.error
import urllib.request

import grpc
import pytest
import small_servers
from tensorflow_serving.apis import model_management_pb2, model_service_pb2_grpc

from sigline.serving.client import Client
from sigline.serving.server import model_config
from sigline.serving.server.model_config import ModelConfig


class _Events(logging.Handler):
    """What the server logs, to wait for."""

    def __init__(self):
        super().__init__()
        self._seen, self._changed = [], threading.Condition()

    def emit(self, record):
        with self._changed:
            self._seen.append((record.getMessage(), getattr(record, "fields", {})))
            self._changed.notify_all()

    def wait(self, event, **fields):
        """Returns the fields of an event when it has come, and forgets what came before it."""

        def find():
            for index, (name, about) in enumerate(self._seen):
                if name == event and fields.items() <= about.items():
                    del self._seen[: index + 1]
                    return about
            return None

        with self._changed:
            result = self._changed.wait_for(find, 60)
        assert result is not None, f"no {event} {fields}"
        return result


@pytest.fixture
def events():
    log, handler = logging.getLogger("sigline.serving"), _Events()
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    yield handler
    log.removeHandler(handler)
    log.setLevel(level)


class _Traffic:
    """Clients that ask a model all the time, over gRPC and REST."""

    def __init__(self, server):
        self.failures, self.versions, self._stop = [], [], threading.Event()
        self._answered = threading.Condition()
        targets = server.address, f"http://127.0.0.1:{server.rest_port}"
        self._threads = [threading.Thread(target=self._ask, args=(x,)) for x in targets]

    def _ask(self, target):
        client = Client(target, model_name="m", retries=0)
        while not self._stop.is_set():
            try:
                version = int(client.embed_texts(["5"])[0][0])
            except Exception as error:
                self.failures.append(repr(error))
                version = -1
            with self._answered:
                self.versions.append(version)
                self._answered.notify_all()

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def more(self):
        """Returns the versions that answered once each client has been answered again."""
        with self._answered:
            begin = len(self.versions)
            assert self._answered.wait_for(lambda: len(self.versions) >= begin + 6, 60)
            # The first ones may have been asked before.
            return set(self.versions[begin + 2 :])


def _ready(server):
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{server.rest_port}/readyz") as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


@pytest.fixture
def bases(tmp_path):
    for name, number in (("one", 1), ("two", 2)):
        small_servers.write_version(tmp_path / name, number)
    shutil.copytree(tmp_path / "two", tmp_path / "damaged")
    os.truncate(tmp_path / "damaged" / "2" / "saved_model.pb", 100)
    (tmp_path / "empty").mkdir()
    return tmp_path


def _write(path, *models):
    scratch = path.with_suffix(".tmp")
    scratch.write_text(model_config.to_text([ModelConfig(*model) for model in models]))
    scratch.replace(path)


def test_no_request_fails_while_the_config_file_changes(bases, events):
    path = bases / "models.config"
    _write(path, ("m", str(bases / "one")))
    settings = {"models": model_config.load(path), "model_config_file": path, "poll_seconds": 0.02}
    with small_servers.running(bases / "one", **settings) as server, _Traffic(server) as traffic:
        for name in ("away", "empty", "damaged"):
            _write(path, ("m", str(bases / name)))
            refused = events.wait("config_refused", path=str(path))
            assert str(bases / name) in refused["error"]
            assert traffic.more() == {1}
            assert _ready(server) == 200
        _write(path, ("m", str(bases / "one") + "/"))
        events.wait("config_loaded")
        assert traffic.more() == {1}
        path.write_text("nonsense")
        events.wait("config_refused")
        _write(path, ("m", str(bases / "one")), ("n", str(bases / "empty")))
        assert "empty of model n" in events.wait("config_refused")["error"]
        assert traffic.more() == {1}
        assert _ready(server) == 200
        _write(path, ("m", str(bases / "two") + "/."))
        events.wait("config_loaded")
        assert traffic.more() == {2}
        shutil.rmtree(bases / "two")
        events.wait("no_versions", model="m")
        assert traffic.more() == {2}
        _write(path, ("new", str(bases / "damaged")))
        events.wait("config_refused")
        assert traffic.more() == {2}
        assert not traffic.failures
        # From here on the config wants another name.
        _write(path, ("new", str(bases / "one")))
        events.wait("config_loaded")
        assert Client(server.address, model_name="new").embed_texts(["5"]).tolist() == [[1, 5]]
    # Over both, and with nothing but that the name is gone.
    assert all("NOT_FOUND" in failure for failure in traffic.failures)


def test_no_request_fails_while_clients_reload(bases):
    settings = {"models": (ModelConfig("m", str(bases / "one")),), "allow_reload": True}
    with (
        small_servers.running(bases / "one", poll_seconds=3600, **settings) as server,
        grpc.insecure_channel(server.address) as channel,
        _Traffic(server) as traffic,
    ):
        stub = model_service_pb2_grpc.ModelServiceStub(channel)

        def reload(name, **options):
            request = model_management_pb2.ReloadConfigRequest()
            request.config.CopyFrom(model_config.to_proto([ModelConfig("m", str(bases / name))]))
            stub.HandleReloadConfigRequest(request, **options)

        for name in ("away", "empty", "damaged"):
            with pytest.raises(grpc.RpcError, match=str(bases / name)) as caught:
                reload(name, timeout=60)
            assert caught.value.code() == grpc.StatusCode.FAILED_PRECONDITION
            assert traffic.more() == {1}
        reload("two", timeout=60)
        assert traffic.more() == {2}
        for _ in range(3):
            reload("one")
            reload("two")
        assert traffic.more() == {2}
    assert not traffic.failures


def test_reload_is_answered_with_the_reason_before_a_short_deadline(bases):
    settings = {"models": (ModelConfig("m", str(bases / "one")),), "allow_reload": True}
    with (
        small_servers.running(bases / "one", poll_seconds=3600, **settings) as server,
        grpc.insecure_channel(server.address) as channel,
        # The worker waits for this request to end before it takes up another config.
        server.models.lease("m"),
    ):
        stub = model_service_pb2_grpc.ModelServiceStub(channel)
        server.models.reload([ModelConfig("m", str(bases / "two"))])
        request = model_management_pb2.ReloadConfigRequest()
        request.config.CopyFrom(model_config.to_proto([ModelConfig("m", str(bases / "away"))]))
        with pytest.raises(grpc.RpcError, match="away of model m") as caught:
            stub.HandleReloadConfigRequest(request, timeout=2)
        assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
