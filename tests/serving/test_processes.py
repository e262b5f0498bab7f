"""Processes forked from one that has imported TensorFlow act as commands of their own."""

import os
import signal
import subprocess

import pytest

from sigline.serving.checks.processes import ModuleProcess

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def modules(tmp_path_factory):
    """A folder with a module that says how it was started."""
    folder = tmp_path_factory.mktemp("modules")
    (folder / "shown.py").write_text(
        "import os, sys\n"
        "if __name__ == '__main__':\n"
        "    print(sys.argv[1:], os.environ['SHOWN'], 'tensorflow' in sys.modules, os.getcwd())\n"
        "    print('a reason', file=sys.stderr)\n"
        "    sys.stdout.flush()\n"
        "    rest = sys.stdin.read()\n"
        "    sys.exit(f'no {rest}' if rest else 3)\n"
    )
    (folder / "forking.py").write_text(
        "import os\n"
        "from sigline.serving.checks.processes import ModuleProcess\n"
        "if __name__ == '__main__':\n"
        "    child = ModuleProcess('forked_child', [])\n"
        "    print(os.getpid(), child.stdout.read().decode(), child.wait(60))\n"
    )
    (folder / "forked_child.py").write_text("import os\nprint(os.getppid(), end='')\n")
    return folder


@pytest.fixture
def start(modules, monkeypatch):
    monkeypatch.syspath_prepend(modules)
    monkeypatch.setenv("SHOWN", "here")
    monkeypatch.chdir(modules)
    started = []

    def _start(*arguments, errors=None, module="shown"):
        started.append(ModuleProcess(module, list(arguments), errors))
        return started[-1]

    yield _start
    for process in started:
        process.kill()
        process.wait(60)
        process.close()


def test_arguments_variables_folder_and_exit_code_are_those_of_a_command(start, modules):
    process = start("a", "b")
    process.stdin.close()
    assert process.wait(60) == 3 == process.returncode
    assert process.stdout.read().decode() == f"['a', 'b'] here True {modules}\n"
    assert process.stderr.read().decode() == "a reason\n"


def test_reason_that_a_module_ends_with_is_printed(start, tmp_path):
    with open(tmp_path / "errors", "w+b") as errors:
        process = start(errors=errors)
        assert process.stderr is None
        process.stdin.write(b"luck")
        process.stdin.close()
        assert process.wait(60) == 1
        errors.seek(0)
        assert errors.read() == b"a reason\nno luck\n"


def test_process_goes_on_until_it_is_stopped(start):
    process = start()
    process.stdout.readline()
    assert process.returncode is None
    assert os.getpgid(process.pid)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.01)
    process.terminate()
    assert process.wait(60) == -signal.SIGTERM


def test_process_that_has_all_imported_and_no_thread_is_forked_itself(start):
    process = start(module="forking")
    assert process.wait(60) == 0
    own, parent, code = map(int, process.stdout.read().split())
    assert own == process.pid == parent
    assert code == 0
