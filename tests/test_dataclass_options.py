"""Options that mirror dataclasses: types, defaults and descriptions are those of the class."""

import argparse
import dataclasses
import importlib
import sys
from pathlib import Path
from typing import Any

import pytest

from sigline import cli
from sigline.commands import dataclass_options, fetch
from sigline.commands.dataclass_options import add_options, from_arguments
from sigline.components.fetch.fetcher import FetchConfig
from sigline.components.ingest.sources import SourceConfig

# A module as those of the package: read by `add_options` from its source.
MODULE = '''
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sigline.schemas import record

SIZE = 2**4


@dataclass(frozen=True)
class Plan:
    """How it goes.

    Attributes:
        rows: Most rows, 100 % of
            which count; fewer are fine. A second sentence.
        max_bytes: REST bodies.
        seconds: A wait.
        name: What it is called.
        path: X-Robots file.
        limit: Most of all, by default computed.
        merge: Whether it merges.
        loud: Whether it is loud.
        splits: Splits to take.
        sizes: Sizes to try.
        rest: No option.

    Raises:
        other: No attribute.
    """

    rows: int = SIZE * 4
    max_bytes: int = 3 * 2**20
    seconds: float = 2.0
    name: str = ""
    path: Path | None = None
    limit: int = field(default_factory=lambda: 7)
    merge: bool = True
    loud: bool = False
    splits: tuple[str, ...] = record.SPLITS
    sizes: Sequence[int] = ()
    rest: dict[str, int] | None = None
    bare: int = 1

    def __post_init__(self):
        if self.rows < 1:
            raise ValueError("rows must be at least 1.")
'''
FIELDS = (
    *("rows", "max_bytes", "seconds", "name", "path", "limit", "merge", "loud", "splits"),
    "sizes",
)


@pytest.fixture
def plans(tmp_path, monkeypatch):
    """The module."""
    (tmp_path / "plans_of_a_test.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "plans_of_a_test", raising=False)
    dataclass_options._read.cache_clear()
    return importlib.import_module("plans_of_a_test")


def _parser(**settings):
    parser = argparse.ArgumentParser()
    add_options(parser, "plans_of_a_test.Plan", FIELDS, **settings)
    return parser


class _Noted:
    """Passes options on to a parser, and notes them."""

    def __init__(self, parser):
        self._parser, self.actions = parser, []

    def add_argument(self, *names, **settings):
        self.actions.append(self._parser.add_argument(*names, **settings))


def _generated():
    """Returns what the commands generate: the class, the prefix and the action of each option."""
    options = []

    def note(parser, source, *names, prefix="", **settings):
        noted: Any = _Noted(parser)
        add_options(noted, source, *names, prefix=prefix, **settings)
        options.extend((source, prefix, action) for action in noted.actions)

    with pytest.MonkeyPatch.context() as patch:
        for module in (*cli._DATA, *cli._COMMANDS):
            if hasattr(module, "add_options"):
                patch.setattr(module, "add_options", note)
        cli._parser()
    return options


GENERATED = _generated()


def _class(source):
    module, _, name = source.rpartition(".")
    return getattr(importlib.import_module(module), name)


def test_commands_generate_their_options():
    sources = {source.rpartition(".")[2] for source, _, _ in GENERATED}
    assert sources == {
        *("ServerConfig", "Limits", "BatchingConfig", "Tls", "ClientTls", "SourceConfig"),
        *("FetchConfig", "CurateConfig", "IndexConfig", "Access"),
    }


@pytest.mark.parametrize(
    ("source", "prefix", "action"),
    GENERATED,
    ids=[f"{source.rpartition('.')[2]}{x.option_strings[0]}" for source, _, x in GENERATED],
)
def test_option_has_the_default_of_its_field(source, prefix, action):
    name = action.dest.removeprefix(prefix)
    field = {item.name: item for item in dataclasses.fields(_class(source))}[name]
    # The class fills in what the command line does not name.
    assert action.default is None
    read = dataclass_options._read(source).default_of(name)
    if field.default is dataclasses.MISSING:
        assert read is None
        assert not action.help.endswith(" by default")
    else:
        assert read == field.default
        if field.default not in (None, False, "", ()):
            assert action.help.endswith(" by default")


SERVE, KUBEFLOW = "serve --base-path x", "kubeflow status run"
FETCH, SELECT = "data fetch --input i --output o", "data select --data d --output o"
INDEX, ASK = "index --model m --data d --output o", "ask text"


@pytest.mark.parametrize(
    ("command", "name", "words", "values"),
    [
        (SERVE, "Limits", "", {}),
        (
            SERVE,
            "Limits",
            "--max-items 3 --timeout-seconds 2",
            {"max_items": 3, "timeout_seconds": 2},
        ),
        (SERVE, "BatchingConfig", "", {}),
        (
            SERVE,
            "BatchingConfig",
            "--max-batch-size 8 --no-merge-images",
            {"max_batch_size": 8, "merge_images": False},
        ),
        (SERVE, "ServerConfig", "", {}),
        (
            SERVE,
            "ServerConfig",
            "--host h --port 0 --health-port 1 --no-one-core --allow-host a --allow-host b "
            "--allow-reload --grace-seconds 0 --api-key-file f",
            {
                **{"host": "h", "port": 0, "health_port": 1, "one_core": False},
                **{"allow_hosts": ("a", "b"), "allow_reload": True, "grace_seconds": 0},
                "api_key_file": Path("f"),
            },
        ),
        (SERVE, "Tls", "--tls-certificate c --tls-key k", {}),
        (FETCH, "FetchConfig", "", {}),
        (
            FETCH,
            "FetchConfig",
            "--timeout 1 --host-interval 2 --allow-network 10.0.0.0/8",
            {"timeout_s": 1, "host_interval_s": 2, "allowed_networks": ("10.0.0.0/8",)},
        ),
        (FETCH, "SourceConfig", "", {}),
        (
            FETCH,
            "SourceConfig",
            "--url-column u --caption-column a --caption-column b --columns u a b --quoting none",
            {
                **{"image": "u", "caption": ("a", "b"), "columns": ("u", "a", "b")},
                "quoting": "none",
            },
        ),
        (SELECT, "CurateConfig", "", {}),
        (SELECT, "CurateConfig", "--target-stop 0 --seed 3", {"target_stop": 0, "seed": 3}),
        (INDEX, "IndexConfig", "", {}),
        (
            INDEX,
            "IndexConfig",
            "--kind faiss --split a --no-thumbnails",
            {"kind": "faiss", "splits": ("a",), "thumbnails": False},
        ),
        (KUBEFLOW, "Access", "", {}),
        (KUBEFLOW, "Access", "--host h --in-cluster", {"host": "h", "in_cluster": True}),
        (ASK, "ClientTls", "", {}),
        (ASK, "ClientTls", "--tls-ca c", {"ca": Path("c")}),
    ],
)
def test_commands_build_their_classes(command, name, words, values):
    source, prefix = next(x[:2] for x in GENERATED if x[0].endswith(f".{name}"))
    # What has no default, or comes from elsewhere.
    rest = {
        "ServerConfig": {"models": (), "rest_port": 9},
        "Tls": {"certificate": Path("c"), "key": Path("k")},
    }.get(name, {})
    arguments = cli._parser().parse_args([*command.split(), *words.split()])
    others = rest if name == "ServerConfig" else {}
    built = from_arguments(_class(source), arguments, prefix=prefix, **others)
    assert built == _class(source)(**rest, **values)


def test_help_is_the_first_sentence_of_the_attribute(plans):
    helps = {action.dest: action.help for action in _parser()._actions}
    assert helps["rows"] == "most rows, 100 %% of which count; fewer are fine; 64 by default"
    assert helps["max_bytes"] == "REST bodies; 3 MiB by default"
    assert helps["seconds"] == "a wait; 2 by default"
    assert helps["name"] == "what it is called"
    assert helps["path"] == "X-Robots file"
    assert helps["limit"] == "most of all, by default computed"
    assert helps["merge"] == "whether it merges; yes by default"
    assert helps["loud"] == "whether it is loud"
    assert helps["splits"] == "splits to take; repeat it; train and eval by default"
    assert "most rows, 100 % of which count" in " ".join(_parser().format_help().split())


def test_round_trip(plans):
    words = ["--rows", "3", "--max-bytes", "9", "--seconds", "0.5", "--name", "a", "--path", "b/c"]
    words += ["--limit", "2", "--no-merge", "--loud", "--splits", "x", "--splits", "y"]
    words += ["--sizes", "1", "--sizes", "2"]
    built = from_arguments(plans.Plan, _parser().parse_args(words))
    assert built == plans.Plan(3, 9, 0.5, "a", Path("b/c"), 2, False, True, ("x", "y"), (1, 2))
    assert from_arguments(plans.Plan, _parser().parse_args([])) == plans.Plan()


def test_zero_and_empty_are_values(plans):
    words = ["--seconds", "0", "--limit", "0", "--path", ""]
    built = from_arguments(plans.Plan, _parser().parse_args(words))
    assert (built.seconds, built.limit, built.path) == (0, 0, Path())


def test_flag_says_yes_and_one_that_is_on_says_no(plans):
    assert from_arguments(plans.Plan, _parser().parse_args(["--loud"])).loud
    assert not from_arguments(plans.Plan, _parser().parse_args(["--no-merge"])).merge
    assert from_arguments(plans.Plan, _parser().parse_args(["--merge"])).merge
    with pytest.raises(SystemExit):
        _parser().parse_args(["--no-loud"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--rows", "many"], "argument --rows: invalid int value: 'many'"),
        (["--seconds", "x"], "argument --seconds: invalid float value: 'x'"),
        (["--sizes", "x"], "argument --sizes: invalid int value: 'x'"),
        (["--limit"], "argument --limit: expected one argument"),
    ],
)
def test_wrong_type_is_said_with_the_option(plans, capsys, words, message):
    with pytest.raises(SystemExit):
        _parser().parse_args(words)
    assert message in capsys.readouterr().err


def test_an_option_may_differ_from_its_field(plans):
    parser = _parser(
        prefix="plan_",
        readers={int: lambda text: int(text) * 2},
        sizes={"option": "--size", "choices": (2, 4)},
        name={"help": "a name"},
    )
    arguments = parser.parse_args(["--plan-rows", "4", "--size", "1", "--plan-name", "n"])
    built = from_arguments(plans.Plan, arguments, prefix="plan_", limit=1)
    assert built == plans.Plan(rows=8, sizes=(2,), name="n", limit=1)
    helps = {action.dest: action.help for action in parser._actions}
    assert helps["plan_name"] == "a name"


def test_class_refuses_values(plans):
    with pytest.raises(ValueError, match="rows must be at least 1"):
        from_arguments(plans.Plan, _parser().parse_args(["--rows", "0"]))


@pytest.mark.parametrize(
    ("name", "fields", "changes", "message"),
    [
        ("Plan", ("bare",), {}, r"must document each field under `Attributes:`\. Received: bare"),
        ("Plan", ("nothing",), {}, "only must name fields of plans_of_a_test.Plan"),
        ("Plan", ("rest",), {}, r"rest must be of type bool, .*Received: dict\["),
        ("Plan", ("rows",), {"row": {}}, "changes must be for fields .*: rows. Received: row"),
        ("Plans", (), {}, "source must be the full name of a class.*Received: source="),
    ],
)
def test_field_that_can_have_no_option_is_refused(plans, name, fields, changes, message):
    with pytest.raises(ValueError, match=message):
        add_options(argparse.ArgumentParser(), f"plans_of_a_test.{name}", fields, **changes)


def test_all_fields_have_options_by_default(plans):
    with pytest.raises(ValueError, match="rest must be of type"):
        add_options(argparse.ArgumentParser(), "plans_of_a_test.Plan")


def test_fetch_reads_columns_and_delimiters_as_shells_pass_them_on(tmp_path):
    words = ["data", "fetch", "--input", str(tmp_path), "--output", str(tmp_path / "o")]
    words += ["--columns", "caption, url", "key", "--delimiter", r"\t", "--retries", "0"]
    settings = fetch._settings(cli._parser().parse_args(words))
    assert settings["source"] == SourceConfig(columns=("caption", "url", "key"), delimiter="\t")
    assert settings["config"] == FetchConfig(retries=0)
