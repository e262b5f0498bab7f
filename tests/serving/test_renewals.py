"""Keys and certificates that are renewed, names and pages that may ask, probes under mTLS."""

import http.server
import json
import os
import socket
import ssl
import threading
import time
import urllib.error
import urllib.request

import pytest
import small_servers
import trustme

from sigline.serving.client import Client
from sigline.serving.client.transport import RequestError
from sigline.serving.server import access
from sigline.serving.server import server as serving_server
from sigline.serving.server.file_watch import FileWatch
from sigline.serving.server.hosts import Hosts

OLD, NEW = "the key of last year", "the key of this year"


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("renewals") / "versions"
    small_servers.write_version(folder, 1)
    return folder


def _until(holds, seconds=20.0):
    end = time.monotonic() + seconds
    while not holds() and time.monotonic() < end:
        time.sleep(0.05)
    assert holds()


def _answers(target, key=None, **more):
    client = Client(target, api_key=key, retries=0, **more)
    try:
        return client.embed_texts(["7"]).tolist() == [[1.0, 7.0]]
    except RequestError as error:
        if error.code != "UNAUTHENTICATED":
            raise
        return False
    finally:
        client.close()


def test_keys_are_read_again_when_their_file_changes(base, tmp_path):
    path = tmp_path / "keys.txt"
    path.write_text(OLD)
    with small_servers.running(base, api_key_file=path, poll_seconds=0.05) as server:
        targets = server.address, f"http://127.0.0.1:{server.rest_port}"
        assert all(_answers(target, OLD) for target in targets)
        path.write_text(f"{NEW}\n")
        for target in targets:
            _until(lambda target=target: _answers(target, NEW))
            assert not _answers(target, OLD)
        # A file that holds no key leaves those that are known.
        path.write_text("short\n")
        time.sleep(0.5)
        assert all(_answers(target, NEW) for target in targets)


def _issue(folder, authority):
    issued = authority.issue_cert("localhost")
    for name, pems in (
        ("server.key", [issued.private_key_pem]),
        ("server.pem", issued.cert_chain_pems),
    ):
        scratch = folder / f"{name}.new"
        for number, pem in enumerate(pems):
            pem.write_to_path(scratch, append=number > 0)
        os.replace(scratch, folder / name)


def _shown(port):
    """Returns the certificate that a server shows a new connection."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2", "http/1.1"])
    with (
        socket.create_connection(("127.0.0.1", port), timeout=60) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as secure,
    ):
        return secure.getpeercert(binary_form=True)


def test_certificates_are_read_again_when_their_files_change(base, tmp_path):
    authority = trustme.CA()
    _issue(tmp_path, authority)
    tls = access.Tls(tmp_path / "server.pem", tmp_path / "server.key")
    with small_servers.running(base, tls=tls, poll_seconds=0.05) as server:
        ports = server.port, server.rest_port
        before = {port: _shown(port) for port in ports}
        # A certificate without its key changes nothing.
        (tmp_path / "server.key").write_text("no key")
        time.sleep(0.5)
        assert {port: _shown(port) for port in ports} == before
        _issue(tmp_path, authority)
        expected = ssl.PEM_cert_to_DER_cert(
            (tmp_path / "server.pem").read_text().split("-----END CERTIFICATE-----")[0]
            + "-----END CERTIFICATE-----"
        )
        for port in ports:
            _until(lambda port=port: _shown(port) == expected)
            assert before[port] != expected


def test_file_that_cannot_be_read_is_told_once(tmp_path):
    path, failures = tmp_path / "file", ["damaged"]
    path.write_text("1")

    def _read():
        if failures:
            raise ValueError(failures.pop())

    watch = FileWatch([path], _read)
    assert watch.reload_if_changed() is False
    path.write_text("22")
    assert watch.reload_if_changed() == "damaged"
    assert watch.reload_if_changed() is False
    path.write_text("333")
    assert watch.reload_if_changed() is True
    path.unlink()
    assert watch.reload_if_changed() is True


def test_probes_need_no_certificate_on_their_own_port(base, tmp_path):
    authority = trustme.CA()
    _issue(tmp_path, authority)
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    tls = access.Tls(tmp_path / "server.pem", tmp_path / "server.key", tmp_path / "ca.pem")
    with small_servers.running(base, tls=tls, health_port=0) as server:
        url = f"http://127.0.0.1:{server.health_port}"
        for path in ("/healthz", "/readyz"):
            with urllib.request.urlopen(url + path, timeout=60) as answer:
                assert answer.status == 200
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(f"{url}/v1/models/sigline", timeout=60)
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(f"{url}/monitoring/prometheus/metrics", timeout=60)


def _status(server, headers, body=None):
    url = f"http://127.0.0.1:{server.rest_port}/v1/models/sigline"
    url += ":predict" if body else ""
    request = urllib.request.Request(url, body, headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


def test_pages_and_names_of_others_do_not_reach_a_server_without_keys(base):
    body = json.dumps({"instances": ["7"]}).encode()
    with small_servers.running(
        base, allow_origins=["https://good.example"], allow_hosts=["box.lan"]
    ) as server:
        # As a form of a page sends it, about which a browser does not ask before.
        plain = {"Content-Type": "text/plain"}
        assert _status(server, plain, body) == 200
        assert _status(server, plain | {"Origin": "https://evil.example"}, body) == 403
        assert _status(server, plain | {"Origin": "null"}, body) == 403
        assert _status(server, plain | {"Origin": "https://good.example"}, body) == 200
        own = f"http://127.0.0.1:{server.rest_port}"
        assert _status(server, plain | {"Origin": own}, body) == 200
        # DNS rebinding: the page's own name leads here, so that it comes from the host it asks.
        rebound = {"Host": "evil.example:80", "Origin": "http://evil.example:80"}
        assert _status(server, rebound, body) == 403
        assert _status(server, {"Host": "evil.example"}) == 403
        for host in ("localhost", "127.0.0.1:99", "[::1]:8501", "box.lan:8501", "a.localhost"):
            assert _status(server, {"Host": host}) == 200
    with small_servers.running(base, api_keys=(OLD,)) as server:
        key = {"x-api-key": OLD}
        assert _status(server, key | {"Host": "models.example"}) == 200


@pytest.mark.parametrize(
    ("listening", "allowed", "host", "expected"),
    [
        ("127.0.0.1", (), "evil.example", False),
        ("::1", (), "evil.example", False),
        ("localhost", (), "localhost.", True),
        ("127.0.0.1", (), None, True),
        ("127.0.0.1", (), "]", False),
        ("127.0.0.1", (), "model:8501", True),
        ("0.0.0.0", (), "model.default.svc", True),
        ("0.0.0.0", ("model.default.svc",), "model.default.svc:8501", True),
        ("0.0.0.0", ("model.default.svc",), "evil.example", False),
        ("0.0.0.0", ("model.default.svc",), "10.0.0.1", True),
    ],
)
def test_hosts_are_allowed_by_where_the_server_listens(listening, allowed, host, expected):
    assert Hosts(listening, allowed).allows(host) is expected


def test_client_follows_no_redirection_with_its_key():
    asked = []

    class _Away(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            asked.append(self.path)
            self.send_response(302)
            self.send_header("Location", f"http://localhost:{self.server.server_port}/elsewhere")
            self.end_headers()

        def do_GET(self):
            asked.append(self.headers.get("authorization"))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Away)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    client = Client(f"http://127.0.0.1:{server.server_port}", api_key=OLD, retries=0)
    with pytest.raises(RequestError, match=r"redirects to http://localhost.*does not follow"):
        client.embed_texts(["7"])
    server.shutdown()
    server.server_close()
    assert asked == ["/v1/models/sigline:predict"]


def test_probes_without_rest_are_refused(base):
    with pytest.raises(ValueError, match="health_port needs rest_port"):
        serving_server.ServerConfig(models=serving_server.one_model(base), health_port=0)
