import ssl
import threading
import urllib.error
import urllib.request

import grpc
import pytest
import small_servers
import trustme
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tensorflow_serving.apis import get_model_status_pb2, model_service_pb2_grpc

from sigline.serving.server import access

KEY = "a key that nobody guesses"


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("access") / "versions"
    small_servers.write_version(folder, 1)
    return folder


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    """PEM files of an authority, a server and a client."""
    folder, authority = tmp_path_factory.mktemp("certificates"), trustme.CA()
    authority.cert_pem.write_to_path(folder / "ca.pem")
    for name, identity in (("server", "localhost"), ("client", "client@example.org")):
        issued = authority.issue_cert(identity)
        issued.private_key_pem.write_to_path(folder / f"{name}.key")
        for number, pem in enumerate(issued.cert_chain_pems):
            pem.write_to_path(folder / f"{name}.pem", append=number > 0)
    return folder


def _status(channel, metadata=()):
    request = get_model_status_pb2.GetModelStatusRequest()
    request.model_spec.name = "sigline"
    stub = model_service_pb2_grpc.ModelServiceStub(channel)
    return stub.GetModelStatus(request, metadata=metadata, timeout=60).model_version_status


def _get(server, path="/v1/models/sigline", headers=None, context=None):
    scheme = "http" if context is None else "https"
    request = urllib.request.Request(
        f"{scheme}://localhost:{server.rest_port}{path}", headers=headers or {}
    )
    try:
        with urllib.request.urlopen(request, timeout=60, context=context) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


@pytest.mark.parametrize(
    ("metadata", "known"),
    [
        ((("authorization", f"Bearer {KEY}"),), True),
        ((("authorization", f"bearer {KEY}"),), True),
        ((("x-api-key", KEY),), True),
        ((("x-api-key", "another key that is long"),), False),
        ((("authorization", KEY),), False),
        ((("authorization", "Bearer "),), False),
        ((), False),
    ],
)
def test_requests_need_a_key(base, metadata, known):
    with small_servers.running(base, api_keys=("the first key of two", KEY)) as server:
        channel = grpc.insecure_channel(server.address)
        assert _get(server, headers=dict(metadata)) == (200 if known else 401)
        assert _get(server, "/readyz") == 200
        assert _get(server, "/monitoring/prometheus/metrics") == 401
        probe = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
        assert probe.status == health_pb2.HealthCheckResponse.SERVING
        if known:
            assert len(_status(channel, metadata)) == 1
            return
        with pytest.raises(grpc.RpcError, match="An API key is needed") as caught:
            _status(channel, metadata)
        assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED


def _credentials(certificates, *, client=False):
    root = (certificates / "ca.pem").read_bytes()
    if not client:
        return grpc.ssl_channel_credentials(root)
    key, chain = ((certificates / f"client.{x}").read_bytes() for x in ("key", "pem"))
    return grpc.ssl_channel_credentials(root, key, chain)


def test_certificate_is_shown_and_plain_text_refused(base, certificates):
    tls = access.Tls(certificates / "server.pem", certificates / "server.key")
    with small_servers.running(base, tls=tls) as server:
        address = f"localhost:{server.port}"
        secure = grpc.secure_channel(address, _credentials(certificates))
        assert len(_status(secure)) == 1
        with pytest.raises(grpc.RpcError, match="UNAVAILABLE"):
            _status(grpc.insecure_channel(address))
        trusted = ssl.create_default_context(cafile=str(certificates / "ca.pem"))
        assert _get(server, context=trusted) == 200
        with pytest.raises(urllib.error.URLError, match="CERTIFICATE_VERIFY_FAILED"):
            _get(server, context=ssl.create_default_context())


def test_clients_must_show_a_certificate_where_that_is_asked(base, certificates):
    tls = access.Tls(
        certificates / "server.pem", certificates / "server.key", certificates / "ca.pem"
    )
    with small_servers.running(base, tls=tls) as server:
        address = f"localhost:{server.port}"
        known = grpc.secure_channel(address, _credentials(certificates, client=True))
        assert len(_status(known)) == 1
        with pytest.raises(grpc.RpcError, match="UNAVAILABLE"):
            _status(grpc.secure_channel(address, _credentials(certificates)))
        context = ssl.create_default_context(cafile=str(certificates / "ca.pem"))
        with pytest.raises((urllib.error.URLError, OSError)):
            _get(server, context=context)
        context.load_cert_chain(certificates / "client.pem", certificates / "client.key")
        assert _get(server, context=context) == 200


def test_keys_are_read_one_a_line(tmp_path):
    path = tmp_path / "keys"
    path.write_text(f"# of the web shop\n{KEY}\n\n  {KEY * 2}  \n")
    assert access.read_keys(path) == (KEY, KEY * 2)
    for content in ("", "# none\n", "short\n", "schlüssel-der-lang-genug-ist\n"):
        path.write_text(content)
        with pytest.raises(ValueError, match="an API key a line, of at least 16 ASCII"):
            access.read_keys(path)


def test_certificate_without_its_key_is_refused(capsys):
    from sigline import cli

    assert cli.main(["serve", "--base-path", "x", "--tls-certificate", "y"]) == 2
    assert "--tls-certificate and --tls-key must be given together" in capsys.readouterr().err


def test_strangers_that_send_nothing_keep_nobody_out(base):
    from sigline.serving.server.requests import Limits

    limits, never = Limits(max_requests=1), threading.Event()
    with (
        small_servers.running(base, api_keys=(KEY,), limits=limits) as server,
        grpc.insecure_channel(server.address) as stranger,
        grpc.insecure_channel(server.address) as channel,
    ):

        def silence():
            never.wait()
            yield from ()

        call = stranger.stream_unary("/tensorflow.serving.ModelService/GetModelStatus")
        # More than there are threads, all of which would wait for a message.
        calls = [call.future(silence()) for _ in range(50)]
        try:
            codes = {found.exception().code() for found in calls}
            assert codes == {grpc.StatusCode.UNAUTHENTICATED}
            assert len(_status(channel, (("x-api-key", KEY),))) == 1
        finally:
            never.set()


def test_certificate_that_is_none_is_not_taken_for_a_port(base, tmp_path):
    (tmp_path / "x.pem").write_text("nothing")
    tls = access.Tls(tmp_path / "x.pem", tmp_path / "x.pem")
    with pytest.raises(OSError, match="PEM"), small_servers.running(base, tls=tls):
        pass
