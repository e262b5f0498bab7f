"""Links between tensors of a foreign checkpoint and parameters; nothing is left out silently."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

Tensors = Mapping[str, np.ndarray]


class Link(NamedTuple):
    """Tensors that together hold the same numbers as some parameters.

    Attributes:
        theirs: Names of the tensors.
        ours: Names of the parameters.
        read: Returns the parameters from the tensors.
        write: Returns the tensors from the parameters.
    """

    theirs: tuple[str, ...]
    ours: tuple[str, ...]
    read: Callable[..., Sequence[np.ndarray]]
    write: Callable[..., Sequence[np.ndarray]]


def same(theirs: str, ours: str) -> Link:
    """Returns the link of a tensor that is a parameter as it stands."""
    return Link((theirs,), (ours,), lambda x: (x,), lambda x: (x,))


def transposed(theirs: str, ours: str) -> Link:
    """Returns the link of a matrix `(outputs, inputs)` and a kernel `(inputs, outputs)`."""
    return Link((theirs,), (ours,), lambda x: (x.T,), lambda x: (x.T,))


def reshaped(theirs: str, ours: str, *, theirs_shape: tuple, ours_shape: tuple) -> Link:
    """Returns the link of a tensor whose numbers stand in the same order in another shape."""
    return Link(
        (theirs,),
        (ours,),
        lambda x: (x.reshape(ours_shape),),
        lambda x: (x.reshape(theirs_shape),),
    )


def dropped(tensors: Tensors, drop: Iterable[str]) -> dict[str, np.ndarray]:
    """Returns the tensors without those whose whole name matches a regular expression."""
    patterns = [re.compile(pattern) for pattern in drop]
    return {n: x for n, x in tensors.items() if not any(p.fullmatch(n) for p in patterns)}


def read(
    links: Iterable[Link], tensors: Tensors, *, drop: Iterable[str] = ()
) -> dict[str, np.ndarray]:
    """Returns parameters from the tensors of a checkpoint, in float32.

    Args:
        links: What the checkpoint should hold.
        tensors: What it holds.
        drop: Regular expressions of whole names that are not wanted.

    Raises:
        ValueError: If a tensor is missing or left over; the message lists them all.
    """
    links = list(links)
    needed = {name for link in links for name in link.theirs}
    kept = set(dropped(tensors, drop))
    missing, left_over = sorted(needed - kept), sorted(kept - needed)
    if missing or left_over:
        raise ValueError(
            "The checkpoint does not hold what the model needs. "
            f"Missing: {', '.join(missing) or 'nothing'}. "
            f"Left over: {', '.join(left_over) or 'nothing'}. "
            "Tensors that are not wanted can be named by --drop."
        )
    no_floats = sorted(name for name in needed if tensors[name].dtype.kind != "f")
    if no_floats:
        raise ValueError(
            "Weights must be floating point numbers, not quantised. Received: "
            f"{', '.join(f'{name} {tensors[name].dtype}' for name in no_floats)}"
        )
    parameters = {}
    for link in links:
        values = link.read(*(tensors[name].astype(np.float32) for name in link.theirs))
        parameters |= dict(zip(link.ours, values, strict=True))
    return parameters


def write(links: Iterable[Link], parameters: Tensors) -> dict[str, np.ndarray]:
    """Returns the tensors of a checkpoint from parameters.

    Raises:
        ValueError: If a parameter is missing or has no place in the checkpoint.
    """
    links = list(links)
    known = {name for link in links for name in link.ours}
    missing, homeless = sorted(known - set(parameters)), sorted(set(parameters) - known)
    if missing or homeless:
        raise ValueError(
            "The model cannot be written in this format. "
            f"Missing: {', '.join(missing) or 'nothing'}. "
            f"Without a place there: {', '.join(homeless) or 'nothing'}."
        )
    tensors = {}
    for link in links:
        values = link.write(*(parameters[name] for name in link.ours))
        tensors |= dict(zip(link.theirs, values, strict=True))
    return tensors
