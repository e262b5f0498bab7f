"""Publishes a model as the next version of a serving folder.

A version is copied under a name that no server reads, flushed to disk, verified and renamed. Its
manifest holds the SHA-256 of every file, so that damage is found and a model that is published
already is recognised by its content.
"""

import contextlib
import fcntl
import os
import shutil
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sigline.schemas import digests, versions

_SCRATCH_PREFIX = ".tmp-"
_LOCK = ".publish.lock"


@dataclass(frozen=True)
class Published:
    """A version in the serving folder.

    Attributes:
        version: Its number.
        path: Its directory.
        digest: Digest of the model's content.
        copied: Whether this call put it there; False if it stood there already.
    """

    version: int
    path: Path
    digest: str
    copied: bool


def publish(model: str | Path, base: str | Path) -> Published:
    """Publishes a model as the next version, unless the newest intact version is the same model.

    Safe against being killed at any moment and against other publishers: one lock per serving
    folder, which dies with its process; what a dead one left is cleared away.

    Args:
        model: The SavedModel's directory.
        base: The serving folder, on a local or mounted file system.

    Raises:
        ValueError: If `model` holds no SavedModel, or `base` names an object store.
        RuntimeError: If the copy differs from the original.
    """
    model, base_name, base = Path(model), str(base), Path(base)
    if "://" in base_name:
        raise ValueError(
            "base must be a local or mounted folder; object stores have no atomic rename. "
            f"Received: base={base_name}"
        )
    if not (model / "saved_model.pb").is_file():
        raise ValueError(f"model must hold a saved_model.pb. Received: model={model}")
    base.mkdir(parents=True, exist_ok=True)
    files = versions.content(model)
    digest = digests.json_digest(files)
    with _locked(base):
        for stale in base.glob(f"{_SCRATCH_PREFIX}*"):
            shutil.rmtree(stale)
        newest = max(versions.list_versions(base), default=0)
        if newest and versions.verify(base / str(newest)) == digest:
            return Published(newest, base / str(newest), digest, copied=False)
        scratch = base / f"{_SCRATCH_PREFIX}{uuid.uuid4().hex}"
        shutil.copytree(model, scratch)
        versions.write_manifest(scratch, files)
        if versions.verify(scratch) != digest:
            raise RuntimeError(f"The copy of {model} to {scratch} differs from the original.")
        _flush(scratch)
        target = base / str(newest + 1)
        os.rename(scratch, target)
        _flush_folder(base)
    return Published(newest + 1, target, digest, copied=True)


@contextlib.contextmanager
def _locked(base: Path) -> Iterator[None]:
    with open(base / _LOCK, "w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _flush(root: Path) -> None:
    for folder, _, names in os.walk(root):
        for name in names:
            with open(os.path.join(folder, name), "rb") as handle:
                os.fsync(handle.fileno())
        _flush_folder(Path(folder))


def _flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
