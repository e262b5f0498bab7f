"""Variants of a benchmark in processes of their own, asked in turn."""

import json
import os
import subprocess
import sys


def start(script: str, threads: int, *arguments: object) -> subprocess.Popen:
    """Starts a script that answers each line on its standard input by a line of JSON."""
    return subprocess.Popen(
        [sys.executable, script, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": str(threads)},
    )


def answer(values: dict) -> None:
    """Prints an answer."""
    print(json.dumps(values), flush=True)


def read(process: subprocess.Popen, name: str) -> dict:
    """Returns the next answer of a process.

    Raises:
        RuntimeError: If it ends before.
    """
    assert process.stdout is not None
    # Libraries may print lines of their own.
    for line in process.stdout:
        if line.startswith("{"):
            return json.loads(line)
    raise RuntimeError(
        f"{name} ended with code {process.wait()} before it answered; what it printed is above. "
        "Code -9: the system ran out of memory."
    )


def rounds(processes: dict[str, subprocess.Popen], count: int) -> dict[str, list[dict]]:
    """Asks each process once a round, one after the other; returns the answers, and ends them."""
    answers: dict[str, list[dict]] = {name: [] for name in processes}
    for _ in range(count):
        for name, process in processes.items():
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.flush()
            answers[name].append(read(process, name))
    for process in processes.values():
        assert process.stdin is not None
        process.stdin.close()
        process.wait()
    return answers


def stub_torchvision() -> None:
    """Lets torchvision be imported beside a torch for CPUs, which its operators do not load with.

    Its transforms, which open_clip imports, need none of them; registering gradients needs names.
    """
    import torch

    global _torchvision
    _torchvision = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        _torchvision.define(f"{name}(Tensor boxes, Tensor scores, float threshold) -> Tensor")
