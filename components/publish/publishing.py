"""Publishes a model as the next version of a serving folder.

A version is copied under a name that no server reads, flushed to disk, verified and renamed. Its
manifest holds the SHA-256 of every file, so that damage is found and a model that is published
already is recognised by its content. A version that is withdrawn is renamed to such a name too, and
so its number is never given again.
"""

import datetime
import hashlib
import json
import os
import re
import shutil
import uuid
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sigline.schemas import atomic, signatures, versions
from sigline.schemas.signing import Signer

SAVED_MODEL = "saved_model.pb"
_LOCK = ".publish.lock"
# Scratch folders that killed publishers leave; all other files belong to someone else.
_SCRATCH = re.compile(r"\.tmp-[0-9a-f]{32}")
_WITHDRAWN = re.compile(r"\.withdrawn-(\d+)")
_NOTE_SUFFIX = ".json"
_WARM_UP = f"{signatures.ASSETS_DIR}/{signatures.WARMUP_FILE}"


@dataclass(frozen=True)
class Published:
    """A version in the serving folder.

    Attributes:
        version: Its number.
        uri: Where it is: a directory, or a place in an object store.
        digest: Digest of the model's content.
        copied: Whether this call put it there; False if it stood there already.
    """

    version: int
    uri: str
    digest: str
    copied: bool

    @property
    def path(self) -> Path:
        """Its directory."""
        return Path(self.uri)


@dataclass(frozen=True)
class Withdrawn:
    """A version that servers no longer find.

    Attributes:
        version: Its number.
        path: Its directory.
        reason: Why it was withdrawn.
        time: When, in ISO 8601, UTC.
    """

    version: int
    path: Path
    reason: str
    time: str


def publish(
    model: str | Path,
    base: str | Path,
    *,
    keep: int | None = None,
    extras: Mapping[str, bytes] | None = None,
    marker: str = SAVED_MODEL,
    signer: Signer | None = None,
) -> Published:
    """Publishes a model as the next version, unless the newest intact version is the same model.

    Safe against being killed at any moment and against other publishers: one lock per serving
    folder, which dies with its process; what a dead one left is cleared away.

    Args:
        model: The SavedModel's directory.
        base: The serving folder, on a local or mounted file system.
        keep: How many of the newest versions stay, besides withdrawn ones that are newer than the
            oldest of them; None for all. Labels are not known here: keep as many as they name.
        extras: Files to add to the model's `assets.extra`, by name.
        marker: The file that it must hold.
        signer: Signs the version; None for no signature. The same model without a signature of
            this key is another version.

    Raises:
        ValueError: If `model` lacks the marker, or `base` names an object store.
        RuntimeError: If the model was withdrawn, or the copy differs from the original.
    """
    check(model, keep, marker)
    model, base = Path(model), _local(base)
    base.mkdir(parents=True, exist_ok=True)
    added = {f"{signatures.ASSETS_DIR}/{name}": x for name, x in (extras or {}).items()}
    own = versions.content(model)
    with atomic.locked(base / _LOCK):
        _clear(base)
        directories = versions.directories(base)
        newest = max(directories, default=0)
        digest = _digest_if_same(directories[newest], own, added) if newest else None
        if digest is not None and (signer is None or signer.has_signed(directories[newest])):
            return Published(newest, str(directories[newest]), digest, copied=False)
        removed = withdrawn(base)
        for item in removed:
            if _digest_if_same(item.path, own, added):
                raise RuntimeError(
                    f"This model was withdrawn as version {item.version} ({item.reason}), and is "
                    f"not published again; `sigline versions {base} --restore {item.version}` "
                    "brings it back."
                )
        newest = max([newest, *(item.version for item in removed)])
        target = base / str(newest + 1)
        digest = _place(model, target, own, added, signer)
        if keep is not None:
            _remove_old(base, keep)
    return Published(newest + 1, str(target), digest, copied=True)


def _clear(base: Path) -> None:
    """Removes what publishers that were killed have left."""
    for stale in base.glob(f"{atomic.SCRATCH}*"):
        if _SCRATCH.fullmatch(stale.name):
            shutil.rmtree(stale) if stale.is_dir() else stale.unlink()


def _digest_if_same(path: Path, own: Mapping[str, str], added: Mapping[str, bytes]) -> str | None:
    """Returns the digest of an intact version that is of the same model, else None."""
    digest = versions.verify(path)
    if digest is None:
        return None
    return digest if is_same(versions.recorded(path), own, added) else None


def is_same(held: Mapping[str, str], own: Mapping[str, str], added: Mapping[str, bytes]) -> bool:
    """Returns whether a version's files are those of a model; what was added makes no other one."""
    names = own.keys() | (held.keys() - added.keys() - {_WARM_UP})
    return all(held.get(name) == own.get(name) for name in names)


def check(model: str | Path, keep: int | None, marker: str) -> None:
    """Raises ValueError if there is no model, or none would be kept."""
    if keep is not None and keep < 1:
        raise ValueError(f"keep must be at least 1. Received: keep={keep}")
    if not (Path(model) / marker).is_file():
        raise ValueError(f"model must hold a {marker}. Received: model={model}")


def joined(own: Mapping[str, str], added: Mapping[str, bytes]) -> dict[str, str]:
    """Returns the SHA-256 of a model's files and of what is added to it, by name."""
    return {**own, **{name: hashlib.sha256(x).hexdigest() for name, x in added.items()}}


def _local(base: str | Path) -> Path:
    if versions.is_remote(base):
        raise ValueError(
            "base must be a local or mounted folder; object stores have no atomic rename. "
            f"Received: base={base}"
        )
    return Path(base)


def _place(
    model: Path,
    target: Path,
    own: Mapping[str, str],
    added: Mapping[str, bytes],
    signer: Signer | None,
) -> str:
    """Puts a copy of a model in a place, whole or not at all; returns the digest of all."""
    with atomic.new_folder(target) as scratch:
        return _copy(model, scratch, own, added, signer)


def _copy(
    model: Path,
    scratch: Path,
    own: Mapping[str, str],
    added: Mapping[str, bytes],
    signer: Signer | None,
) -> str:
    """Copies a model and what is added to it; returns the digest of all."""
    shutil.copytree(model, scratch, dirs_exist_ok=True)
    for name, content in added.items():
        (scratch / name).parent.mkdir(exist_ok=True)
        (scratch / name).write_bytes(content)
    # The manifest is of the digests read from the model: others may write to the scratch folder.
    manifest = versions.manifest(joined(own, added))
    (scratch / versions.MANIFEST).write_text(manifest)
    for name in versions.SIGNATURES:
        (scratch / name).unlink(missing_ok=True)
    digest = versions.verify(scratch)
    if digest is None:
        raise RuntimeError(f"The copy of {model} to {scratch} differs from the original.")
    if signer is not None:
        (scratch / signer.file).write_bytes(signer.sign(scratch, manifest))
    return digest


def withdrawn(base: str | Path) -> list[Withdrawn]:
    """Returns the withdrawn versions of a serving folder, ascending."""
    listed = []
    for path in Path(base).glob(".withdrawn-*"):
        match = _WITHDRAWN.fullmatch(path.name)
        if match is None or not path.is_dir():
            continue
        note = path.with_name(path.name + _NOTE_SUFFIX)
        content = json.loads(note.read_text()) if note.is_file() else {}
        reason, time = content.get("reason", "no reason given"), content.get("time", "")
        listed.append(Withdrawn(int(match[1]), path, reason, time))
    return sorted(listed, key=lambda item: item.version)


def rollback(base: str | Path, *, to: int | None = None, reason: str = "") -> list[int]:
    """Withdraws the newest versions, so that servers of the newest one serve an earlier one.

    Nothing is removed: `restore` brings a version back.

    Args:
        base: The serving folder.
        to: The version that is to be the newest; by default the one before the newest.
        reason: Why, for those who come later.

    Returns:
        The versions that were withdrawn, the newest first.

    Raises:
        ValueError: If there is no such version, none before the newest, or it is damaged.
    """
    base = _local(base)
    with atomic.locked(base / _LOCK):
        directories = versions.directories(base)
        numbers = sorted(directories)
        if to is None:
            if len(numbers) < 2:
                raise ValueError(
                    "There must be a version before the newest. "
                    f"Received: base={base}, versions={numbers}"
                )
            to = numbers[-2]
        if to not in directories:
            raise ValueError(
                f"to must be a version that is there. Received: to={to}, versions={numbers}"
            )
        has_manifest = (directories[to] / versions.MANIFEST).is_file()
        if has_manifest and versions.verify(directories[to]) is None:
            raise ValueError(
                f"Version {to} does not match its manifest; choose another. Received: base={base}"
            )
        # The newest first: if this is interrupted, no server goes back further than it should.
        newer = sorted((n for n in numbers if n > to), reverse=True)
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        for number in newer:
            path = base / f".withdrawn-{number}"
            note = {"version": number, "reason": reason or "no reason given", "time": now}
            os.rename(directories[number], path)
            atomic.flush_folder(base)
            _note(path, note)
    return newer


def _note(path: Path, note: Mapping[str, Any]) -> None:
    """Writes why a version was withdrawn; a full disk must not keep a bad version served."""
    try:
        atomic.write_file(path.with_name(path.name + _NOTE_SUFFIX), json.dumps(note))
    except OSError as error:
        warnings.warn(
            f"Version {note['version']} is withdrawn; why ({note['reason']}) could not be written "
            f"beside it: {error.strerror}",
            RuntimeWarning,
            stacklevel=2,
        )


def restore(base: str | Path, version: int) -> Path:
    """Brings a withdrawn version back under its number; returns its directory.

    Raises:
        ValueError: If there is no such version, or it is damaged.
    """
    base = _local(base)
    with atomic.locked(base / _LOCK):
        by_version = {item.version: item for item in withdrawn(base)}
        if version not in by_version:
            raise ValueError(
                f"version must be a withdrawn one. Received: version={version}, "
                f"withdrawn={sorted(by_version)}"
            )
        path, target = by_version[version].path, base / str(version)
        if (path / versions.MANIFEST).is_file() and versions.verify(path) is None:
            raise ValueError(f"Version {version} does not match its manifest. Received: {path}")
        os.rename(path, target)
        path.with_name(path.name + _NOTE_SUFFIX).unlink(missing_ok=True)
        atomic.flush_folder(base)
    return target


def _remove_old(base: Path, keep: int) -> None:
    """Removes all but the newest versions; each vanishes as a whole.

    Versions without a manifest were put there by someone else, and stay.
    """
    live = versions.directories(base)
    oldest = sorted(live)[-keep:][0]
    known = live | {item.version: item.path for item in withdrawn(base)}
    known = {n: path for n, path in known.items() if (path / versions.MANIFEST).is_file()}
    for number in sorted(x for x in known if x < oldest):
        scratch = base / f"{atomic.SCRATCH}{uuid.uuid4().hex}"
        os.rename(known[number], scratch)
        (base / f".withdrawn-{number}{_NOTE_SUFFIX}").unlink(missing_ok=True)
        shutil.rmtree(scratch)
