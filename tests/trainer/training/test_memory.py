import os

import numpy as np
import pytest
import tensorflow as tf

from sigline.trainer import config
from sigline.trainer.models import two_tower
from sigline.trainer.training import memory, start, strategies
from sigline.trainer.training.calls import Models
from sigline.trainer.training.memory import Memory

GIB = 2**30


@pytest.fixture(scope="module")
def tiny():
    tiny = config.tiny(config.load_recipe("siglip_demo"))
    return config.override(tiny, ["image.depth=1", "text.depth=1"])


def _size(variables):
    return sum(int(np.prod(x.shape)) * x.dtype.size for x in tf.nest.flatten(variables))


@pytest.mark.parametrize(
    "assignments",
    [
        ["optimizer.first_moment_dtype=bfloat16", "optimizer.ema_decay=0.9"],
        ["optimizer.name=adafactor"],
        ["optimizer.name=lion", 'optimizer.rates=[["image/.*", null], [".*", 1]]'],
    ],
    ids=str,
)
def test_bytes_are_those_of_the_variables_that_are_made(tiny, assignments):
    settings = config.override(tiny, assignments)
    state = start.make_state(Models.of(settings, two_tower.build(settings)))
    found = memory.state_bytes(settings)
    assert found.parameters == _size(state.parameters)
    assert found.slots == _size(state.slots) > 0
    assert found.averages == _size(state.ema)
    assert (found.averages > 0) == (settings.optimizer.ema_decay is not None)
    assert found.total == found.parameters + found.slots + found.averages


@pytest.mark.parametrize("replicas", [1, 3])
def test_state_is_refused_only_where_it_cannot_fit(tiny, monkeypatch, replicas):
    needed = replicas * memory.state_bytes(tiny).total
    default = tf.distribute.get_strategy()
    for size in (needed, needed - 1):
        known = Memory("a device of a TPU v4-8", size, replicas)
        monkeypatch.setattr(memory, "memory_of", lambda strategy, known=known: known)
        if size == needed:
            memory.check_fits(tiny, default)
    several = r" on each of 3 replicas" if replicas == 3 else ""
    message = rf"does not fit: it takes 0\.0 GiB{several} \(parameters .* a TPU v4-8 has 0\.0 GiB"
    with pytest.raises(ValueError, match=message):
        memory.check_fits(tiny, default)


def test_nothing_is_refused_where_the_memory_is_not_known(monkeypatch):
    devices = lambda kind: ["GPU:0"] if kind == "GPU" else []  # noqa: E731
    monkeypatch.setattr(tf.config, "list_logical_devices", devices)
    default = tf.distribute.get_strategy()
    assert memory.memory_of(default) is None
    memory.check_fits(config.load_recipe("vit_22b"), default)


@pytest.mark.parametrize(
    ("kind", "gib"),
    [
        ("v2-8", 8),
        ("v3-32", 16),
        ("v4-8", 32),
        ("v5litepod-16", 16),
        ("v5p-128", 95),
        ("v6e-8", 32),
        ("v99x-8", None),
        ("tpu", None),
        ("", None),
    ],
)
def test_memory_of_tpus_by_kind(kind, gib):
    found = memory.tpu_memory(kind)
    assert (None if found is None else found.size / GIB) == gib


def test_memory_of_a_tpu_comes_from_the_environment(monkeypatch):
    class _Tpu(tf.distribute.TPUStrategy):
        def __init__(self):
            """Needs no TPU."""

    monkeypatch.setenv("TPU_ACCELERATOR_TYPE", "v4-8")
    assert memory.memory_of(_Tpu()) == Memory("a device of a TPU v4-8", 32 * GIB)
    monkeypatch.delenv("TPU_ACCELERATOR_TYPE")
    assert memory.memory_of(_Tpu()) is None


def test_replicas_on_a_cpu_share_the_machine(monkeypatch):
    monkeypatch.setattr(memory, "_host_bytes", lambda: 64 * GIB)
    monkeypatch.setattr(strategies, "num_local_replicas", lambda strategy: 2)
    found = memory.memory_of(tf.distribute.get_strategy())
    assert found == Memory("this machine", 64 * GIB, 2)


def test_memory_of_the_machine_is_no_less_than_the_kernel_says(tmp_path, monkeypatch):
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(memory, "_CGROUP_LIMITS", (str(limit), str(tmp_path / "none")))
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    whole = memory._host_bytes()
    assert whole >= total
    limit.write_text("max\n")
    assert memory._host_bytes() == whole
    limit.write_text(f"{total // 2}\n")
    assert memory._host_bytes() == whole - total + total // 2
