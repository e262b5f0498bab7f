"""Reloads files when they change, such as keys and certificates that are renewed."""

from collections.abc import Callable, Sequence
from pathlib import Path

_State = tuple[tuple[int, int, int] | None, ...]


class FileWatch:
    """Reloads files that have changed since they were last read."""

    def __init__(self, files: Sequence[Path], read: Callable[[], object]):
        """Begins with files that the caller has just read.

        Args:
            files: The files.
            read: Reads all of them again, or none; raises OSError or ValueError if it cannot.
        """
        self.files = tuple(files)
        self._read = read
        self._known = self._state()

    def reload_if_changed(self) -> bool | str:
        """Reads the files if they have changed.

        Returns:
            Whether they were read, or why they could not be. In that case the old content stays in
            use until the files change once more: a certificate and its key are renewed one by one,
            and do not match in between.
        """
        state = self._state()
        if state == self._known:
            return False
        self._known = state
        try:
            self._read()
        except (OSError, ValueError) as error:
            return str(error)
        return True

    def _state(self) -> _State:
        return tuple(_stamp(path) for path in self.files)


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_mtime_ns, stat.st_size, stat.st_ino
