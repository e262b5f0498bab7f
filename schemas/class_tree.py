"""A tree of classes: each class has at most one class above it, its parent."""

from collections.abc import Sequence

ROOT = -1
# Classes of a circle that an error shows.
_SHOWN = 10


def check(parents: Sequence[int], *, num_classes: int) -> None:
    """Raises ValueError unless the parents make a tree, or several, of all classes.

    Args:
        parents: The parent of each class, a class id; `ROOT` for a class at the top.
        num_classes: How many classes there are.
    """
    if len(parents) != num_classes:
        raise ValueError(
            "parents must have one entry for each class, the id of the class above it, or -1 at "
            f"the top. Received: {len(parents)} parents, {num_classes} classes"
        )
    for number, parent in enumerate(parents):
        if not isinstance(parent, int) or isinstance(parent, bool):
            raise ValueError(
                f"parents must be whole numbers. Received: parents[{number}]={parent!r}"
            )
        if not ROOT <= parent < num_classes:
            raise ValueError(
                f"parents must be class ids below {num_classes}, or -1 at the top. "
                f"Received: parents[{number}]={parent}"
            )
    _check_acyclic(parents)


def _check_acyclic(parents: Sequence[int]) -> None:
    reaches_top = [parent == ROOT for parent in parents]
    for start in range(len(parents)):
        path, on_path, number = [], set(), start
        while not reaches_top[number]:
            if number in on_path:
                circle = [*path[path.index(number) :], number]
                shown = " -> ".join(map(str, circle[:_SHOWN]))
                shown += " -> ..." if len(circle) > _SHOWN else ""
                raise ValueError(
                    "parents must lead from each class to the top, and not round in a circle. "
                    f"Received: {shown}"
                )
            path.append(number)
            on_path.add(number)
            number = parents[number]
        for item in path:
            reaches_top[item] = True


def levels(parents: Sequence[int]) -> tuple[int, ...]:
    """Returns the level of each class: 0 at the top, else one more than that of its parent.

    Args:
        parents: Parents that `check` accepts.
    """
    known: dict[int, int] = {ROOT: -1}
    for start in range(len(parents)):
        path, number = [], start
        while number not in known:
            path.append(number)
            number = parents[number]
        for item in reversed(path):
            known[item] = known[parents[item]] + 1
    return tuple(known[number] for number in range(len(parents)))
