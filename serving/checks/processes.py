"""Processes that begin with TensorFlow and the server imported, as forks of one that only imports.

Importing takes several times as long as loading and asking a small model does, and one that is to
be served is looked at by several processes. What they are forked from has run no operation and
opened no channel, so no thread of TensorFlow's or gRPC's is lost; and it knows no more of a model
than a new interpreter does.
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
    """Begins to import beside this process, so that the first process need not wait for it."""
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
    """Whether a fork of this process is as good: it has imported all that is needed, and its only
    thread is this one, so it has run no operation and opened no channel.
    """
    return _PRELOADED[0] in sys.modules and len(os.listdir("/proc/self/task")) == 1


@contextlib.contextmanager
def _no_main() -> Iterator[None]:
    """Hides the script that this process runs, which multiprocessing would import in the other.

    It may import TFX, or do its work without asking for its name.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


class ModuleProcess:
    """`python -m MODULE ARGUMENTS`, with what of `subprocess.Popen` is needed of it.

    Attributes:
        pid: Its number.
        stdin: Where to write to its standard input; it sees the end when this process ends.
        stdout: Its standard output.
        stderr: Its standard error; None if it goes to a file.
    """

    def __init__(self, module: str, arguments: list[str], errors: IO[bytes] | None = None):
        """Starts it.

        Args:
            module: A module that can be run.
            arguments: Its arguments.
            errors: File for its standard error; a pipe by default.
        """
        standard_input, write = os.pipe()
        read, output = os.pipe()
        theirs = [Connection(standard_input, writable=False), Connection(output, readable=False)]
        self.stderr: IO[bytes] | None = None
        if errors is None:
            read_errors, write_errors = os.pipe()
            self.stderr = os.fdopen(read_errors, "rb")
        else:
            write_errors = os.dup(errors.fileno())
        theirs.append(Connection(write_errors, readable=False))
        self.stdin: IO[bytes] = os.fdopen(write, "wb", buffering=0)
        self.stdout: IO[bytes] = os.fdopen(read, "rb")
        self._process = _context().Process(
            target=_run, args=(module, arguments, dict(os.environ), os.getcwd(), *theirs)
        )
        try:
            with _no_main():
                self._process.start()
        finally:
            for one in theirs:
                one.close()
        assert self._process.pid is not None
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        """Exit code, negative if a signal ended it; None while it runs."""
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
            subprocess.TimeoutExpired: If it still runs after so many seconds.
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
    """Becomes the process of a module's own."""
    for number, connection in enumerate(standard):
        os.dup2(connection.fileno(), number)
        connection.close()
    # What multiprocessing has put there is empty.
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
    # Libraries of the stack end threads in destructors, which can abort a process at its end.
    os._exit(code)
