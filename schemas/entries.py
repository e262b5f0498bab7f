"""Lists everything below a local folder: files, links and special files."""

import os
import stat
from typing import NamedTuple

FILE = "file"
FOLDER = "folder"
# Kinds of entries without readable content. They are also reasons for passing an entry over.
EMPTY_FOLDER = "empty_folder"
BROKEN_LINK = "broken_link"
LINK_CYCLE = "link_cycle"
LINKED_TWICE = "linked_twice"
SPECIAL_FILE = "special_file"
UNREADABLE_FOLDER = "unreadable_folder"


class Entry(NamedTuple):
    """An entry below a folder: its path, and one of the kinds above."""

    path: str
    kind: str = FILE


def local_entries(folder: str) -> list[Entry]:
    """Returns everything below a folder, sorted by path.

    Links to folders are followed, each folder once: in the order of the paths, real folders first.
    Only folders are opened, since opening a named pipe would block.
    """
    walk = _Walk(folder)
    walk.run()
    return sorted(walk.entries)


class _Walk:
    def __init__(self, folder: str):
        self._base = folder.rstrip("/") or "/"
        self._links: list[str] = []
        # Device and inode of every folder that was listed.
        self._visited: set[tuple[int, int]] = set()
        self.entries: list[Entry] = []

    def run(self) -> None:
        """Lists the folder, then the folders behind links."""
        try:
            self._visited.add(_identity(os.stat(self._base)))
        except OSError:
            return
        self._list(self._base)
        while self._links:
            # Links inside of these folders are followed in the next round.
            links, self._links = sorted(self._links), []
            for path in links:
                self._follow(path)

    def _add(self, path: str, kind: str) -> None:
        self.entries.append(Entry(path, kind))

    def _list(self, top: str) -> None:
        stack = [top]
        while stack:
            path = stack.pop()
            try:
                with os.scandir(path) as entries:
                    children = sorted(entries, key=lambda item: item.name, reverse=True)
            except OSError as error:
                if not isinstance(error, PermissionError | FileNotFoundError | NotADirectoryError):
                    raise
                if path != self._base:
                    self._add(path, UNREADABLE_FOLDER)
                continue
            if path != self._base:
                self._add(path, FOLDER if children else EMPTY_FOLDER)
            stack += [child.path for child in children if self._is_new_folder(child)]

    def _is_new_folder(self, child: os.DirEntry[str]) -> bool:
        """Returns whether a child is a folder to list; adds it to the entries otherwise."""
        path = child.path
        if child.is_symlink():
            try:
                target = os.stat(path)
            except OSError:
                self._add(path, BROKEN_LINK)
                return False
            if stat.S_ISDIR(target.st_mode):
                self._links.append(path)
            else:
                self._add(path, FILE if stat.S_ISREG(target.st_mode) else SPECIAL_FILE)
            return False
        if child.is_dir(follow_symlinks=False):
            return self._is_first(path, child.stat(follow_symlinks=False))
        self._add(path, FILE if child.is_file(follow_symlinks=False) else SPECIAL_FILE)
        return False

    def _is_first(self, path: str, status: os.stat_result) -> bool:
        if _identity(status) in self._visited:
            self._add(path, LINKED_TWICE)
            return False
        self._visited.add(_identity(status))
        return True

    def _follow(self, link: str) -> None:
        target = os.path.realpath(link)
        if os.path.join(os.path.realpath(os.path.dirname(link)), "").startswith(
            os.path.join(target, "")
        ):
            self._add(link, LINK_CYCLE)
            return
        try:
            status = os.stat(link)
        except OSError:
            self._add(link, BROKEN_LINK)
            return
        if self._is_first(link, status):
            self._list(link)


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino
