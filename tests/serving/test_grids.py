"""The grid of requests that name none, by how many rows wait."""

import threading

import numpy as np
import pytest

from sigline.serving.server.batching import Batcher, BatchingConfig
from sigline.serving.server.grids import GridsByLoad
from sigline.serving.server.served_version import ServedVersion

NAMES = [
    *("embed_image", "embed_image_g1", "embed_image_g2", "embed_image_g4", "embed_image_g8"),
    *("embed_text", "serving_default", "classify", "other_g2"),
]


@pytest.mark.parametrize(
    ("waiting", "chosen"),
    [
        ({}, "embed_image"),
        ({"embed_image": 9}, "embed_image"),
        ({"embed_image": 10}, "embed_image_g2"),
        ({"embed_image": 5, "embed_image_g2": 5}, "embed_image_g2"),
        ({"embed_image": 5, "embed_image_g2": 15}, "embed_image_g1"),
        ({"embed_image_g1": 1000}, "embed_image_g1"),
        # Another queue's rows are none of its own.
        ({"embed_text": 1000, "classify": 1000}, "embed_image"),
    ],
)
def test_as_many_rows_are_a_step(waiting, chosen):
    assert GridsByLoad(NAMES, 4, 10).choose("embed_image", waiting) == chosen


@pytest.mark.parametrize(
    "signature",
    ["embed_image_g4", "embed_image_g8", "embed_text", "serving_default", "classify", "unknown"],
)
def test_others_stay(signature):
    waiting = {name: 1000 for name in NAMES}
    assert GridsByLoad(NAMES, 4, 10).choose(signature, waiting) == signature


def test_model_that_names_no_default_stays_at_it():
    for default in (None, "4", [4]):
        assert GridsByLoad(NAMES, default, 1).choose("embed_image", {"embed_image": 9}) == (
            "embed_image"
        )


def test_requests_go_to_smaller_grids_while_others_wait():
    begun, go_on, computed = threading.Event(), threading.Event(), []

    def run(signature, inputs):
        computed.append(signature)
        begun.set()
        assert go_on.wait(60)
        return inputs

    # With a timeout no request is computed by the thread that sends it.
    config = BatchingConfig(num_batch_threads=1, max_batch_size=1, batch_timeout_seconds=1e-9)
    grids = GridsByLoad(NAMES, 4, 2)
    served = ServedVersion(_Engine(), Batcher(run, config), {}, {}, grids)
    try:
        futures = []
        for _ in range(6):
            row = {"image_bytes": np.array([b""], object)}
            futures.append(served.submit(served.at_load("embed_image"), row))
            assert begun.wait(60)
        assert sum(served.waiting().values()) == 5
        go_on.set()
        for future in futures:
            future.result(60)
        expected = ["embed_image"] * 3 + ["embed_image_g2"] * 2 + ["embed_image_g1"]
        assert sorted(computed) == sorted(expected)
        assert served.at_load("embed_image") == "embed_image"
    finally:
        go_on.set()
        served.close()


class _Engine:
    version = 1

    def close(self):
        pass


def test_number_of_rows_must_be_positive():
    with pytest.raises(ValueError, match="must be at least 1\\. Received: 0"):
        BatchingConfig(rows_per_smaller_grid=0)
