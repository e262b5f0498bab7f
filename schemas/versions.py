"""Numbered version directories of a serving folder and the manifest that proves them whole."""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from sigline.schemas import digests

MANIFEST = "sigline_manifest.json"
# Signatures of a version, which cover its manifest or all of its files; see `signing`.
SIGNATURE = "sigline_manifest.sig"
MODEL_SIGNATURE = "model.sig"
SIGNATURES = (SIGNATURE, MODEL_SIGNATURE)
# Files of a version that its manifest does not name.
_UNLISTED = {MANIFEST, *SIGNATURES}
# A folder that TensorFlow creates even if it stays empty.
_MAY_BE_EMPTY = {"assets"}


def is_remote(base: str | Path) -> bool:
    """Returns whether a folder is in an object store, which has neither renames nor locks."""
    return "://" in str(base)


def link_or_copy(source: str, target: str) -> None:
    """Links a file, which takes no space, or copies it if the file system has no links."""
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
    """Returns the SHA-256 of every file by relative path, except manifest and signatures."""
    files = digests.tree_files(path)
    return {name: digest for name, digest in files.items() if name not in _UNLISTED}


def manifest(files: dict[str, str]) -> str:
    """Returns the manifest of a model's files as JSON; its `digest` covers all of them."""
    digest = digests.json_digest(files)
    return json.dumps({"digest": digest, "files": files}, indent=1, sort_keys=True)


def recorded(path: str | Path) -> dict[str, str]:
    """Returns the SHA-256 of every file by relative path, from a version's manifest."""
    return json.loads((Path(path) / MANIFEST).read_text())["files"]


def verify(path: str | Path) -> str | None:
    """Returns the content digest of a version that matches its manifest, else None."""
    path = Path(path)
    return None if problems(path) else json.loads((path / MANIFEST).read_text())["digest"]


def problems(path: str | Path, known_digests: Mapping[str, str] | None = None) -> list[str]:
    """Returns a sentence for each difference between a version and its manifest.

    A version must hold exactly the files that the manifest names. They must be regular files: no
    links, pipes or devices, and no folders without such files.

    Args:
        path: The version's folder.
        known_digests: The result of `content` for it; by default all files are read.
    """
    path, known_digests = Path(path), known_digests or {}
    if path.is_symlink() or not path.is_dir():
        return [f"{path} is no folder"]
    known, tree = _known(path / MANIFEST), _Tree()
    if isinstance(known, str):
        return [known]
    _walk(path, "", tree)
    sentences = [f"{name} is {kind}" for name, kind in sorted(tree.others.items())]
    folders = {str(parent) for name in known for parent in PurePosixPath(name).parents}
    empty = tree.folders - folders - _MAY_BE_EMPTY
    sentences += [f"{name} is a folder of no file" for name in sorted(empty)]
    sentences += [f"{name} is added" for name in sorted(tree.files - set(known) - _UNLISTED)]
    for name, digest in sorted(known.items()):
        if name in tree.files:
            if (known_digests.get(name) or digests.file_digest(path / name)) != digest:
                sentences.append(f"{name} is changed")
        elif name not in tree.others:
            sentences.append(f"{name} is missing")
    return sentences


def _known(manifest: Path) -> dict[str, str] | str:
    """Returns the digests of a manifest by file, or what is wrong with it."""
    if manifest.is_symlink() or not manifest.is_file():
        return f"{manifest.name} is missing, or no file"
    try:
        read = json.loads(manifest.read_text())
        files, digest = read["files"], read["digest"]
    except (ValueError, KeyError, TypeError):
        return f"{manifest.name} is damaged"
    texts = isinstance(files, dict) and all(isinstance(x, str) for x in files.values())
    if not texts or digests.json_digest(files) != digest:
        return f"{manifest.name} does not agree with itself"
    return files


class _Tree:
    """The entries below a folder, by relative path."""

    def __init__(self) -> None:
        self.files: set[str] = set()
        self.folders: set[str] = set()
        self.others: dict[str, str] = {}


def _walk(folder: Path, prefix: str, tree: _Tree) -> None:
    with os.scandir(folder) as entries:
        for entry in entries:
            name = f"{prefix}{entry.name}"
            if entry.is_symlink():
                tree.others[name] = "a link"
            elif entry.is_dir(follow_symlinks=False):
                tree.folders.add(name)
                _walk(Path(entry.path), f"{name}/", tree)
            elif entry.is_file(follow_symlinks=False):
                tree.files.add(name)
            else:
                tree.others[name] = "no file: a pipe, a socket or a device"


def _is_version(path: Path) -> bool:
    name = path.name
    return name.isascii() and name.isdigit() and int(name) < 2**63 and path.is_dir()
