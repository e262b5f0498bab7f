"""Processes that begin with TFX and sigline's components imported, as forks of one server process.

Importing them takes longer than most tasks of a small pipeline do. The server only imports: it has
no thread of TensorFlow's or gRPC's that a fork would lose.
"""

import multiprocessing
import multiprocessing.context
import os
import sys
from collections.abc import Mapping
from multiprocessing import forkserver
from pathlib import Path

_PRELOADED = "sigline.pipeline.kubeflow.preloaded"


def context() -> multiprocessing.context.ForkServerContext:
    """Returns what starts such processes; the first one waits for the imports."""
    forkserver = multiprocessing.get_context("forkserver")
    forkserver.set_forkserver_preload([_PRELOADED])
    return forkserver


def prepare() -> None:
    """Begins to import beside this process; whoever starts such processes then finds the server.

    A process has one server of this kind, with what the first one that asked for it imports.
    """
    context()
    forkserver.ensure_running()


def become(
    argv: list[str], variables: Mapping[str, str], *, output: str | Path, errors: str | Path = ""
) -> None:
    """Gives a process of this kind what a command of its own would have.

    Args:
        argv: The name of the program and its arguments.
        variables: All environment variables.
        output: File for its standard output; it is written anew.
        errors: File for its standard error, too; by default it goes where the output goes.
    """
    _write_to(output, 1)
    if errors:
        _write_to(errors, 2)
    else:
        os.dup2(1, 2)
    os.environ.clear()
    os.environ.update(variables)
    sys.argv = argv


def _write_to(path: str | Path, number: int) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(descriptor, number)
    os.close(descriptor)
