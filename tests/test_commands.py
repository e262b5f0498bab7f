"""The table of commands: one file each, which anybody can read off `cli.py`."""

import argparse
import ast
import subprocess
import sys
from pathlib import Path

import pytest

from sigline import cli

COMMANDS = Path(__file__).resolve().parents[1] / "sigline" / "commands"
# What several commands share.
SHARED = {"__init__", "claims", "dataclass_options", "judged_data", "loading"}


def _defines_a_command(path):
    tree = ast.parse(path.read_text())
    return any(isinstance(x, ast.FunctionDef) and x.name == "add_parser" for x in tree.body)


def test_every_file_of_a_command_is_in_the_table():
    files = {path.stem for path in COMMANDS.glob("*.py")} - SHARED
    assert files == {module.__name__.rpartition(".")[2] for module in (*cli._DATA, *cli._COMMANDS)}
    assert all(_defines_a_command(COMMANDS / f"{name}.py") for name in files)
    assert not any(_defines_a_command(COMMANDS / f"{name}.py") for name in SHARED)


@pytest.mark.parametrize("module", [*cli._DATA, *cli._COMMANDS], ids=lambda x: x.__name__)
def test_every_command_runs_something(module):
    parser = argparse.ArgumentParser()
    before = parser.add_subparsers()
    module.add_parser(before)
    assert before.choices

    def _leaves(one):
        below = [x for x in one._actions if isinstance(x, argparse._SubParsersAction)]
        return [y for x in below for c in x.choices.values() for y in _leaves(c)] or [one]

    for leaf in _leaves(parser):
        assert callable(leaf.get_default("run")), leaf.prog


def test_help_loads_none_of_the_large_libraries():
    code = """
import sys
from sigline import cli
cli._parser()
loaded = {name.split(".")[0] for name in sys.modules}
print(sorted(loaded & {"numpy", "tensorflow", "apache_beam", "tfx", "grpc", "kfp", "yaml"}))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
