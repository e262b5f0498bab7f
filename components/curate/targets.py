"""Chooses the images of a large set that lie nearest to those of a small one, after SimCore.

Kim et al., "Coreset Sampling from Open-Set for Fine-Grained Self-Supervised Learning" (arXiv
2303.11101): in rounds, each centre of the target takes the nearest image that is left, until they
become too dissimilar or enough are chosen.
"""

import heapq
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

# Total length of the lists of all centres; an image in a list takes about 200 bytes.
_LISTED = 2_000_000


class Near(NamedTuple):
    """An image near a centre: how similar it is, and what identifies it, its key first."""

    similarity: float
    name: tuple


class NearestLists:
    """For each centre the most similar images, at most so many.

    Equally similar images are ordered by name, so that the lists do not depend on the order in
    which images are added.
    """

    def __init__(self, size: int):
        self._size = size
        self._heaps: list[list[tuple[float, _Reversed]]] = []

    def add(self, name: tuple, similarities: np.ndarray) -> None:
        """Adds an image.

        Args:
            name: What identifies it.
            similarities: To each centre, `(centres,)`.
        """
        for place, similarity in enumerate(similarities):
            self._push(place, (float(similarity), _Reversed(name)))

    def merge(self, other: "NearestLists") -> None:
        """Adds the images of other lists."""
        for place, heap in enumerate(other._heaps):
            for item in heap:
                self._push(place, item)

    def _push(self, place: int, item: tuple[float, "_Reversed"]) -> None:
        while len(self._heaps) <= place:
            self._heaps.append([])
        heap = self._heaps[place]
        if len(heap) < self._size:
            heapq.heappush(heap, item)
        else:
            heapq.heappushpop(heap, item)

    def sorted(self) -> list[list[Near]]:
        """Returns the images of each centre, the most similar first."""
        return [
            [Near(similarity, name.value) for similarity, name in sorted(heap, reverse=True)]
            for heap in self._heaps
        ]


class _Reversed:
    """A name that is larger where it is smaller."""

    __slots__ = ("value",)

    def __init__(self, value: tuple):
        self.value = value

    def __lt__(self, other: "_Reversed") -> bool:
        return other.value < self.value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Reversed) and self.value == other.value

    def __hash__(self) -> int:
        return hash(self.value)


def list_size(limit: int, centres: int) -> int:
    """Returns how many images to keep for each centre.

    `limit` images, as far as they fit in one worker's memory. Otherwise four times the centre's
    share and some more, since a centre passes over images that others took.
    """
    return min(limit, max(_LISTED // centres, 4 * -(-limit // centres) + 16))


def choose(
    lists: Sequence[Sequence[Near]], limit: int, stop: float, *, size: int | None = None
) -> list[tuple]:
    """Returns the names of the images that are chosen, in the order in which they are.

    In each round every centre takes the most similar image that no round before took; two may
    take the same. Rounds end when `limit` images are chosen, when no centre has one left, or when
    a round's mean similarity falls below `stop` times that of the first.

    Args:
        lists: The images of each centre, the most similar first. A centre whose list has ended
            sits out.
        limit: How many, at most; of the last round the most similar are taken.
        stop: The paper's threshold, 0.95 there; 0 for none.
        size: How many images the lists were cut to; None if they hold all.

    Raises:
        ValueError: If a list that was cut ends before enough images are chosen.
    """
    left = [iter(items) for items in lists]
    taken: set[tuple] = set()
    chosen: list[tuple] = []
    first: float | None = None
    while len(chosen) < limit:
        heads = [
            item
            for items in left
            if (item := next((x for x in items if x.name not in taken), None))
        ]
        cut = size is not None and size < limit and max(map(len, lists), default=0) >= size
        if cut and len(heads) < len(lists):
            raise ValueError(
                "The target's centres lie so close to each other that too few images were kept for "
                "them; lower target_limit or target_clusters. Received: "
                f"target_limit={limit}, target_clusters={len(lists)}"
            )
        if not heads:
            break
        mean = sum(item.similarity for item in heads) / len(heads)
        first = mean if first is None else first
        if first > 0 and mean < stop * first:
            break
        order = sorted(heads, key=lambda item: (-item.similarity, item.name))
        names = list(dict.fromkeys(item.name for item in order))[: limit - len(chosen)]
        chosen += names
        taken.update(names)
    return chosen
