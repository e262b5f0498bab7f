import base64
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import signing_keys
import small_servers
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from sigline import cli
from sigline.components.publish import publishing
from sigline.schemas import digests, signing, versions
from sigline.serving.client import Client


@pytest.fixture(params=["Ed25519", "P-256"])
def keys(tmp_path, request):
    return signing_keys.write(tmp_path, "ours", request.param)


@pytest.fixture
def signature(keys):
    """Name of the signature's file."""
    return signing.Signer(keys[0]).file


@pytest.fixture
def signed(tmp_path, keys):
    """A folder with a signed version."""
    path = small_servers.write_version(tmp_path / "plain", 1)
    for name in (versions.MANIFEST, *versions.SIGNATURES):
        (path / name).unlink(missing_ok=True)
    base = tmp_path / "signed"
    publishing.publish(path, base, signer=signing.Signer(keys[0]))
    return base


def test_signed_version_is_served(signed, keys):
    with small_servers.running(signed, verify_key=keys[1]) as server:
        assert Client(server.address).predict("embed_text", {"text": ["7"]})


def test_key_beside_others_is_enough(signed, keys, tmp_path):
    both = tmp_path / "both.pub"
    both.write_bytes(signing_keys.write(tmp_path, "other")[1].read_bytes() + keys[1].read_bytes())
    signing.Verifier(both).check(signed / "1")
    with pytest.raises(ValueError, match="must be signed"):
        signing.Verifier(tmp_path / "other.pub").check(signed / "1")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("unsigned", r"must be signed; it has no (sigline_manifest\.sig|model\.sig)"),
        ("no manifest", "must be signed; it has no sigline_manifest.json"),
        ("foreign", "signed by a key that is trusted"),
        ("nonsense", "signed by a key that is trusted"),
        ("file", "does not match its manifest"),
        ("manifest", "signed by a key that is trusted"),
    ],
)
def test_what_nobody_trusted_has_signed_is_not_served(
    signed, keys, signature, tmp_path, change, message
):
    version = signed / "1"
    signature, manifest = version / signature, version / versions.MANIFEST
    if change == "unsigned":
        signature.unlink()
    elif change == "no manifest":
        manifest.unlink()
    elif change == "foreign":
        other = signing.Signer(signing_keys.write(tmp_path, "other", "P-256")[0])
        content = other.sign(version, manifest.read_text())
        signature.write_bytes(content)
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
    signer = signing.Signer(keys[0])
    model = tmp_path / "model"
    shutil.copytree(signed / "1", model)
    assert publishing.publish(model, signed, signer=signer).version == 1
    # Somebody adds warm-up requests, and a manifest that names them.
    warm_up = signed / "1" / "assets.extra" / "tf_serving_warmup_requests"
    warm_up.parent.mkdir(exist_ok=True)
    warm_up.write_bytes(b"planted")
    manifest = versions.manifest(versions.content(signed / "1"))
    (signed / "1" / versions.MANIFEST).write_text(manifest)
    again = publishing.publish(model, signed, signer=signer)
    assert (again.version, again.copied) == (2, True)
    signing.Verifier(keys[1]).check(signed / "2")
    with pytest.raises(ValueError, match="signed by a key that is trusted"):
        signing.Verifier(keys[1]).check(signed / "1")
    assert not (signed / "2" / "assets.extra").exists()


def test_swap_to_an_unsigned_version_does_not_happen(signed, keys, signature):
    with small_servers.running(signed, verify_key=keys[1], poll_seconds=0.1) as server:
        shutil.copytree(signed / "1", signed / ".tmp-2")
        (signed / ".tmp-2" / signature).unlink()
        (signed / ".tmp-2").rename(signed / "2")
        server.models.update()
        answer = Client(server.address).ask("embed_text", {"text": ["7"]})
        assert answer.version == 1
        (status,) = server.models.statuses("sigline", 2)
        assert "must be signed" in status.error


@pytest.mark.parametrize("content", [b"", b"nonsense", None])
def test_files_that_are_no_keys_are_refused(tmp_path, keys, content):
    path = tmp_path / "key"
    path.write_bytes(keys[0].read_bytes() if content is None else content)
    with pytest.raises(ValueError, match="verify_key must"):
        signing.Verifier(path)
    path.write_bytes(keys[1].read_bytes() if content is None else content)
    with pytest.raises(ValueError, match="signing_key must"):
        signing.Signer(path)


@pytest.mark.parametrize(
    "key",
    [
        rsa.generate_private_key(65537, 2048),
        ec.generate_private_key(ec.SECP256K1()),
    ],
)
def test_keys_of_another_kind_are_refused(tmp_path, key):
    private, public = signing_keys.write(tmp_path, "other", key)
    with pytest.raises(ValueError, match=r"signing_key must be Ed25519, or .* Received: "):
        signing.Signer(private)
    with pytest.raises(ValueError, match=r"verify_key must hold public keys, Ed25519, or "):
        signing.Verifier(public)


def _model_signing(*arguments):
    """Runs the command of the OpenSSF's package, as others do who check a version."""
    command = [Path(sys.executable).with_name("model_signing"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def elliptic(tmp_path_factory):
    """A version that is signed by a key of P-256, and the two keys."""
    folder = tmp_path_factory.mktemp("elliptic")
    private, public = signing_keys.write(folder, "ours", "P-256")
    path = small_servers.write_version(folder / "plain", 1)
    signer = signing.Signer(private)
    return publishing.publish(path, folder / "signed", signer=signer).path, private, public


def _checked_by_others(version, public):
    signature = version / versions.MODEL_SIGNATURE
    return _model_signing(
        *["verify", "key", version, "--signature", signature, "--public_key", public]
    )


@pytest.mark.parametrize("kind", ["P-256", "P-384", "P-521"])
def test_signed_version_is_verified_by_the_command_of_model_signing(tmp_path, kind):
    private, public = signing_keys.write(tmp_path, "ours", kind)
    path = small_servers.write_version(tmp_path / "plain", 1)
    version = publishing.publish(path, tmp_path / "signed", signer=signing.Signer(private)).path
    answer = _checked_by_others(version, public)
    assert answer.returncode == 0, answer.stderr
    assert "succeeded" in answer.stdout.lower()
    (version / "saved_model.pb").write_bytes(b"another model")
    answer = _checked_by_others(version, public)
    assert answer.returncode != 0
    assert "saved_model.pb" in answer.stdout + answer.stderr


def _by_model_signing(version, private, *options):
    signature = version / versions.MODEL_SIGNATURE
    signature.unlink()
    answer = _model_signing(
        *["sign", "key", version, "--signature", signature, "--private_key", private, *options]
    )
    assert answer.returncode == 0, answer.stderr


def test_version_that_the_command_of_model_signing_signed_is_trusted(elliptic, tmp_path):
    version, private, public = elliptic
    ours = tmp_path / "1"
    shutil.copytree(version, ours)
    _by_model_signing(ours, private)
    signing.Verifier(public).check(ours)
    assert cli.main(["verify", str(ours), "--verify-key", str(public)]) == 0


def test_signature_that_leaves_files_out_is_not_enough(elliptic, tmp_path):
    version, private, public = elliptic
    ours = tmp_path / "1"
    shutil.copytree(version, ours)
    _by_model_signing(ours, private, "--ignore-paths", ours / "saved_model.pb")
    with pytest.raises(ValueError, match=r"model\.sig leaves out saved_model\.pb"):
        signing.Verifier(public).check(ours)


def _edit(path, change):
    bundle = json.loads(path.read_text())
    change(bundle["dsseEnvelope"])
    path.write_text(json.dumps(bundle))


def _rename_file_in_payload(envelope):
    payload = base64.b64decode(envelope["payload"]).replace(b"saved_model.pb", b"saved_model.pc")
    envelope["payload"] = base64.b64encode(payload).decode()


def _new_manifest(folder):
    """What one does who may write to the folder: other files, and a manifest that has them."""
    (folder / "saved_model.pb").write_bytes(b"another model")
    (folder / versions.MANIFEST).write_text(versions.manifest(versions.content(folder)))


SIG = versions.MODEL_SIGNATURE
TAMPERINGS = {
    "file": lambda x: (x / "saved_model.pb").write_bytes(b"another model"),
    "manifest and file": _new_manifest,
    "manifest": lambda x: (x / versions.MANIFEST).write_text(versions.manifest({})),
    "removed": lambda x: (x / "saved_model.pb").unlink(),
    "added": lambda x: (x / "added").write_bytes(b""),
    "added for git": lambda x: (x / ".gitignore").write_bytes(b""),
    "linked": lambda x: (x / "added").symlink_to("saved_model.pb"),
    "pipe": lambda x: os.mkfifo(x / "added"),
    "no signature": lambda x: (x / SIG).unlink(),
    "empty": lambda x: (x / SIG).write_bytes(b""),
    "not JSON": lambda x: (x / SIG).write_bytes(b"\xff{"),
    "other JSON": lambda x: (x / SIG).write_text("[]"),
    "no envelope": lambda x: (x / SIG).write_text("{}"),
    "no signatures": lambda x: _edit(x / SIG, lambda e: e.update(signatures=[])),
    "zero signature": lambda x: _edit(x / SIG, lambda e: e["signatures"][0].update(sig="AAAA")),
    "no payload": lambda x: _edit(x / SIG, lambda e: e.pop("payload")),
    "other payload": lambda x: _edit(x / SIG, _rename_file_in_payload),
    "other type": lambda x: _edit(x / SIG, lambda e: e.update(payloadType="text/plain")),
    "too large": lambda x: os.truncate(x / SIG, 2**30),
    "link to a signature": lambda x: (
        (x / SIG).rename(x.parent / SIG),
        (x / SIG).symlink_to(x.parent / SIG),
    ),
    "signature of another kind": lambda x: (x / SIG).rename(x / versions.SIGNATURE),
}


@pytest.mark.parametrize("kind", TAMPERINGS)
def test_tampered_version_is_refused_and_says_why(elliptic, tmp_path, kind, capsys):
    version, _, public = elliptic
    ours = tmp_path / "1"
    shutil.copytree(version, ours)
    TAMPERINGS[kind](ours)
    assert cli.main(["verify", str(ours), "--verify-key", str(public)]) == 1
    *problems, last = capsys.readouterr().out.splitlines()
    assert problems
    assert last == f"{ours} is not what was published."


def test_verify_looks_at_all_versions_of_a_folder(elliptic, tmp_path, capsys):
    version, _, public = elliptic
    base = tmp_path / "serving"
    for number in (1, 2):
        shutil.copytree(version, base / str(number))
    assert cli.main(["verify", str(base), "--verify-key", str(public)]) == 0
    told = ", signed by a key that is trusted."
    assert capsys.readouterr().out.splitlines() == [
        f"{base / '1'} is what was published{told}",
        f"{base / '2'} is what was published{told}",
    ]
    (base / "1" / "added").write_bytes(b"")
    assert cli.main(["verify", str(base)]) == 1
    assert f"{base / '2'} is what was published." in capsys.readouterr().out
    # A version in a version does not answer for it.
    shutil.copytree(version, base / "1" / "3")
    assert cli.main(["verify", str(base / "1"), "--verify-key", str(public)]) == 1
    assert f"{base / '1'} is not what was published." in capsys.readouterr().out
    (tmp_path / "empty").mkdir()
    assert cli.main(["verify", str(tmp_path / "empty")]) == 1
    assert "sigline_manifest.json is missing" in capsys.readouterr().out


def test_signature_that_does_not_cover_the_model_is_not_written(elliptic, tmp_path):
    version, private, _ = elliptic
    ours = tmp_path / "1"
    shutil.copytree(version, ours)
    manifest = (ours / versions.MANIFEST).read_text()
    (ours / "saved_model.pb").write_bytes(b"another model")
    with pytest.raises(RuntimeError, match="changed while it was signed"):
        signing.Signer(private).sign(ours, manifest)


def test_all_files_are_in_the_signature(elliptic):
    version, _, _ = elliptic
    bundle = json.loads((version / SIG).read_text())
    statement = json.loads(base64.b64decode(bundle["dsseEnvelope"]["payload"]))
    signed = {x["name"]: x["digest"] for x in statement["predicate"]["resources"]}
    files = digests.tree_files(version)
    del files[SIG]
    assert signed == files
