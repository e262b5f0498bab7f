"""Files beside data that hold no pairs, recognised by their names."""

import posixpath
import re

# Files that describe a data set or mark its state: `README.md`, `LICENSE`, Spark's `_SUCCESS`,
# `SHA256SUMS`.
_NAMES = re.compile(
    r"readme|licen[cs]e|copying|notice|authors|contributors|citation|change(s|log)|todo|makefile|"
    r"dockerfile|manifest|(md5|sha1|sha256|sha512)sums?|checksums?|thumbs\.db|desktop\.ini|"
    r"_success|_metadata|_common_metadata|_committed_.*|_started_.*"
)
_SUFFIXES = (
    *(".md", ".rst", ".tex", ".bib", ".cff", ".pdf", ".doc", ".docx", ".odt", ".html", ".htm"),
    *(".py", ".ipynb", ".sh", ".js", ".css", ".yaml", ".yml", ".toml", ".cfg", ".ini", ".conf"),
    *(".log", ".lock", ".xml", ".md5", ".sha1", ".sha256", ".sha512", ".crc", ".asc", ".sig"),
)
# Suffixes that these names may have.
_PLAIN = ("", ".txt", ".json")


def is_hidden(path: str) -> bool:
    """Whether a name or one of the folders above begins with a dot, or macOS packed it for itself.

    Args:
        path: The path from the input's folder, or from the root of an archive.
    """
    names = [name for name in path.split("/") if name not in (".", "..")]
    return any(name.startswith(".") or name == "__MACOSX" for name in names)


def is_document(path: str) -> bool:
    """Whether a file's name shows that it holds no pairs."""
    name = posixpath.basename(path).lower()
    stem, suffix = posixpath.splitext(name)
    if suffix in _SUFFIXES or _NAMES.fullmatch(name):
        return True
    return suffix in _PLAIN and _NAMES.fullmatch(stem) is not None
