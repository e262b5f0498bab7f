"""Both front ends over a model of numbers that computes only when a test lets it."""

import contextlib
import threading
from types import SimpleNamespace
from typing import Any

import numpy as np

from sigline.serving.protocol import tensors
from sigline.serving.server.access import ApiKeys
from sigline.serving.server.batching import Batcher, BatchingConfig
from sigline.serving.server.grpc_server import GrpcServer
from sigline.serving.server.metrics import Metrics
from sigline.serving.server.requests import Limits, Requests
from sigline.serving.server.rest import RestServer
from sigline.serving.server.served_version import ServedVersion


class _Engine:
    """An engine of one signature, which takes texts."""

    version = 1

    def definition(self, signature):
        return SimpleNamespace(inputs={"text": SimpleNamespace(dtype=tensors.STRING)})

    def check_types(self, signature, types):
        pass

    def check(self, signature, inputs):
        pass

    def output_names(self, signature):
        return ["number"]

    def close(self):
        pass


class HeldServer:
    """A server of one thread for batches.

    Attributes:
        codes: Status of every request that has been counted.
        computed: Texts that have been computed, or are.
        go_on: Set to let computations end.
    """

    def __init__(self, **limits):
        """Starts both front ends at free ports."""
        self.codes, self.computed, self.go_on = [], [], threading.Event()
        self._changed = threading.Condition()
        config = BatchingConfig(num_batch_threads=1)
        batcher = Batcher(self._run, config, merged=frozenset(["serving_default"]))
        engine: Any = _Engine()
        self.served = ServedVersion(engine, batcher, {}, {})
        self.metrics = Metrics(lambda: {}, lambda: {})
        count = self.metrics.request

        def counted(model, **fields):
            count(model, **fields)
            with self._changed:
                self.codes.append(fields["code"])
                self._changed.notify_all()

        self.metrics.request = counted
        models: Any = self
        self.requests = Requests(models, Limits(**limits), self.metrics, log_all=False)
        self._grpc = GrpcServer(
            self.requests,
            host="127.0.0.1",
            port=0,
            tls=None,
            keys=ApiKeys(()),
            allow_reload=False,
        )
        self.address = f"127.0.0.1:{self._grpc.port}"
        self._grpc.start()
        self._rest = RestServer(
            self.requests,
            host="127.0.0.1",
            port=0,
            tls=None,
            keys=ApiKeys(()),
            ready=lambda: True,
            grace_seconds=10,
        )
        self.rest_port = self._rest.port

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.go_on.set()
        self._grpc.stop(0)
        self._rest.stop()
        self.served.close()

    def _run(self, signature, inputs):
        texts = inputs["text"].tolist()
        with self._changed:
            self.computed += texts
            self._changed.notify_all()
        assert self.go_on.wait(60)
        return {"number": np.array([float(text) for text in texts], np.float32)}

    @contextlib.contextmanager
    def lease(self, name, *, version=None, label=""):
        """Yields the version."""
        self.served.acquire()
        try:
            yield self.served
        finally:
            self.served.release()

    def has_model(self, name):
        """Returns whether there is such a model."""
        return True

    def wait_until(self, holds):
        """Returns when a condition on requests holds; fails after a minute."""
        with self._changed:
            # What waits is told by nobody.
            for _ in range(12_000):
                if holds():
                    return
                self._changed.wait(0.005)
        raise AssertionError(f"codes {self.codes}, computed {self.computed}")
