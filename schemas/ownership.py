"""Protects files of users: a command overwrites only its own files that are unchanged since.

An output folder has a hidden list of the files that were written there, with the SHA-256 of each. A
single text file has a first line with the SHA-256 of the rest.
"""

import hashlib
import json
import re
from pathlib import Path

from sigline.schemas import atomic, digests

LIST_FILE = ".sigline-written.json"
_STAMP = re.compile(r"# Written by (sigline[a-z -]*); SHA-256 of what follows: ([0-9a-f]{64})\n")


class OutputFolder:
    """A folder that a command writes files to, perhaps repeatedly.

    Example:
        `output = OutputFolder(folder, "sigline gate")`, then `output.check(names)` before the work
        and `output.record(names)` after it.
    """

    def __init__(self, folder: str | Path, command: str, *, option: str = "--output"):
        """Reads the list of files that were written there.

        Args:
            folder: The folder; it need not exist.
            command: Name of the command that writes, for the list.
            option: Option that names the folder, for messages.

        Raises:
            ValueError: If the folder is a file.
        """
        self._folder, self._command, self._option = Path(folder), command, option
        if self._folder.exists() and not self._folder.is_dir():
            raise ValueError(
                f"{option} must be a folder, or not exist yet. Received: {option} {folder}"
            )
        self._digests = _listed(self._folder / LIST_FILE)

    def check(self, names: list[str]) -> None:
        """Checks that files may be overwritten: sigline wrote them, and they are unchanged.

        Args:
            names: Files or folders to be written, relative to the folder.

        Raises:
            ValueError: With the path of the first file that must not be overwritten.
        """
        for name in names:
            path = self._folder / name
            files = sorted(path.rglob("*")) if path.is_dir() and not path.is_symlink() else [path]
            for file in files:
                if not file.is_dir() and not self._is_own(file):
                    raise not_own(file, self._command, self._option)

    def place(self, written: str | Path) -> None:
        """Moves all files of another folder here, and removes those of the command's last call.

        A file that exists with the same bytes is left as it is.

        Args:
            written: A folder on the same file system; its files are gone afterwards.

        Raises:
            ValueError: As `check`, before anything is moved.
        """
        written = Path(written)
        fresh = digests.tree_files(written)
        differing = [name for name, digest in fresh.items() if self._digest(name) != digest]
        self.check(differing)
        for name in self._digests:
            path = self._folder / name
            if name not in fresh and self._is_own(path):
                path.unlink(missing_ok=True)
        self._digests = {}
        for name in differing:
            (self._folder / name).parent.mkdir(parents=True, exist_ok=True)
            atomic.move_file(written / name, self._folder / name)
        self.record(list(fresh))

    def _digest(self, name: str) -> str | None:
        """Returns the digest of an existing regular file; None for anything else."""
        path = self._folder / name
        return digests.file_digest(path) if path.is_file() and not path.is_symlink() else None

    def record(self, names: list[str]) -> None:
        """Records the digests of files that the command wrote, with all files below folders."""
        for name in names:
            path = self._folder / name
            for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
                if file.is_file():
                    place = file.relative_to(self._folder).as_posix()
                    self._digests[place] = digests.file_digest(file)
        self._folder.mkdir(parents=True, exist_ok=True)
        listed = {"written_by": self._command, "files": dict(sorted(self._digests.items()))}
        atomic.write_file(self._folder / LIST_FILE, json.dumps(listed, indent=1) + "\n")

    def _is_own(self, path: Path) -> bool:
        if path.is_symlink():
            return False
        if not path.exists():
            return True
        digest = self._digests.get(path.relative_to(self._folder).as_posix())
        return digest is not None and path.is_file() and digests.file_digest(path) == digest


def not_own(path: str | Path, command: str, option: str = "--output") -> ValueError:
    """Returns the error for a file that a command must not overwrite."""
    return ValueError(
        f"{path} is in the way: {command} did not write it, or it was changed since. "
        f"Move it away, or name another place with {option}."
    )


def stamped(text: str, command: str) -> str:
    """Adds a first line to a text, a comment, by which `check_stamped` recognises it."""
    digest = hashlib.sha256(text.encode()).hexdigest()
    return f"# Written by {command}; SHA-256 of what follows: {digest}\n{text}"


def check_stamped(path: str | Path, command: str, option: str = "--output") -> None:
    """Checks that a text file may be overwritten: `stamped` made it, and it is unchanged.

    Raises:
        ValueError: With the path.
    """
    path = Path(path)
    if not (path.exists() or path.is_symlink()):
        return
    try:
        # Hash the bytes as they are: a line end that an editor changed is a change.
        text = path.read_bytes().decode() if path.is_file() and not path.is_symlink() else ""
    except UnicodeDecodeError:
        text = ""
    match = _STAMP.match(text)
    rest = text[match.end() :] if match else ""
    if match is None or hashlib.sha256(rest.encode()).hexdigest() != match[2]:
        raise not_own(path, command, option)


def _listed(path: Path) -> dict[str, str]:
    """Returns digests by name; none for an unreadable list, so that no file is overwritten."""
    try:
        files = json.loads(path.read_text())["files"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    if not isinstance(files, dict):
        return {}
    # The list is input too: a path out of the folder would allow overwriting other files.
    inside = {
        name: x for name, x in files.items() if not (Path(name).is_absolute() or ".." in name)
    }
    return {name: value for name, value in inside.items() if isinstance(value, str)}
