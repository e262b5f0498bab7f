"""Groups of what is connected by edges, such as pictures that are the same."""

from collections.abc import Iterable


class Forest:
    """Groups of what is connected, each below its smallest member: as large as its members."""

    def __init__(self) -> None:
        self._parent: dict[bytes, bytes] = {}

    def join(self, a: bytes, b: bytes) -> None:
        """Connects two members."""
        low, high = sorted((self._find(a), self._find(b)))
        self._parent[high] = low

    def _find(self, item: bytes) -> bytes:
        parent = self._parent
        while (up := parent.setdefault(item, item)) != item:
            parent[item] = item = parent[up]
        return item

    def roots(self) -> dict[bytes, bytes]:
        """Returns the smallest member of its group for every member."""
        return {item: self._find(item) for item in list(self._parent)}


def group_roots(edges: Iterable[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
    """Returns, for every image hash in an edge, the smallest hash that it is connected to."""
    forest = Forest()
    for a, b in edges:
        forest.join(a, b)
    return forest.roots()
