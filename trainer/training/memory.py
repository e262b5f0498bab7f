"""Whether a run's state fits on a device, before any of it is made.

Every replica holds the whole state: `tf.distribute` has no model parallelism. What a step needs
besides, gradients and activations, is not counted, so that nothing is refused which fits.
"""

import os
import re
from pathlib import Path
from typing import NamedTuple

import tensorflow as tf

from sigline.trainer.config import TrainConfig
from sigline.trainer.models.specs import parameter_specs
from sigline.trainer.training import optimizers, strategies
from sigline.trainer.training.state import trained_names

_GIB = 2**30
# GiB of memory of what TensorFlow takes for one device: a core of the first kinds, a chip of the
# others. As published; a little less is free (30.75 GiB of a v4).
_TPU_GIB = {"v2": 8, "v3": 16, "v4": 32, "v5litepod": 16, "v5p": 95, "v6e": 32}
# Cloud TPU sets it on its machines, such as `v4-8`.
_TPU_VARIABLE = "TPU_ACCELERATOR_TYPE"
# Limits of a container's memory, of the two versions of control groups.
_CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


class StateBytes(NamedTuple):
    """Bytes of the state on one replica.

    Attributes:
        parameters: Of all parameters of the model, frozen ones too.
        slots: Of what the optimizer keeps for those that are trained.
        averages: Of their moving averages; 0 where none are kept.
    """

    parameters: int
    slots: int
    averages: int

    @property
    def total(self) -> int:
        """All of them."""
        return sum(self)


class Memory(NamedTuple):
    """Memory that replicas share.

    Attributes:
        name: What has it, for messages.
        size: Bytes; no less than what a program can get of it.
        replicas: How many of the run's replicas share it.
    """

    name: str
    size: int
    replicas: int = 1


def state_bytes(config: TrainConfig) -> StateBytes:
    """Returns the bytes of a run's state on one replica, without making any of it.

    Layers of objectives, of which none has any yet, are not counted.
    """
    specs = parameter_specs(config)
    trained = trained_names(specs, config)
    shapes = optimizers.shapes({name: specs[name].shape for name in trained}, config)
    slots = (
        slot
        for shape in shapes.values()
        for slot in optimizers.slot_specs(shape, config.optimizer).values()
    )
    averaged = trained if config.optimizer.ema_decay is not None else []
    return StateBytes(
        parameters=sum(map(_bytes, specs.values())),
        slots=sum(map(_bytes, slots)),
        averages=sum(_bytes(specs[name]) for name in averaged),
    )


def _bytes(spec: tf.TensorSpec) -> int:
    return spec.shape.num_elements() * spec.dtype.size


def check_fits(config: TrainConfig, strategy: tf.distribute.Strategy) -> None:
    """Checks that the state fits into the memory of the strategy's devices, where that is known.

    Raises:
        ValueError: If it does not; the message has the numbers.
    """
    memory = memory_of(strategy)
    if memory is None:
        return
    state = state_bytes(config)
    if state.total * memory.replicas <= memory.size:
        return
    parts = f"parameters {_gib(state.parameters)}, slots of {config.optimizer.name} "
    parts += f"{_gib(state.slots)}, moving averages {_gib(state.averages)}"
    held = "" if memory.replicas == 1 else f" on each of {memory.replicas} replicas"
    raise ValueError(
        f"The run's state does not fit: it takes {_gib(state.total)}{held} ({parts}), before "
        f"gradients and activations, and {memory.name} has {_gib(memory.size)}. Each replica holds "
        "all of it, since tf.distribute has no model parallelism, so more devices do not help. "
        "Choose a smaller model, freeze parts of it by optimizer.rates, or save bytes by "
        "optimizer.name=adafactor and optimizer.first_moment_dtype=bfloat16. "
        f"Received: recipe={config.name}, optimizer.name={config.optimizer.name}, "
        f"optimizer.first_moment_dtype={config.optimizer.first_moment_dtype}"
    )


def _gib(size: int) -> str:
    return f"{size / _GIB:,.1f} GiB"


def memory_of(strategy: tf.distribute.Strategy) -> Memory | None:
    """Returns the memory that holds a replica's state; None where its size is not known."""
    if isinstance(strategy, tf.distribute.TPUStrategy):
        return tpu_memory(os.environ.get(_TPU_VARIABLE, ""))
    if tf.config.list_logical_devices("GPU"):
        # TensorFlow does not say how much memory a GPU has.
        return None
    return Memory("this machine", _host_bytes(), strategies.num_local_replicas(strategy))


def tpu_memory(kind: str) -> Memory | None:
    """Returns the memory of a TPU of a kind such as `v4-8`; None if it is not known."""
    match = re.fullmatch(r"(v\d+[a-z]*)-\d+", kind)
    if match is None or match[1] not in _TPU_GIB:
        return None
    return Memory(f"a device of a TPU {kind}", _TPU_GIB[match[1]] * _GIB)


def _host_bytes() -> int:
    """Returns the memory that programs on this machine can get, swap space included."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    kib = {line.split(":")[0]: int(line.split()[1]) for line in lines}
    total = 1024 * kib["MemTotal"]
    for path in map(Path, _CGROUP_LIMITS):
        if path.exists() and (limit := path.read_text().strip()).isdigit():
            total = min(total, int(limit))
    return total + 1024 * kib["SwapTotal"]
