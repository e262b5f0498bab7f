"""One run at a time on a root: what two of them write there would mix."""

import contextlib
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from sigline.schemas import atomic

FILE = ".run.lock"


@contextlib.contextmanager
def alone(root: str) -> Iterator[None]:
    """Holds a root for this run; a process that ends, in whatever way, holds it no longer.

    Args:
        root: The folder that a run writes to; it exists.

    Raises:
        ValueError: If another run holds it; the message says which.
    """
    lock = Path(root, FILE)
    with contextlib.ExitStack() as stack:
        try:
            handle = stack.enter_context(atomic.locked(lock, wait=False))
        except BlockingIOError:
            raise ValueError(
                f"Another run is at work on this root{_holder(lock.read_text())}. Wait for it, end "
                f"it, or give this one a root of its own. Received: root={root}"
            ) from None
        begun = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
        handle.truncate(0)
        json.dump({"process": os.getpid(), "host": socket.gethostname(), "begun": begun}, handle)
        handle.flush()
        yield


def _holder(text: str) -> str:
    """Returns who holds the root, for a sentence; nothing where that is not written yet."""
    try:
        holder = json.loads(text)
        return f": process {holder['process']} on {holder['host']}, since {holder['begun']}"
    except (ValueError, KeyError, TypeError):
        return ""
