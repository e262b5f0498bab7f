"""Command line options from the fields of a dataclass: their types, defaults and descriptions.

A dataclass is parsed from its source file, not imported: every call of `sigline` creates the
options of all commands, and some of the modules import TensorFlow.
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
# Package whose modules are quick to import, so that defaults may use their constants.
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

    An option that is not on the command line is None, and `from_arguments` then uses the default of
    the class.

    Args:
        parser: The parser, or a group of its options.
        source: Module and name of the dataclass, such as `sigline.serving.server.requests.Limits`.
        only: Names of the fields; all of them if empty.
        prefix: Prefix of the options' names before those of the fields.
        readers: By type, functions that parse a value; by default the type itself parses it.
        changes: By field, arguments of `add_argument` to use instead; `option` is the option's
            name.

    Raises:
        ValueError: If a field does not exist, is not documented or has an unsupported type.
    """
    dataclass = _read(source)
    names = only or list(dataclass.nodes)
    if unknown := sorted(set(changes) - set(names)):
        raise ValueError(
            f"changes must be for fields that get an option: {', '.join(names)}. "
            f"Received: {unknown[0]}"
        )
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
        parts.append(f"{text} by default" if (text := _default_text(name, default)) else "")
        settings["help"] = "; ".join(part for part in parts if part).replace("%", "%%")
        parser.add_argument(option, **settings)


def from_arguments(
    cls: "type[Instance]", arguments: argparse.Namespace, *, prefix: str = "", **values: Any
) -> "Instance":
    """Builds a dataclass from the options on the command line, and from other values.

    Raises:
        ValueError: If the class refuses a value.
    """
    for item in dataclasses.fields(cls):
        value = getattr(arguments, prefix + item.name, None)
        if value is not None and item.name not in values:
            values[item.name] = tuple(value) if isinstance(value, list) else value
    return cls(**values)


class _Dataclass:
    """A dataclass, parsed from its source.

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
        # The section ends at the first line without indentation.
        self._texts = dict(_ATTRIBUTE.findall(re.split(r"\n(?=\S)", section)[0]))

    def type_of(self, name: str) -> tuple[type, bool]:
        """Returns the type of a field, or of its items, and whether it has several items."""
        if name not in self.nodes:
            raise ValueError(
                f"only must name fields of {self._source}: {', '.join(self.nodes)}. "
                f"Received: {name}"
            )
        text = ast.unparse(self.nodes[name].annotation)
        word = text.removesuffix(" | None")
        several = _SEVERAL.fullmatch(word)
        kind = _TYPES.get(several[1] if several else word)
        if kind is None:
            raise ValueError(
                f"{name} must be of type {', '.join(_TYPES)}, or a tuple of one of them. "
                f"Received: {text}"
            )
        return kind, several is not None

    def default_of(self, name: str) -> Any:
        """Returns the default of a field; None if it has none, or a function computes it."""
        value = self.nodes[name].value
        try:
            return None if value is None else self._evaluated(value)
        except NameError:
            return None

    def _evaluated(self, node: ast.expr) -> Any:
        names = {item.id for item in ast.walk(node) if isinstance(item, ast.Name)}
        scope = {"__builtins__": {}, **{name: self._constant(name) for name in names}}
        # As safe as importing the module, which would evaluate the same expression.
        return eval(compile(ast.Expression(node), self._source, "eval"), scope)

    def _constant(self, name: str) -> Any:
        if line := re.search(rf"^{name} = (.+)$", self._text, re.MULTILINE):
            return self._evaluated(ast.parse(line[1], mode="eval").body)
        if re.search(rf"^from {_LIGHT} import .*\b{name}\b", self._text, re.MULTILINE):
            return importlib.import_module(f"{_LIGHT}.{name}")
        raise NameError(name)

    def help_of(self, name: str) -> str:
        """Returns a help text: the first sentence about a field in the section `Attributes:`."""
        if name not in self._texts:
            raise ValueError(
                f"{self._source} must document each field under `Attributes:`. "
                f"Received: {name}, without a description"
            )
        sentence = _SENTENCE_END.split(" ".join(self._texts[name].split()), maxsplit=1)[0]
        word = sentence.split()[0]
        # The first word begins in lower case, unless it is an acronym such as REST.
        return word[0].lower() + sentence[1:] if word[1:].islower() or len(word) == 1 else sentence


@cache
def _read(source: str) -> _Dataclass:
    module, _, name = source.rpartition(".")
    spec = importlib.util.find_spec(module)
    text = Path(spec.origin).read_text("utf-8") if spec and spec.origin else ""
    # Only the class is parsed: parsing whole modules would take ten times as long.
    block = re.search(rf"^class {name}\b.*\n(?:(?: .*)?\n)*", text, re.MULTILINE)
    if block:
        node = ast.parse(block[0]).body[0]
        assert isinstance(node, ast.ClassDef)
        return _Dataclass(source, text, node)
    raise ValueError(
        "source must be the full name of a class, as package.module.Class. "
        f"Received: source={source}"
    )


def _default_text(name: str, value: Any) -> str:
    """Returns a default for a help text; empty if it need not be shown."""
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
