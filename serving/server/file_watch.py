"""Files that are read again when they change, such as keys and certificates that are renewed."""

from collections.abc import Callable, Sequence
from pathlib import Path

_State = tuple[tuple[int, int, int] | None, ...]


class FileWatch:
    """Knows whether files have changed since they were read."""

    def __init__(self, files: Sequence[Path], read: Callable[[], object]):
        """Takes the files as they are now for read.

        Args:
            files: The files.
            read: Reads them again, all or none; raises OSError or ValueError if it cannot.
        """
        self.files = tuple(files)
        self._read = read
        self._known = self._state()

    def look(self) -> bool | str:
        """Reads the files if they have changed.

        Returns:
            Whether they were read, or why they could not be: what was read before stays, and they
            are looked at again when they change again, since files are renewed one by one.
        """
        found = self._state()
        if found == self._known:
            return False
        self._known = found
        try:
            self._read()
        except (OSError, ValueError) as error:
            return str(error)
        return True

    def _state(self) -> _State:
        return tuple(_stamp(path) for path in self.files)


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
