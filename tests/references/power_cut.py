"""What a cut of the power may leave of a folder, by what was flushed to the disk before it.

The model is the worst that a file system may do: a file holds what it held when it was last
flushed, and a folder lists what it listed then, each whatever became of the other.
"""

import contextlib
import dataclasses
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

# Calls that change which files there are, or what of them is on the disk.
_CALLS = ("fsync", "replace", "rename", "unlink", "remove", "rmdir", "mkdir", "link")

# A folder as files by their relative paths; None stands for a folder.
State = dict[str, bytes | None]


def states(root: Path, work: Callable[[], object]) -> list[State]:
    """Returns every state that a cut of the power may leave below a folder while work is done.

    Args:
        root: A folder; all that is in it is on the disk.
        work: Writes to it.

    Returns:
        The distinct states, those before and after the work among them.
    """
    disk = _Disk(root)
    with disk.watched():
        work()
    return disk.states


def lay_out(state: State, folder: Path) -> Path:
    """Writes a state to a folder that is not there yet, and returns the folder."""
    folder.mkdir(parents=True)
    for name, content in sorted(state.items()):
        path = folder / name
        if content is None:
            path.mkdir(parents=True, exist_ok=True)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    return folder


@dataclasses.dataclass(frozen=True)
class _Node:
    """A file or folder as it is: its content, or the numbers and kinds of what it lists."""

    content: bytes = b""
    names: dict[str, tuple[int, bool]] | None = None


class _Disk:
    def __init__(self, root: Path):
        self._root = root
        self._lock = threading.RLock()
        # Descriptors, which keep a number from being used again.
        self._pinned: dict[int, int] = {}
        self._flushed: dict[int, _Node] = {}
        self._number = root.stat().st_ino
        self._flushed |= self._live()
        self._seen: set[int] = set()
        self.states: list[State] = []
        self._cut()

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for name in _CALLS:
                patched = mock.patch.object(os, name, self._observed(name, getattr(os, name)))
                stack.enter_context(patched)
            try:
                yield
            finally:
                self._cut()
                for descriptor in self._pinned.values():
                    os.close(descriptor)

    def _observed(self, name: str, call: Callable) -> Callable:
        def _call(*args, **options):
            with self._lock:
                self._cut()
                result = call(*args, **options)
                if name == "fsync":
                    descriptor = args[0] if isinstance(args[0], int) else args[0].fileno()
                    number = os.fstat(descriptor).st_ino
                    live = self._live()
                    if number in live:
                        self._flushed[number] = live[number]
                self._cut()
                return result

        return _call

    def _live(self) -> dict[int, _Node]:
        """Returns all that is below the root now, by its number."""
        found: dict[int, _Node] = {}
        for folder, folders, files in os.walk(self._root):
            names = {}
            for name in [*folders, *files]:
                path = os.path.join(folder, name)
                with contextlib.suppress(FileNotFoundError):
                    number = self._pin(path)
                    names[name] = number, name in folders
                    if name in files:
                        found[number] = _Node(content=Path(path).read_bytes())
            with contextlib.suppress(FileNotFoundError):
                found[self._pin(folder)] = _Node(names=names)
        return found

    def _pin(self, path: str) -> int:
        descriptor = os.open(path, os.O_PATH | os.O_NOFOLLOW)
        number = os.fstat(descriptor).st_ino
        if number in self._pinned:
            os.close(descriptor)
        else:
            self._pinned[number] = descriptor
        return number

    def _cut(self) -> None:
        """Notes what a cut would leave now."""
        live = self._live()
        torn = {
            number: node
            if node.names is not None or self._flushed.get(number) == node
            else _Node(content=node.content[: len(node.content) // 2])
            for number, node in live.items()
        }
        lost = {
            number: node if node.names is not None else self._flushed.get(number, _Node())
            for number, node in live.items()
        }
        unnamed = {
            number: self._flushed.get(number, _Node(names={})) if node.names is not None else node
            for number, node in (self._flushed | live).items()
        }
        for tree in (live, torn, lost, unnamed, self._flushed):
            state = dict(_below(tree, self._number, ""))
            mark = hash(tuple(sorted(state.items(), key=lambda item: item[0])))
            if mark not in self._seen:
                self._seen.add(mark)
                self.states.append(state)


def _below(tree: dict[int, _Node], number: int, prefix: str) -> Iterator[tuple[str, bytes | None]]:
    for name, (child, is_folder) in (tree[number].names or {}).items():
        path = f"{prefix}{name}"
        if not is_folder:
            yield path, tree.get(child, _Node()).content
            continue
        yield path, None
        if child in tree:
            yield from _below(tree, child, f"{path}/")
