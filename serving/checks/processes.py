"""Processes that start with TensorFlow and the server imported, by forking from a fork server.

Importing takes several times as long as loading and testing a small model, and a candidate is
checked by several processes. The fork server only imports: it has run no operation and opened no
channel, so forks miss no thread of TensorFlow or gRPC, and it has no state of a model that a new
interpreter would not have.
"""

import contextlib
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import traceback
import types
from collections.abc import Iterator
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from typing import IO

_PRELOADED = ["sigline.serving.checks.preloaded"]


def prepare() -> None:
    """Starts the fork server, so that its imports run in parallel with this process."""
    if not _is_clean():
        _context()
        forkserver.ensure_running()


def _context():
    if _is_clean():
        return multiprocessing.get_context("fork")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    return context


def _is_clean() -> bool:
    """Returns whether this process can be forked itself, without a fork server.

    It must have imported everything, and have this thread only, which shows that it has run no
    operation and opened no channel.
    """
    return _PRELOADED[0] in sys.modules and len(os.listdir("/proc/self/task")) == 1


@contextlib.contextmanager
def _no_main() -> Iterator[None]:
    """Hides the main script of this process, which multiprocessing would import in the new one.

    The script may import TFX, or lack the guard `if __name__ == "__main__"`.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


class ModuleProcess:
    """A process that runs `python -m MODULE ARGUMENTS`, with the needed part of `Popen`'s API.

    Attributes:
        pid: Its process id.
        stdin: Pipe to its standard input, which also ends when this process ends.
        stdout: Pipe from its standard output.
        stderr: Pipe from its standard error; None if that goes to a file.
    """

    def __init__(self, module: str, arguments: list[str], errors: IO[bytes] | None = None):
        """Starts the process.

        Args:
            module: Name of a module that can be run.
            arguments: Its command line arguments.
            errors: File for its standard error; a pipe by default.
        """
        standard_input, write = os.pipe()
        read, output = os.pipe()
        child_ends = [
            Connection(standard_input, writable=False),
            Connection(output, readable=False),
        ]
        self.stderr: IO[bytes] | None = None
        if errors is None:
            read_errors, write_errors = os.pipe()
            self.stderr = os.fdopen(read_errors, "rb")
        else:
            write_errors = os.dup(errors.fileno())
        child_ends.append(Connection(write_errors, readable=False))
        self.stdin: IO[bytes] = os.fdopen(write, "wb", buffering=0)
        self.stdout: IO[bytes] = os.fdopen(read, "rb")
        self._process = _context().Process(
            target=_run, args=(module, arguments, dict(os.environ), os.getcwd(), *child_ends)
        )
        try:
            with _no_main():
                self._process.start()
        finally:
            # Otherwise the pipes would not end with the process.
            for connection in child_ends:
                connection.close()
        assert self._process.pid is not None
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        """Exit code, negative if a signal killed it; None while it runs."""
        return self._process.exitcode

    def terminate(self) -> None:
        """Sends SIGTERM, if it runs."""
        self._process.terminate()

    def kill(self) -> None:
        """Sends SIGKILL, if it runs."""
        self._process.kill()

    def wait(self, timeout: float | None = None) -> int:
        """Returns the exit code.

        Raises:
            subprocess.TimeoutExpired: If it still runs after `timeout` seconds.
        """
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0.0)
        return self._process.exitcode

    def close(self) -> None:
        """Closes its pipes."""
        for pipe in (self.stdin, self.stdout, self.stderr):
            if pipe is not None:
                pipe.close()


def _run(
    module: str,
    arguments: list[str],
    variables: dict[str, str],
    folder: str,
    *standard: Connection,
) -> None:
    """Runs a module in the new process, with its own streams, environment and folder."""
    for number, connection in enumerate(standard):
        os.dup2(connection.fileno(), number)
        connection.close()
    # multiprocessing has replaced standard input with an empty file.
    sys.stdin = os.fdopen(0, closefd=False)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(variables)
    os.chdir(folder)
    sys.argv = [module, *arguments]
    code = 1
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    # Skips destructors: libraries end threads in theirs, which can abort the process at its end.
    os._exit(code)
