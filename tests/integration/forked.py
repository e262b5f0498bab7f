"""Commands in processes that have imported TFX already, for tests that start many of them."""

import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path

from sigline.pipeline.kubeflow import preloading


class Forked:
    """A command in a process and a session of its own; what of `subprocess.Popen` tests need."""

    def __init__(
        self,
        argv: list[str],
        folder: Path,
        *,
        cwd: Path | None = None,
        variables: Mapping[str, str] | None = None,
    ):
        """Starts it.

        Args:
            argv: `sigline`, `tfx`, `-c` and code, or the path of a script; and arguments.
            folder: Where files with its output go.
            cwd: Its working folder.
            variables: All environment variables; by default those of this process.
        """
        number = len(list(folder.glob("*.out")))
        self._output, self._errors = folder / f"{number}.out", folder / f"{number}.err"
        self._output.touch()
        arguments = (
            argv,
            str(cwd or Path.cwd()),
            dict(os.environ if variables is None else variables),
        )
        self._process = preloading.context().Process(
            target=_run, args=(*arguments, str(self._output), str(self._errors))
        )
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        """The exit code, negative if a signal ended it; None while it runs."""
        return self._process.exitcode

    def poll(self) -> int | None:
        """Returns the exit code if it has ended."""
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        """Sends a signal to the process."""
        os.kill(self.pid, number)

    def kill(self) -> None:
        """Kills it and its children, if it runs."""
        if self.poll() is None:
            os.killpg(self.pid, signal.SIGKILL)

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Waits for its end and returns what it has printed."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired(str(self._output), timeout or 0.0)
        errors = self._errors.read_text() if self._errors.exists() else ""
        return self._output.read_text(), errors


def _run(argv: list[str], cwd: str, variables: dict[str, str], output: str, errors: str) -> None:
    os.setsid()
    preloading.become(argv, variables, output=output, errors=errors)
    os.chdir(cwd)
    # What Python does at its own start.
    sys.path[:0] = [path for path in variables.get("PYTHONPATH", "").split(os.pathsep) if path]
    code = 1
    try:
        code = _main(argv)
    except SystemExit as stopped:
        code = stopped.code if isinstance(stopped.code, int) else int(stopped.code is not None)
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    # As `run_task` ends: libraries of the stack end threads in destructors, which can abort.
    os._exit(code)


def _main(argv: list[str]) -> int:
    if argv[0] == "sigline":
        from sigline import cli

        return cli.main(argv[1:])
    if argv[0] == "tfx":
        from tfx.tools.cli.cli_main import cli_group

        cli_group()
        return 0
    if argv[0] == "-c":
        sys.argv = ["-c", *argv[2:]]
        exec(compile(argv[1], "<code>", "exec"), {"__name__": "__main__"})
        return 0
    import runpy

    sys.path.insert(0, str(Path(argv[0]).parent))
    runpy.run_path(argv[0], run_name="__main__")
    return 0
