"""Publishing to an object store: a file system of Beam that has no rename and can die."""

import io
import json

import pytest
from apache_beam.io.filesystem import FileMetadata, FileSystem
from apache_beam.io.filesystems import FileSystems
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from sigline.components.publish import remote
from sigline.schemas import digests, signing, versions


class Killed(BaseException):
    """The publisher dies."""


class Bucket(FileSystem):
    """Objects in memory, under `bucket://`; every change is recorded."""

    objects: dict[str, bytes]
    changes: list[tuple[str, str]]
    dies_at: str
    damages: str

    @classmethod
    def scheme(cls):
        return "bucket"

    @classmethod
    def reset(cls):
        cls.objects, cls.changes, cls.dies_at, cls.damages = {}, [], "", ""

    def join(self, basepath, *paths):
        return "/".join([basepath.rstrip("/"), *paths])

    def split(self, path):
        return tuple(path.rsplit("/", 1))

    def mkdirs(self, path):
        pass

    def has_dirs(self):
        return False

    def _list(self, dir_or_prefix):
        for path, content in sorted(self.objects.items()):
            if path.startswith(dir_or_prefix):
                yield FileMetadata(path, len(content))

    def create(self, path, mime_type="", compression_type="auto"):
        if self.dies_at and path.endswith(self.dies_at):
            raise Killed
        bucket = self

        class Object(io.BytesIO):
            def close(self):
                if not self.closed:
                    content = self.getvalue()
                    if bucket.damages and path.endswith(bucket.damages):
                        content = content[:-1]
                    bucket.objects[path] = content
                    bucket.changes.append(("write", path))
                super().close()

        return Object()

    def open(self, path, mime_type="", compression_type="auto"):
        return io.BytesIO(self.objects[path])

    def exists(self, path):
        return path in self.objects

    def delete(self, paths):
        for path in paths:
            del self.objects[path]
            self.changes.append(("delete", path))

    def copy(self, source_file_names, destination_file_names):
        raise NotImplementedError

    def rename(self, source_file_names, destination_file_names):
        raise AssertionError("an object store has no rename")

    def size(self, path):
        return len(self.objects[path])

    def last_updated(self, path):
        return 0.0

    def checksum(self, path):
        return ""

    def metadata(self, path):
        return FileMetadata(path, len(self.objects[path]))


BASE = "bucket://models/sigline"


@pytest.fixture(autouse=True)
def bucket():
    Bucket.reset()
    return Bucket


@pytest.fixture
def model(tmp_path):
    return _model(tmp_path / "model", b"weights")


def _model(folder, weights):
    (folder / "variables").mkdir(parents=True)
    (folder / "saved_model.pb").write_bytes(b"graph")
    (folder / "variables" / "data").write_bytes(weights)
    return folder


def _whole():
    """Returns the versions that a server would load."""
    return [
        path.removeprefix(f"{BASE}/").split("/")[0]
        for path in sorted(Bucket.objects)
        if path.endswith("/saved_model.pb")
    ]


def test_graph_comes_last_when_all_else_is_there(model, bucket):
    found = remote.publish(model, BASE, extras={"warm_up": b"requests"})
    assert (found.version, found.uri, found.copied) == (1, f"{BASE}/1", True)
    assert bucket.changes[-1] == ("write", f"{BASE}/1/saved_model.pb")
    assert bucket.objects[f"{BASE}/1/assets.extra/warm_up"] == b"requests"
    manifest = json.loads(bucket.objects[f"{BASE}/1/{versions.MANIFEST}"])
    assert manifest["digest"] == found.digest
    for name, digest in manifest["files"].items():
        content = io.BytesIO(bucket.objects[f"{BASE}/1/{name}"])
        assert digests.stream_digest(content) == digest


def test_the_same_model_is_not_published_twice(model, bucket):
    first = remote.publish(model, BASE, extras={"warm_up": b"requests"})
    changes = list(bucket.changes)
    again = remote.publish(model, BASE, extras={"warm_up": b"others"})
    assert (again.version, again.digest, again.copied) == (1, first.digest, False)
    assert bucket.changes == changes


@pytest.mark.parametrize("dies_at", ["variables/data", versions.MANIFEST, "saved_model.pb"])
def test_half_a_version_is_never_loaded_nor_its_number_used(model, tmp_path, bucket, dies_at):
    remote.publish(model, BASE)
    other = _model(tmp_path / "other", b"other weights")
    bucket.dies_at = f"2/{dies_at}"
    with pytest.raises(Killed):
        remote.publish(other, BASE)
    assert _whole() == ["1"]
    bucket.dies_at = ""
    half = any(path.startswith(f"{BASE}/2/") for path in bucket.objects)
    found = remote.publish(other, BASE)
    # Nothing is known about a version of which nothing was written.
    assert found.version == (3 if half else 2)
    assert _whole() == ["1", str(found.version)]
    assert len({path.split("/")[4] for path in bucket.objects}) == 2


@pytest.mark.parametrize("damages", ["variables/data", "saved_model.pb"])
def test_object_that_comes_back_otherwise_stops_it(model, bucket, damages):
    bucket.damages = damages
    with pytest.raises(RuntimeError, match="does not come back as it was written"):
        remote.publish(model, BASE)
    assert _whole() == []
    bucket.damages = ""
    assert remote.publish(model, BASE).version == 2
    assert _whole() == ["2"]


@pytest.fixture(params=["Ed25519", "P-256"])
def signer(tmp_path, request):
    key = (
        ec.generate_private_key(ec.SECP256R1())
        if request.param == "P-256"
        else ed25519.Ed25519PrivateKey.generate()
    )
    path = tmp_path / "key.pem"
    encoding, private = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    path.write_bytes(key.private_bytes(encoding, private, serialization.NoEncryption()))
    return signing.Signer(path)


def test_version_without_the_signature_is_published_again(model, bucket, signer):
    extras = {"model.json": b"{}"}
    remote.publish(model, BASE, extras=extras)
    assert remote.publish(model, BASE, extras=extras, signer=signer).version == 2
    again = {"model.json": b'{"time": 2}'}
    assert remote.publish(model, BASE, extras=again, signer=signer).version == 2
    bucket.objects[f"{BASE}/2/{signer.file}"] = b"{}"
    assert remote.publish(model, BASE, extras=again, signer=signer).version == 3


def test_old_versions_go_graph_first(tmp_path, bucket):
    for number in range(1, 5):
        model = _model(tmp_path / str(number), bytes([number]))
        remote.publish(model, BASE, keep=2)
    assert _whole() == ["3", "4"]
    removed = [path for kind, path in bucket.changes if kind == "delete"]
    assert removed[0] == f"{BASE}/1/saved_model.pb"
    assert not [path for path in bucket.objects if path.startswith((f"{BASE}/1/", f"{BASE}/2/"))]


def test_version_is_signed(model, bucket, signer, tmp_path):
    uri = remote.publish(model, BASE, extras={"x": b"1"}, signer=signer).uri
    folder = tmp_path / "fetched"
    for name, content in bucket.objects.items():
        path = folder / name.removeprefix(f"{uri}/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    assert signer.has_signed(folder)
    assert signer.file not in versions.recorded(folder)


def test_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"must hold a saved_model\.pb"):
        remote.publish(tmp_path, BASE)


def test_beam_finds_this_file_system():
    assert FileSystems.get_scheme(BASE) == "bucket"


def test_objects_of_someone_else_stay(tmp_path, bucket):
    foreign = [f"{BASE}/1/notes.txt", f"{BASE}/2/saved_model.pb"]
    bucket.objects.update(dict.fromkeys(foreign, b"mine"))
    for weights in (b"3", b"4"):
        model = _model(tmp_path / weights.decode(), weights)
        remote.publish(model, BASE, keep=1)
    assert all(bucket.objects[path] == b"mine" for path in foreign)
    assert not any(path.startswith(f"{BASE}/3/") for path in bucket.objects)
