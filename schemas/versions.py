"""Numbered version directories of a serving folder and the manifest that proves them whole."""

import json
import os
import shutil
from pathlib import Path

from sigline.schemas import digests

MANIFEST = "sigline_manifest.json"
# Who published a version vouches for its manifest, where that is asked for.
SIGNATURE = "sigline_manifest.sig"


def is_remote(base: str | Path) -> bool:
    """Returns whether a folder is in an object store, which has neither renames nor locks."""
    return "://" in str(base)


def link_or_copy(source: str, target: str) -> None:
    """Links a file, which costs no space, or copies it where the file system has no links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def directories(base: str | Path) -> dict[int, Path]:
    """Returns the version directories of a serving folder by number, as TF Serving finds them.

    Leading zeros do not count: `00000123` is version 123.
    """
    base = Path(base)
    if not base.is_dir():
        return {}
    return {int(path.name): path for path in sorted(base.iterdir()) if _is_version(path)}


def list_versions(base: str | Path) -> list[int]:
    """Returns the version numbers in a serving folder, ascending."""
    return sorted(directories(base))


def content(path: str | Path) -> dict[str, str]:
    """Returns the SHA-256 of every file of a model by relative path, but what vouches for it."""
    files = digests.tree_files(path)
    return {name: digest for name, digest in files.items() if name not in (MANIFEST, SIGNATURE)}


def manifest(files: dict[str, str]) -> str:
    """Returns the manifest of a model's files, as JSON; its `digest` is that of all of them."""
    digest = digests.json_digest(files)
    return json.dumps({"digest": digest, "files": files}, indent=1, sort_keys=True)


def recorded(path: str | Path) -> dict[str, str]:
    """Returns the SHA-256 of every file by relative path, as a version's manifest has them."""
    return json.loads((Path(path) / MANIFEST).read_text())["files"]


def verify(path: str | Path) -> str | None:
    """Returns the content digest of a version that agrees with its manifest, else None."""
    path = Path(path)
    manifest = path / MANIFEST
    if not manifest.is_file():
        return None
    try:
        recorded = json.loads(manifest.read_text())
    except ValueError:
        return None
    return recorded.get("digest") if recorded.get("files") == content(path) else None


def _is_version(path: Path) -> bool:
    name = path.name
    return name.isascii() and name.isdigit() and int(name) < 2**63 and path.is_dir()
