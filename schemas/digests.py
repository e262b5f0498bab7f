"""Content digests of texts, files and directory trees (SHA-256, hex)."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

_BLOCK_BYTES = 1 << 20

_SOURCES = frozenset({".py", ".pbtxt", ".jinja", ".css"})


def text_digest(text: str) -> str:
    """Returns the digest of a text's UTF-8 bytes."""
    return hashlib.sha256(text.encode()).hexdigest()


def json_digest(value: Any) -> str:
    """Returns the digest of a JSON value, independent of the order of keys."""
    return text_digest(json.dumps(value, sort_keys=True, ensure_ascii=False))


def stream_digest(handle: BinaryIO) -> str:
    """Returns the digest of the rest of an open file."""
    digest = hashlib.sha256()
    while block := handle.read(_BLOCK_BYTES):
        digest.update(block)
    return digest.hexdigest()


def file_digest(path: str | Path) -> str:
    """Returns the digest of a local file's bytes."""
    with open(path, "rb") as handle:
        return stream_digest(handle)


def tree_files(root: str | Path) -> dict[str, str]:
    """Returns the digest of every file below a directory, by relative path with `/`, sorted."""
    root = Path(root)
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {path.relative_to(root).as_posix(): file_digest(path) for path in files}


def tree_digest(root: str | Path) -> str:
    """Returns the digest of a directory's relative paths and bytes."""
    return json_digest(tree_files(root))


def source_digest(root: str | Path, names: Iterable[str]) -> str:
    """Returns the digest of source files: code, schemas, and templates and styles of pages.

    Args:
        root: The folder that the names are relative to.
        names: Files, or folders whose source files count at any depth.

    Raises:
        ValueError: If a name has no source file.
    """
    root, file_digests = Path(root), {}
    for name in names:
        paths = [root / name] if (root / name).is_file() else (root / name).rglob("*")
        sources = [path for path in paths if path.suffix in _SOURCES]
        if not sources:
            raise ValueError(f"names must lead to source files. Received: {name!r} below {root}")
        file_digests |= {path.relative_to(root).as_posix(): file_digest(path) for path in sources}
    return json_digest(file_digests)
