"""Compiles StableHLO for a TPU topology with libtpu, with no TPU, and prints its accounting.

Runs in the environment of this folder. Uses private parts of JAX: its version is pinned.
"""

import argparse
import json
import os
import re
import time
from importlib import metadata
from pathlib import Path

os.environ.update(
    TPU_SKIP_MDS_QUERY="1",
    JAX_PLATFORMS="cpu",
    TPU_ACCELERATOR_TYPE="v4-8",
    TPU_WORKER_HOSTNAMES="localhost",
    # A second process may use libtpu at the same time.
    ALLOW_MULTIPLE_LIBTPU_LOAD="1",
)

import jax
import numpy as np
from jax._src import compiler
from jax._src.interpreters import mlir
from jax._src.lib import _jax
from jax._src.lib.mlir import ir
from jax.experimental import topologies

COLLECTIVES = ("collective-permute", "all-gather", "all-reduce", "reduce-scatter", "all-to-all")
GIB = 2.0**30


def topology_devices(name: str):
    """Returns the chips of a topology such as `v4:2x2x4`, two cores as one device."""
    bounds = tuple(int(x) for x in name.split(":")[1].split("x"))
    hosts = (*(min(2, x) for x in bounds[:2]), 1)
    description = topologies.get_topology_desc(
        platform="tpu",
        topology_name=name,
        chip_config_name="megacore",
        chips_per_host_bounds=hosts,
        num_slices=1,
    )
    return description.devices


def compile_text(text: str, topology: str):
    """Returns the executable of a program that every chip of the topology runs."""
    devices = topology_devices(topology)
    assignment = np.array([[device.id] for device in devices])
    options = compiler.get_compile_options(
        num_replicas=len(devices), num_partitions=1, device_assignment=assignment
    )
    with mlir.make_ir_context():
        module = ir.Module.parse(text)
        return devices[0].client.compile(
            module, executable_devices=_jax.DeviceList(tuple(devices)), compile_options=options
        )


def account(executable) -> dict[str, object]:
    """Returns memory in GiB and FLOPs of one chip, and the collectives in the compiled program."""
    memory = executable.get_compiled_memory_stats()
    cost = executable.cost_analysis()
    cost = cost[0] if isinstance(cost, list) else cost
    hlo = executable.hlo_modules()[0].to_string()
    return {
        "argument_gib": memory.argument_size_in_bytes / GIB,
        "output_gib": memory.output_size_in_bytes / GIB,
        "alias_gib": memory.alias_size_in_bytes / GIB,
        "temp_gib": memory.temp_size_in_bytes / GIB,
        "peak_gib": memory.peak_memory_in_bytes / GIB,
        "flops": cost["flops"],
        "collectives": {
            name: len(re.findall(rf" {name}(?:-start)?\(", hlo)) for name in COLLECTIVES
        },
        "hlo": hlo,
    }


def main() -> None:
    """Compiles one program; writes its HLO and its accounting."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("program", type=Path, help="StableHLO text")
    parser.add_argument("--topology", required=True)
    parser.add_argument("--output", type=Path, required=True, help="JSON; the HLO lies beside it")
    arguments = parser.parse_args()
    started = time.perf_counter()
    result: dict[str, object] = {
        "topology": arguments.topology,
        "jax": jax.__version__,
        "libtpu": metadata.version("libtpu"),
    }
    try:
        executable = compile_text(arguments.program.read_text(), arguments.topology)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        result["out_of_memory"] = str(error).splitlines()[0]
    else:
        result |= account(executable)
        arguments.output.with_suffix(".hlo").write_text(str(result.pop("hlo")))
    result["compile_seconds"] = time.perf_counter() - started
    scratch = arguments.output.with_suffix(".tmp")
    scratch.write_text(json.dumps(result, indent=1))
    os.replace(scratch, arguments.output)


if __name__ == "__main__":
    main()
