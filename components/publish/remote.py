"""Publishes a model to an object store, which has no rename.

Objects of a version are written and read back before its `saved_model.pb`, without which no server
loads it; so readers see a version as a whole or fail to load it and keep the one they have. What a
publisher that was killed left behind is removed by the next one, and its number is not used again.
There is no lock on an object store: one publisher at a time is the caller's duty.
"""

import contextlib
import json
import posixpath
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Set
from pathlib import Path

from apache_beam.io.filesystems import FileSystems

from sigline.components.publish import publishing
from sigline.components.publish.publishing import Published
from sigline.components.shared import files
from sigline.schemas import digests, signatures, versions
from sigline.schemas.signing import Signer

_CHUNK_BYTES = 16 * 2**20


def publish(
    model: str | Path,
    base: str,
    *,
    keep: int | None = None,
    extras: Mapping[str, bytes] | None = None,
    marker: str = publishing.SAVED_MODEL,
    signer: Signer | None = None,
) -> Published:
    """Publishes a model as the next version, unless the newest version is the same model.

    Arguments are those of `publishing.publish`; `base` is on a file system that Beam reaches, such
    as `gs://bucket/models`.

    Raises:
        ValueError: If `model` lacks the marker.
        RuntimeError: If an object does not come back as it was written.
    """
    publishing.check(model, keep, marker)
    model, base = Path(model), base.rstrip("/")
    own = versions.content(model)
    added = {f"{signatures.ASSETS_DIR}/{name}": x for name, x in (extras or {}).items()}
    names_by_version = _versions(base)
    whole = sorted(number for number, names in names_by_version.items() if marker in names)
    if whole:
        newest, names = f"{base}/{whole[-1]}", names_by_version[whole[-1]]
        manifest = _text(newest, versions.MANIFEST) if versions.MANIFEST in names else "{}"
        held = json.loads(manifest)
        if publishing.is_same(held.get("files", {}), own, added) and (
            signer is None or _has_signed(signer, newest, names, model, own)
        ):
            return Published(whole[-1], newest, held["digest"], copied=False)
    number = max(names_by_version, default=0) + 1
    target = f"{base}/{number}"
    try:
        digest = _copy(model, target, own, added, marker, signer)
    except BaseException:
        # Without its marker a partial version is not taken for a model.
        _delete([posixpath.join(target, marker)])
        raise
    # Versions without a manifest were put there by someone else, and stay.
    own_numbers = {
        number for number, names in names_by_version.items() if versions.MANIFEST in names
    }
    # Removed only after the new version is complete, so that no number is used twice.
    for half in sorted(own_numbers - set(whole)):
        _remove(f"{base}/{half}", marker)
    if keep is not None:
        for old in [*whole, number][:-keep]:
            if old in own_numbers:
                _remove(f"{base}/{old}", marker)
    return Published(number, target, digest, copied=True)


def _versions(base: str) -> dict[int, set[str]]:
    """Returns the names of objects by version, also of versions that are not whole."""
    names_by_version: dict[int, set[str]] = {}
    for path in files.BeamFiles().find(base):
        match = re.fullmatch(r"([0-9]+)/(.+)", path.removeprefix(base + "/"))
        if match:
            names_by_version.setdefault(int(match[1]), set()).add(match[2])
    return names_by_version


def _text(directory: str, name: str) -> str:
    return files.read_text(posixpath.join(directory, name))


def _has_signed(
    signer: Signer, directory: str, names: Set[str], model: Path, own: Mapping[str, str]
) -> bool:
    """Returns whether a version is signed; what the model has too is not read from the store."""
    if signer.file not in names:
        return False
    held = json.loads(_text(directory, versions.MANIFEST))["files"]
    others = {name for name in names if name not in own or held.get(name) != own[name]}
    content = {}
    for name in sorted(others):
        with files.BeamFiles().open(posixpath.join(directory, name)) as handle:
            content[name] = handle.read()
    with _folder(model, set(own) - others, content) as folder:
        return signer.has_signed(folder)


@contextlib.contextmanager
def _folder(model: Path, names: Iterable[str], content: Mapping[str, bytes]) -> Iterator[Path]:
    """Makes a local folder of some files of a model, and others."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "version"
        for name in sorted({*names, *content}):
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if name in content:
                path.write_bytes(content[name])
            else:
                versions.link_or_copy(str(model / name), str(path))
        yield folder


def _copy(
    model: Path,
    target: str,
    own: Mapping[str, str],
    added: Mapping[str, bytes],
    marker: str,
    signer: Signer | None,
) -> str:
    held = publishing.joined(own, added)
    manifest = versions.manifest(held)
    content = {**added, versions.MANIFEST: manifest.encode()}
    if signer is not None:
        with _folder(model, own, content) as folder:
            content[signer.file] = signer.sign(folder, manifest)
    # The manifest is written first: it marks even an incomplete version as sigline's.
    ends = {versions.MANIFEST, marker}
    for name in [versions.MANIFEST, *sorted({*held, *content} - ends), marker]:
        path = posixpath.join(target, name)
        with FileSystems.create(path, compression_type="uncompressed") as handle:
            if name in content:
                handle.write(content[name])
            else:
                with open(model / name, "rb") as source:
                    while chunk := source.read(_CHUNK_BYTES):
                        handle.write(chunk)
        with files.BeamFiles().open(path) as handle:
            digest = digests.stream_digest(handle)
        if name in held and digest != held[name]:
            raise RuntimeError(f"{path} does not come back as it was written.")
    return json.loads(manifest)["digest"]


def _remove(directory: str, marker: str) -> None:
    """Removes a version, the file first without which nobody loads it, the manifest last."""
    paths = files.BeamFiles().find(directory)
    first, last = (posixpath.join(directory, name) for name in (marker, versions.MANIFEST))
    _delete([first])
    if others := [path for path in paths if path not in (first, last)]:
        FileSystems.delete(others)
    _delete([last])


def _delete(paths: list[str]) -> None:
    """Removes the objects that are there."""
    if there := [path for path in paths if FileSystems.exists(path)]:
        FileSystems.delete(there)
