"""Dataclasses from JSON, YAML and `a.b=value` overrides, strictly: no unknown key, no other type.

Fields may be texts, numbers, booleans, None, dataclasses, tuples and mappings of these, or anything
where the type says `Any`. Where a field may hold one of several dataclasses, each has a class
attribute `kind: ClassVar[str]`, and the data has the key `kind`. One of them may go without: it is
what data without a kind are.
"""

import dataclasses
import json
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any

from sigline.schemas import suggestions

KIND = "kind"
_MAPPINGS = (dict, Mapping)
_WORDS = {str: "a text", int: "a whole number", float: "a number", bool: "true or false"}


class UnknownKey(ValueError):
    """A key that is none.

    Attributes:
        key: Its path.
        problem: The message without a suggestion.
    """

    def __init__(self, key: str, problem: str, meant: str):
        super().__init__(problem + meant)
        self.key = key
        self.problem = problem


def build(
    cls: type,
    data: Any,
    path: str = "",
    *,
    number_as_text: bool = False,
    text_as_list: bool = False,
) -> Any:
    """Returns an instance of a dataclass from what JSON, YAML or `dataclasses.asdict` returned.

    Args:
        cls: The dataclass.
        data: Its fields by name; those left out get their defaults.
        path: What the fields' names are preceded by in messages, such as `index.`.
        number_as_text: Whether a number may stand for a text, as YAML reads `cpu: 2`.
        text_as_list: Whether one text may stand for a list of texts.

    Raises:
        ValueError: If a key is unknown (the message names the known keys) or a value has the wrong
            type.
    """
    return _Builder(number_as_text, text_as_list).build(cls, data, path)


class _Builder:
    """Builds dataclasses; see `build`."""

    def __init__(self, number_as_text: bool, text_as_list: bool):
        self._number_as_text = number_as_text
        self._text_as_list = text_as_list

    def build(self, cls: type, data: Any, path: str) -> Any:
        if not isinstance(data, Mapping):
            name = path.rstrip(".") or "the configuration"
            raise ValueError(f"{name} must be keys and values. Received: {data!r}")
        hints = fields(cls)
        unknown = sorted(str(key) for key in data if key not in hints)
        if unknown:
            meant = suggestions.did_you_mean(path + unknown[0], keys(cls, path))
            problem = (
                f"Unknown key {', '.join(path + key for key in unknown)}. "
                f"Known keys: {', '.join(path + key for key in hints)}."
            )
            raise UnknownKey(path + unknown[0], problem, meant)
        required = {item.name for item in dataclasses.fields(cls) if _is_required(item)}
        if missing := sorted(required - set(data)):
            raise ValueError(
                f"Missing key {', '.join(path + key for key in missing)}. "
                f"Known keys: {', '.join(path + key for key in hints)}."
            )
        values = {key: self.checked(hints[key], value, path + key) for key, value in data.items()}
        return cls(**values)

    def checked(self, hint: Any, value: Any, key: str) -> Any:
        """Returns a value of the type that a hint names, or raises."""
        options = _options(hint)
        if hint is Any or (value is None and type(None) in options):
            return value
        classes: list[type] = [item for item in options if _is_group(item)]
        if classes and isinstance(value, tuple(classes)):
            return value
        if classes:
            return self._tagged(classes, value, key)
        for option in options:
            origin = typing.get_origin(option)
            if origin is tuple:
                return self._sequence(option, value, key)
            if origin in (*_MAPPINGS, types.MappingProxyType) or option in _MAPPINGS:
                return self._mapping(option, value, key)
        return self._scalar(options, value, key)

    def _tagged(self, classes: list[type], value: Any, key: str) -> Any:
        """Builds the one of several dataclasses that the data names by its kind."""
        if len(classes) == 1 and _kind(classes[0]) is None:
            return self.build(classes[0], value, f"{key}.")
        known = {_kind(cls): cls for cls in classes}
        if not isinstance(value, Mapping) or value.get(KIND) not in known:
            kind = value.get(KIND) if isinstance(value, Mapping) else value
            names = [name for name in known if name is not None]
            raise ValueError(
                f"{key}.{KIND} must be one of {', '.join(names)}. Received: {key}.{KIND}={kind!r}."
                f"{suggestions.did_you_mean(str(kind), names)}"
            )
        rest = {name: item for name, item in value.items() if name != KIND}
        return self.build(known[value.get(KIND)], rest, f"{key}.")

    def _sequence(self, hint: Any, value: Any, key: str) -> tuple:
        items = typing.get_args(hint)
        if self._text_as_list and isinstance(value, str) and items == (str, ...):
            value = (value,)
        if isinstance(value, list | tuple):
            if items[-1] is ...:
                items = (items[0],) * len(value)
            if len(items) == len(value):
                pairs = enumerate(zip(items, value, strict=True))
                return tuple(self.checked(item, x, f"{key}[{i}]") for i, (item, x) in pairs)
        raise ValueError(f"{key} must be {_words(hint)}. Received: {key}={value!r}")

    def _mapping(self, hint: Any, value: Any, key: str) -> dict[str, Any]:
        if not isinstance(value, Mapping):
            raise ValueError(f"{key} must be {_words(hint)}. Received: {key}={value!r}")
        _, item = typing.get_args(hint) or (str, Any)
        return {str(name): self.checked(item, x, f"{key}.{name}") for name, x in value.items()}

    def _scalar(self, options: tuple, value: Any, key: str) -> Any:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if float in options and is_number:
            return float(value)
        if type(value) in options:
            return value
        if str in options and is_number and self._number_as_text:
            return str(value)
        expected = " or ".join(_words(option) for option in options)
        raise ValueError(f"{key} must be {expected}. Received: {key}={value!r}")


def to_dict(value: Any) -> Any:
    """Returns a dataclass as a dictionary, as `dataclasses.asdict`, with the kinds of its parts."""
    return _as_dict(value, only_changed=False)


def changed(value: Any) -> Any:
    """Returns the fields of a dataclass that differ from their defaults, as `to_dict`.

    A digest of these stays what it is when a field with a default comes.
    """
    return _as_dict(value, only_changed=True)


def _as_dict(value: Any, *, only_changed: bool) -> Any:
    if isinstance(value, tuple | list):
        return [_as_dict(item, only_changed=only_changed) for item in value]
    if isinstance(value, Mapping):
        return {name: _as_dict(item, only_changed=only_changed) for name, item in value.items()}
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return value
    kind = _kind(type(value))
    content: dict[str, Any] = {} if kind is None else {KIND: kind}
    for item in dataclasses.fields(value):
        held = getattr(value, item.name)
        if not (only_changed and held == _default(item)):
            content[item.name] = _as_dict(held, only_changed=only_changed)
    return content


def fields(cls: type) -> dict[str, Any]:
    """Returns the types of a dataclass's fields by name."""
    hints = typing.get_type_hints(cls)
    return {item.name: hints[item.name] for item in dataclasses.fields(cls)}


def keys(cls: type, path: str = "") -> list[str]:
    """Returns the keys that `override` takes, with those of groups below them."""
    names = []
    for name, hint in fields(cls).items():
        groups = _groups(hint)
        names += [key for group in groups for key in keys(group, f"{path}{name}.")]
        if not groups:
            names.append(path + name)
        for kind, item in _items(hint).items():
            names += keys(item, f"{path}{name}.{kind}.")
    return list(dict.fromkeys(names))


def override(cls: type, data: dict[str, Any], assignments: Iterable[str]) -> Any:
    """Returns an instance of `cls` from its fields, with `a.b=value` assignments applied.

    A value is JSON, `true`, `false` or `none` in any case, or a string as it stands. In a list of
    dataclasses that have kinds, `a[0].b` reaches into one by its place and `a.KIND.b` into the only
    one of a kind.

    Raises:
        ValueError: As `build`, and if an assignment has no `=`.
    """
    for assignment in assignments:
        key, separator, text = assignment.partition("=")
        if not separator:
            raise ValueError(f"An override reads KEY=VALUE. Received: {assignment!r}")
        try:
            _assign(cls, data, key.split("."), text, key)
        except _Unknown as unknown:
            meant = suggestions.did_you_mean(key, keys(cls))
            raise UnknownKey(key, unknown.problem, meant) from None
    # Checked as a whole: values that only fit together may come in any order.
    return build(cls, data)


class _Unknown(Exception):
    """An assignment to a key that is none."""

    def __init__(self, problem: str):
        super().__init__(problem)
        self.problem = problem


def _assign(cls: type, data: dict[str, Any], path: list[str], text: str, full_key: str) -> None:
    hints = fields(cls)
    head, *rest = path
    prefix = full_key[: len(full_key) - len(".".join(path))]
    name, _, place = head.partition("[")
    if _items(hints.get(name)) and (rest or place):
        _assign_item(_items(hints[name]), data[name], path, text, full_key)
        return
    known = ", ".join(prefix + item for item in hints)
    if head not in hints:
        raise _Unknown(f"Unknown key {full_key}. Known keys: {known}.")
    # A group that may be left out is reached into only where it is there.
    group = _group(hints[head], data[head])
    nested = group is not None and data[head] is not None
    if nested and not rest and group is not hints[head] and text.lower() == "none":
        nested = False
    if nested != bool(rest):
        problem = "names a group of keys, not a value" if nested else "has no keys below it"
        raise ValueError(
            f"{prefix}{head} {problem}. Received: {full_key}={text}. Known keys: {known}"
        )
    if nested:
        assert group is not None
        _assign(group, data[head], rest, text, full_key)
    else:
        data[head] = _parse(hints[head], text, full_key)


def _assign_item(
    kinds: Mapping[str, type], held: list[dict], path: list[str], text: str, full_key: str
) -> None:
    """Assigns to a field of one of a list's dataclasses, which the path names by place or kind."""
    head, *rest = path
    name, _, place = head.partition("[")
    if place:
        numbers = [i for i in range(len(held)) if place == f"{i}]"]
    else:
        numbers = [i for i, item in enumerate(held) if item[KIND] == rest[0]]
        rest = rest[1:]
    listed = ", ".join(f"{name}[{i}] ({item[KIND]})" for i, item in enumerate(held)) or "none"
    if not place and path[1] not in kinds:
        raise _Unknown(f"Unknown key {full_key}. Known keys: {', '.join(kinds)} below {name}.")
    if len(numbers) != 1 or not rest:
        raise ValueError(
            f"{full_key} must name one of {name} and a key of it, as in {name}[0].KEY. "
            f"Received: {full_key}={text}; {name} holds {listed}"
        )
    item = held[numbers[0]]
    _assign(kinds[item[KIND]], item, rest, text, full_key)


def _items(hint: Any) -> dict[str, type]:
    """Returns the dataclasses, by kind, that a hint allows in a list; none of other hints."""
    if typing.get_origin(hint) is not tuple:
        return {}
    classes = [x for x in _options(typing.get_args(hint)[0]) if _is_group(x)]
    return {kind: cls for cls in classes if (kind := _kind(cls)) is not None}


def _parse(hint: Any, text: str, key: str) -> Any:
    if hint is str:
        return text
    literals = {"true": True, "false": False, "none": None}
    if text.lower() in literals:
        value: Any = literals[text.lower()]
    else:
        try:
            value = json.loads(text)
        except json.JSONDecodeError as error:
            if str in _options(hint):
                return text
            raise ValueError(f"{key} must be {_words(hint)}. Received: {key}={text}") from error
    return _Builder(False, False).checked(hint, value, key)


def _options(hint: Any) -> tuple:
    """Returns the types that a hint allows."""
    is_union = isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union
    return typing.get_args(hint) if is_union else (hint,)


def _groups(hint: Any) -> list[type]:
    """Returns the dataclasses that a hint names, apart from those in lists and mappings."""
    return [item for item in _options(hint) if _is_group(item)]


def _group(hint: Any, held: Any) -> type | None:
    """Returns the dataclass that a hint names; if there are several, that of the data's kind."""
    classes = _groups(hint)
    if len(classes) > 1:
        kind = held.get(KIND) if isinstance(held, Mapping) else None
        classes = [item for item in classes if _kind(item) == kind]
    return classes[0] if classes else None


def _is_group(hint: Any) -> bool:
    return isinstance(hint, type) and dataclasses.is_dataclass(hint)


def _kind(cls: Any) -> str | None:
    """Returns the kind of a dataclass that is one of several; None of any other.

    A field called `kind` is none: it is not the same for all instances.
    """
    is_field = any(item.name == KIND for item in dataclasses.fields(cls))
    return None if is_field else getattr(cls, KIND, None)


def _is_required(item: dataclasses.Field) -> bool:
    return item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING


def _default(item: dataclasses.Field) -> Any:
    """Returns the default of a field; a value that nothing equals if there is none."""
    if item.default_factory is not dataclasses.MISSING:
        return item.default_factory()
    return item.default


def _words(hint: Any) -> str:
    """Returns what a type is called in a sentence."""
    if len(options := _options(hint)) > 1:
        return " or ".join(_words(option) for option in options)
    if hint is type(None):
        return "none"
    origin, items = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple:
        if items[-1] is ...:
            return "a list"
        return f"a list of {len(items)}: {', '.join(_words(item) for item in items)}"
    if origin is not None or hint in _MAPPINGS:
        return "keys and values"
    return _WORDS.get(hint, getattr(hint, "__name__", str(hint)))
