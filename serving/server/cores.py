"""Which cores threads may use."""

import contextlib
import os
from collections.abc import Iterator


def count() -> int:
    """Returns how many cores this thread may use."""
    if hasattr(os, "sched_getaffinity"):  # On Linux.
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextlib.contextmanager
def one() -> Iterator[int | None]:
    """Keeps threads that are started meanwhile, and those that they start, on one core.

    Threads that hold Python's lock in turn gain nothing by several cores, and each time one wakes
    another on an idle core both wait. Gives the core, the same for all of a process; None where
    threads cannot be kept on a core, or there is one core only.
    """
    every = os.sched_getaffinity(0) if hasattr(os, "sched_setaffinity") else set()
    if len(every) < 2:
        yield None
        return
    core = sorted(every)[os.getpid() % len(every)]
    os.sched_setaffinity(0, {core})
    try:
        yield core
    finally:
        os.sched_setaffinity(0, every)


@contextlib.contextmanager
def every() -> Iterator[None]:
    """Lets threads that are started meanwhile use the cores of the process, whoever starts them."""
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
    """Lets this thread use the cores of the process."""
    if hasattr(os, "sched_setaffinity"):
        # The main thread's number is that of the process.
        os.sched_setaffinity(0, os.sched_getaffinity(os.getpid()))
