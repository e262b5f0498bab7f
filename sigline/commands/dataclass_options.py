"""Options that mirror fields of a dataclass, with its types, defaults and descriptions.

A dataclass is read from its source and not imported: the options of all commands are made for each
`sigline --help`, and some of the modules import TensorFlow.
"""

import argparse
import ast
import dataclasses
import importlib
import importlib.util
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    Instance = TypeVar("Instance", bound=DataclassInstance)

_TYPES = {"bool": bool, "int": int, "float": float, "str": str, "Path": Path}
_SEVERAL = re.compile(r"(?:tuple|Sequence)\[(\w+)(?:, \.\.\.)?\]")
_ATTRIBUTE = re.compile(r"^ {4}(\w+): (.+(?:\n {8}.+)*)", re.MULTILINE)
_SENTENCE_END = re.compile(r"\.(?: |$)")
_UNITS = ((2**20, "MiB"), (2**10, "KiB"))
# Modules that import nothing large, so that constants of theirs may be looked up.
_LIGHT = "sigline.schemas"


def add_options(
    parser: argparse._ActionsContainer,
    source: str,
    only: Sequence[str] = (),
    *,
    prefix: str = "",
    readers: Mapping[type, Callable[[str], Any]] = MappingProxyType({}),
    **changes: Mapping[str, Any],
) -> None:
    """Adds an option for each field of a dataclass.

    An option that the command line does not name is None, and `from_arguments` leaves its default
    to the class.

    Args:
        parser: The parser, or a group of its options.
        source: Module and name of the dataclass, such as `sigline.serving.server.requests.Limits`.
        only: Names of the fields; all of them if empty.
        prefix: What stands before the names of the fields in those of the options.
        readers: What reads a value from its text, by type, if not the type itself.
        changes: By field, arguments of `add_argument` to use instead; `option` is the option's
            name.

    Raises:
        ValueError: If a field does not exist, is not documented or has a type that no option has.
    """
    dataclass = _read(source)
    names = only or list(dataclass.nodes)
    if unknown := sorted(set(changes) - set(names)):
        raise ValueError(f"changes must be of fields with an option. Received: {unknown[0]}")
    for name in names:
        kind, several = dataclass.type_of(name)
        default = dataclass.default_of(name)
        change = dict(changes.get(name, {}))
        option = change.pop("option", f"--{prefix}{name}".replace("_", "-"))
        settings: dict[str, Any] = {"dest": prefix + name, "default": None}
        if kind is bool:
            settings["action"] = argparse.BooleanOptionalAction if default is True else "store_true"
        else:
            settings["type"] = readers.get(kind, kind)
            settings["action"] = "append" if several else "store"
            if "choices" not in change:
                settings["metavar"] = option.lstrip("-").replace("-", "_").upper()
        settings |= {"help": dataclass.help_of(name), **change}
        parts = [settings["help"], "repeat it" if settings["action"] == "append" else ""]
        parts.append(f"{text} by default" if (text := _shown(name, default)) else "")
        settings["help"] = "; ".join(part for part in parts if part).replace("%", "%%")
        parser.add_argument(option, **settings)


def from_arguments(
    cls: "type[Instance]", arguments: argparse.Namespace, *, prefix: str = "", **values: Any
) -> "Instance":
    """Builds a dataclass from its options that the command line names, and from other values.

    Raises:
        ValueError: If the class refuses a value.
    """
    for item in dataclasses.fields(cls):
        value = getattr(arguments, prefix + item.name, None)
        if value is not None and item.name not in values:
            values[item.name] = tuple(value) if isinstance(value, list) else value
    return cls(**values)


class _Dataclass:
    """The source of a dataclass.

    Attributes:
        nodes: Its fields by name.
    """

    def __init__(self, source: str, text: str, node: ast.ClassDef):
        self._source, self._text = source, text
        self.nodes = {
            item.target.id: item
            for item in node.body
            if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)
        }
        section = (ast.get_docstring(node) or "").partition("Attributes:\n")[2]
        # Another section begins at the margin.
        self._texts = dict(_ATTRIBUTE.findall(re.split(r"\n(?=\S)", section)[0]))

    def type_of(self, name: str) -> tuple[type, bool]:
        """Returns the type of a field's value, or of each of its values, and if it has several."""
        if name not in self.nodes:
            raise ValueError(f"only must name fields of {self._source}. Received: {name}")
        text = ast.unparse(self.nodes[name].annotation)
        word = text.removesuffix(" | None")
        several = _SEVERAL.fullmatch(word)
        kind = _TYPES.get(several[1] if several else word)
        if kind is None:
            raise ValueError(f"{name} must have a type that an option has. Received: {text}")
        return kind, several is not None

    def default_of(self, name: str) -> Any:
        """Returns the default of a field; None where it has none, or a function computes it."""
        value = self.nodes[name].value
        try:
            return None if value is None else self._evaluated(value)
        except NameError:
            return None

    def _evaluated(self, node: ast.expr) -> Any:
        names = {item.id for item in ast.walk(node) if isinstance(item, ast.Name)}
        scope = {"__builtins__": {}, **{name: self._constant(name) for name in names}}
        # As importing the module does.
        return eval(compile(ast.Expression(node), self._source, "eval"), scope)

    def _constant(self, name: str) -> Any:
        if line := re.search(rf"^{name} = (.+)$", self._text, re.MULTILINE):
            return self._evaluated(ast.parse(line[1], mode="eval").body)
        if re.search(rf"^from {_LIGHT} import .*\b{name}\b", self._text, re.MULTILINE):
            return importlib.import_module(f"{_LIGHT}.{name}")
        raise NameError(name)

    def help_of(self, name: str) -> str:
        """Returns the first sentence that `Attributes:` has of a field, as a help text."""
        if name not in self._texts:
            raise ValueError(f"{self._source} must document its fields. Received: {name}")
        sentence = _SENTENCE_END.split(" ".join(self._texts[name].split()), maxsplit=1)[0]
        word = sentence.split()[0]
        # Words such as REST keep their capitals.
        return word[0].lower() + sentence[1:] if word[1:].islower() or len(word) == 1 else sentence


@cache
def _read(source: str) -> _Dataclass:
    module, _, name = source.rpartition(".")
    spec = importlib.util.find_spec(module)
    text = Path(spec.origin).read_text("utf-8") if spec and spec.origin else ""
    # Parsing whole modules would take ten times as long.
    block = re.search(rf"^class {name}\b.*\n(?:(?: .*)?\n)*", text, re.MULTILINE)
    if block:
        node = ast.parse(block[0]).body[0]
        assert isinstance(node, ast.ClassDef)
        return _Dataclass(source, text, node)
    raise ValueError(f"source must be a class in a module. Received: source={source}")


def _shown(name: str, value: Any) -> str:
    """Returns a default as a help text says it; empty for one that says nothing."""
    if isinstance(value, bool):
        return "yes" if value else ""
    if isinstance(value, tuple):
        return " and ".join(map(str, value))
    if isinstance(value, float):
        return f"{value:g}"
    for size, unit in _UNITS if name.endswith("_bytes") and value else ():
        if value % size == 0:
            return f"{value // size} {unit}"
    return "" if value is None else str(value)
