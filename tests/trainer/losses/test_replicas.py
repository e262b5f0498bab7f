"""Losses on 1, 2 and 4 replicas equal those of the whole batch in float64."""

import json
import os
import socket
from pathlib import Path

import numpy as np
import pytest
import reference_losses
from forked import Forked

pytestmark = pytest.mark.slow

BATCH = 24
TEMPERATURE, BIAS = 10.0, -3.0
FORMS = ("ring", "all_gather")


@pytest.fixture(scope="module")
def inputs():
    rng = np.random.default_rng(1)
    image, text = reference_losses.pairs(BATCH)
    teacher_image, teacher_text = reference_losses.pairs(BATCH, dim=8, seed=2)
    return {
        "image": image,
        "text": text,
        "image_group": np.arange(BATCH) // 2,
        "text_group": np.arange(BATCH) // 3,
        "teacher_image": teacher_image,
        "teacher_text": teacher_text,
        "targets": rng.random((BATCH, BATCH)),
        "weights": rng.integers(0, 3, (BATCH, BATCH)).astype(np.float64),
        "image_valid": rng.random(BATCH) < 0.7,
        "text_valid": rng.random(BATCH) < 0.7,
    }


@pytest.fixture(scope="module")
def outputs(inputs, tmp_path_factory):
    """What each number of replicas found; a process each, since one cannot change its devices."""
    folder = tmp_path_factory.mktemp("replicas")
    np.savez(folder / "inputs.npz", **inputs)
    script = Path(__file__).with_name("replica_losses.py")
    # Side by side: most of their time is the tracing of graphs, on one core each.
    processes = {}
    for replicas in (4, 2, 1):
        output = folder / f"{replicas}.npz"
        argv = [str(script), str(replicas), str(folder / "inputs.npz"), str(output)]
        processes[replicas] = Forked(argv, tmp_path_factory.mktemp("replica"))
    found = {}
    try:
        for replicas, process in processes.items():
            _, errors = process.communicate(timeout=600)
            assert process.returncode == 0, errors[-3000:]
            found[replicas] = dict(np.load(folder / f"{replicas}.npz"))
    finally:
        for process in processes.values():
            process.kill()
    return found


def _expected(case, inputs):
    image, text = inputs["image"], inputs["text"]
    if case == "softmax":
        return reference_losses.softmax(image, text, TEMPERATURE)
    targets, weights = np.eye(BATCH), 1.0
    if case == "groups":
        targets = (inputs["image_group"][:, None] == inputs["text_group"]).astype(float)
    elif case == "soft":
        scores = inputs["teacher_image"] @ inputs["teacher_text"].T
        targets = 1 / (1 + np.exp(-(5.0 * scores - 1.0)))
    elif case == "matrix":
        targets, weights = inputs["targets"], inputs["weights"]
    elif case == "masked":
        weights = np.outer(inputs["image_valid"], inputs["text_valid"])
    elif case == "hard":
        scores = np.where(np.eye(BATCH), -np.inf, image @ text.T)
        hardest = np.argsort(-scores, axis=1)[:, :4]
        weights = np.eye(BATCH)
        np.put_along_axis(weights, hardest, 1.0, axis=1)
    return reference_losses.sigmoid(image, text, TEMPERATURE, BIAS, targets, weights)


@pytest.mark.parametrize(
    "case", ["sigmoid", "softmax", "groups", "soft", "matrix", "masked", "hard"]
)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("replicas", [1, 2, 4])
def test_loss_and_gradients_equal_those_of_the_global_batch(inputs, outputs, replicas, form, case):
    prefix = f"{form}/{case}/"
    found = {
        name.removeprefix(prefix): value
        for name, value in outputs[replicas].items()
        if name.startswith(prefix)
    }
    reference_losses.assert_close(found, _expected(case, inputs))


@pytest.mark.parametrize("form", FORMS)
def test_random_negatives_are_the_same_on_any_number_of_replicas(outputs, form):
    for name in ("loss", "image", "text"):
        one = outputs[1][f"ring/random/{name}"]
        for replicas in (2, 4):
            other = outputs[replicas][f"{form}/random/{name}"]
            np.testing.assert_allclose(other, one, atol=2e-6 * np.abs(one).max(), rtol=0)


@pytest.mark.parametrize("replicas", [2, 4])
def test_loss_outside_of_replica_context_is_refused(outputs, replicas):
    assert "must run in replica context" in str(outputs[replicas]["error"])


def _free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for item in sockets:
        item.bind(("127.0.0.1", 0))
    ports = [item.getsockname()[1] for item in sockets]
    for item in sockets:
        item.close()
    return ports


def test_workers_in_processes_of_their_own_meet_all_pairs(inputs, tmp_path):
    np.savez(tmp_path / "inputs.npz", **inputs)
    script = Path(__file__).with_name("replica_losses.py")
    workers = [f"127.0.0.1:{port}" for port in _free_ports(2)]
    processes = []
    for index in range(2):
        task = {"cluster": {"worker": workers}, "task": {"type": "worker", "index": index}}
        argv = [str(script), "2", str(tmp_path / "inputs.npz"), str(tmp_path / f"{index}.npz")]
        variables = os.environ | {"TF_CONFIG": json.dumps(task)}
        processes.append(Forked(argv, tmp_path, variables=variables))
    try:
        for process in processes:
            _, errors = process.communicate(timeout=300)
            assert process.returncode == 0, errors[-3000:]
    finally:
        # If one died, the other waits for it.
        for process in processes:
            process.kill()
    parts = [dict(np.load(tmp_path / f"{index}.npz")) for index in range(2)]
    assert [int(part["replicas"]) for part in parts] == [2, 2]
    for case in ("sigmoid", "softmax"):
        expected = _expected(case, inputs)
        found = {}
        for name in expected:
            both = [part[f"auto/{case}/{name}"] for part in parts]
            # A worker holds its own rows and its own share of the rest.
            found[name] = np.concatenate(both) if name in ("image", "text") else sum(both)
        reference_losses.assert_close(found, expected)
