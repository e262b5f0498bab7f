"""A loaded version of a model: its state, its queues, and the count of its requests."""

import enum
import threading
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import numpy as np

from sigline.serving.server.batching import Batcher
from sigline.serving.server.engine import LoadedVersion
from sigline.serving.server.grids import GridsByLoad


class State(enum.IntEnum):
    """TF Serving's states of a version."""

    START = 10
    LOADING = 20
    AVAILABLE = 30
    UNLOADING = 40
    END = 50


@dataclass(frozen=True)
class VersionStatus:
    """The status of a version as clients see it.

    Attributes:
        version: Its number.
        state: Its state, from START to END.
        error: Why loading failed; empty if it was unloaded or did not end.
        note: A warning about a version that serves, such as that its files were overwritten.
    """

    version: int
    state: State
    error: str = ""
    note: str = ""


class ServedVersion:
    """A loaded version with its queues, which counts its requests so that it can end after them."""

    def __init__(
        self,
        engine: LoadedVersion,
        batcher: Batcher,
        metadata: Mapping[str, Any],
        content: Mapping[str, str],
        grids: GridsByLoad | None = None,
    ):
        """Begins with no requests.

        Args:
            engine: The loaded model.
            batcher: Its queues.
            metadata: What the model says of itself.
            content: SHA-256 of the files that were loaded, by name.
            grids: Chooses the grid of requests that name none; None for the default one.
        """
        self.engine = engine
        self.metadata = metadata
        self.content = dict(content)
        self._batcher = batcher
        self._grids = grids
        self._num_requests = 0
        self._lock = threading.Lock()
        self._idle = threading.Condition(self._lock)

    @property
    def version(self) -> int:
        """The version's number."""
        return self.engine.version

    def at_load(self, signature: str) -> str:
        """Returns the signature that computes a request, by how much waits now."""
        if self._grids is None:
            return signature
        return self._grids.choose(signature, self._batcher.waiting())

    def submit(
        self, signature: str, inputs: dict[str, np.ndarray], *, deadline: float | None = None
    ) -> Future:
        """Queues a request that the engine has checked; see `Batcher.submit`."""
        return self._batcher.submit(signature, inputs, deadline=deadline)

    def waiting(self) -> Mapping[str, int]:
        """Returns how many rows wait, by signature."""
        return self._batcher.waiting()

    def acquire(self) -> None:
        """Counts a request that begins; the version stays loaded until it is released."""
        with self._lock:
            self._num_requests += 1

    def release(self) -> None:
        """Counts a request that has ended."""
        with self._lock:
            self._num_requests -= 1
            if not self._num_requests:
                self._idle.notify_all()

    def close(self) -> None:
        """Waits until every request is answered, then frees the model."""
        with self._idle:
            while self._num_requests:
                self._idle.wait()
        self._batcher.close()
        self.engine.close()
