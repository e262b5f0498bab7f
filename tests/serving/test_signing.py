import shutil

import pytest
import small_servers
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa

from sigline.components.publish import publishing, signing
from sigline.schemas import versions
from sigline.serving.client import Client
from sigline.serving.signing import Verifier


def _key(folder, name, key=None):
    """Makes a pair of keys, as openssl writes them."""
    key = key or ed25519.Ed25519PrivateKey.generate()
    private, public = folder / f"{name}.pem", folder / f"{name}.pub"
    private.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    public.write_bytes(
        key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    )
    return private, public


@pytest.fixture
def keys(tmp_path):
    return _key(tmp_path, "ours")


@pytest.fixture
def signed(tmp_path, keys):
    """A folder with a signed version."""
    path = small_servers.write_version(tmp_path / "plain", 1)
    for name in (versions.MANIFEST, versions.SIGNATURE):
        (path / name).unlink(missing_ok=True)
    base = tmp_path / "signed"
    publishing.publish(path, base, sign=signing.signer(keys[0]))
    return base


def test_signed_version_is_served(signed, keys):
    with small_servers.running(signed, verify_key=keys[1]) as server:
        assert Client(server.address).predict("embed_text", {"text": ["7"]})


def test_key_beside_others_is_enough(signed, keys, tmp_path):
    both = tmp_path / "both.pub"
    both.write_bytes(_key(tmp_path, "other")[1].read_bytes() + keys[1].read_bytes())
    Verifier(both).check(signed / "1")
    with pytest.raises(ValueError, match="by a key that is trusted"):
        Verifier(tmp_path / "other.pub").check(signed / "1")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("unsigned", "must be signed; it has no sigline_manifest.sig"),
        ("no manifest", "must be signed; it has no sigline_manifest.json"),
        ("foreign", "signed by a key that is trusted"),
        ("nonsense", "signed by a key that is trusted"),
        ("file", "does not match its manifest"),
        ("manifest", "signed by a key that is trusted"),
    ],
)
def test_what_nobody_trusted_has_signed_is_not_served(signed, keys, tmp_path, change, message):
    version = signed / "1"
    signature, manifest = version / versions.SIGNATURE, version / versions.MANIFEST
    if change == "unsigned":
        signature.unlink()
    elif change == "no manifest":
        manifest.unlink()
    elif change == "foreign":
        sign = signing.signer(_key(tmp_path, "other")[0])
        signature.write_bytes(sign(manifest.read_bytes()))
    elif change == "nonsense":
        signature.write_bytes(b"\xff not base64")
    elif change == "file":
        (version / "saved_model.pb").write_bytes(b"another model")
    else:
        # As one does who may write to the folder: another model with a manifest of its own.
        (version / "saved_model.pb").write_bytes(b"another model")
        manifest.write_text(versions.manifest(versions.content(version)))
    with (
        pytest.raises(ValueError, match=message),
        small_servers.running(signed, verify_key=keys[1]),
    ):
        pass


def test_only_what_this_key_signed_counts_as_published(tmp_path, keys, signed):
    sign = signing.signer(keys[0])
    model = tmp_path / "model"
    shutil.copytree(signed / "1", model)
    assert publishing.publish(model, signed, sign=sign).version == 1
    # Somebody adds warm-up requests, and a manifest that names them.
    warm_up = signed / "1" / "assets.extra" / "tf_serving_warmup_requests"
    warm_up.parent.mkdir(exist_ok=True)
    warm_up.write_bytes(b"planted")
    manifest = versions.manifest(versions.content(signed / "1"))
    (signed / "1" / versions.MANIFEST).write_text(manifest)
    again = publishing.publish(model, signed, sign=sign)
    assert (again.version, again.copied) == (2, True)
    Verifier(keys[1]).check(signed / "2")
    with pytest.raises(ValueError, match="signed by a key that is trusted"):
        Verifier(keys[1]).check(signed / "1")
    assert not (signed / "2" / "assets.extra").exists()


def test_swap_to_an_unsigned_version_does_not_happen(signed, keys):
    with small_servers.running(signed, verify_key=keys[1], poll_seconds=0.1) as server:
        shutil.copytree(signed / "1", signed / ".tmp-2")
        (signed / ".tmp-2" / versions.SIGNATURE).unlink()
        (signed / ".tmp-2").rename(signed / "2")
        server.models.look()
        answer = Client(server.address).ask("embed_text", {"text": ["7"]})
        assert answer.version == 1
        (status,) = server.models.statuses("sigline", 2)
        assert "must be signed" in status.error


@pytest.mark.parametrize("content", [b"", b"nonsense", None])
def test_files_that_are_no_keys_are_refused(tmp_path, keys, content):
    path = tmp_path / "key"
    path.write_bytes(keys[0].read_bytes() if content is None else content)
    with pytest.raises(ValueError, match="verify_key must"):
        Verifier(path)
    path.write_bytes(keys[1].read_bytes() if content is None else content)
    with pytest.raises(ValueError, match="signing_key must"):
        signing.signer(path)


def test_keys_of_another_kind_are_refused(tmp_path):
    private, public = _key(tmp_path, "rsa", rsa.generate_private_key(65537, 2048))
    with pytest.raises(ValueError, match="must be an Ed25519 key"):
        signing.signer(private)
    with pytest.raises(ValueError, match="must hold Ed25519 public keys"):
        Verifier(public)
