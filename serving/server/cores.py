"""CPU affinity of threads: pins them to one core, or lets them use all."""

import contextlib
import os
from collections.abc import Iterator


def count() -> int:
    """Returns how many cores this thread may use."""
    if hasattr(os, "sched_getaffinity"):  # Only Linux has affinities.
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextlib.contextmanager
def pinned_to_one() -> Iterator[int | None]:
    """Pins threads that are started in this context, and their children, to one core.

    Threads that take turns at holding Python's global lock gain nothing from several cores, and
    each time one wakes another on an idle core, both wait.

    Yields:
        The core, the same for the whole process; None where threads cannot be pinned, or there is
        only one core.
    """
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_setaffinity") else set()
    if len(allowed) < 2:
        yield None
        return
    # By process id, so that several servers on one machine use different cores.
    core = sorted(allowed)[os.getpid() % len(allowed)]
    os.sched_setaffinity(0, {core})
    try:
        yield core
    finally:
        os.sched_setaffinity(0, allowed)


@contextlib.contextmanager
def unpinned() -> Iterator[None]:
    """Lets threads that are started in this context use all cores, even if the caller is pinned."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    use_all()
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def use_all() -> None:
    """Lets this thread use all cores of the process."""
    if hasattr(os, "sched_setaffinity"):
        # The affinity of the process is that of its main thread, whose id is the process id.
        os.sched_setaffinity(0, os.sched_getaffinity(os.getpid()))
