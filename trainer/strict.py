"""Dataclasses from JSON and from `a.b=value` overrides, strictly: no unknown key, no other type.

Fields may be numbers, strings, booleans, None, dataclasses, and tuples of these.
"""

import dataclasses
import json
import types
import typing
from collections.abc import Iterable
from typing import Any

from sigline.schemas import suggestions

# Marks fields that `to_dict` leaves out at their default.
_LATER = "later"


def build(cls: type, data: Any, path: str = "") -> Any:
    """Returns an instance of a dataclass from what `json.loads` or `dataclasses.asdict` returned.

    Args:
        cls: The dataclass.
        data: Its fields by name; those left out get their defaults.
        path: What the fields' names are preceded by in messages.

    Raises:
        ValueError: If a key is unknown (the message names the known keys) or a value has the wrong
            type.
    """
    if not isinstance(data, dict):
        name = path.rstrip(".") or "the configuration"
        raise ValueError(f"{name} must be an object. Received: {data!r}")
    hints = typing.get_type_hints(cls)
    unknown = sorted(set(data) - set(hints))
    if unknown:
        meant = suggestions.did_you_mean(path + str(unknown[0]), keys(cls, path))
        raise ValueError(
            f"Unknown key {', '.join(path + item for item in unknown)}. "
            f"Known keys: {', '.join(path + item for item in hints)}.{meant}"
        )
    needed = [item.name for item in dataclasses.fields(cls) if _is_required(item)]
    if missing := sorted(set(needed) - set(data)):
        raise ValueError(f"Missing key {', '.join(path + item for item in missing)}.")
    return cls(**{name: _checked(hints[name], value, path + name) for name, value in data.items()})


def later(default: Any) -> Any:
    """Returns a field that `to_dict` leaves out at its default.

    For options that come after models were published: their digests stay what they were.
    """
    return dataclasses.field(default=default, metadata={_LATER: True})


def to_dict(value: Any) -> Any:
    """Returns a dataclass as a dictionary, as `dataclasses.asdict`, without defaults of `later`."""
    if isinstance(value, tuple | list):
        return type(value)(to_dict(item) for item in value)
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return value
    found = {}
    for item in dataclasses.fields(value):
        held = getattr(value, item.name)
        if not (item.metadata.get(_LATER) and held == item.default):
            found[item.name] = to_dict(held)
    return found


def keys(cls: type, path: str = "") -> list[str]:
    """Returns the keys that `override` takes, with those of groups below them."""
    names = []
    for name, hint in typing.get_type_hints(cls).items():
        group = _group(hint)
        names += [path + name] if group is None else keys(group, f"{path}{name}.")
    return names


def _is_required(item: dataclasses.Field) -> bool:
    return item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING


def override(cls: type, data: dict[str, Any], assignments: Iterable[str]) -> Any:
    """Returns an instance of `cls` from its fields, with `a.b=value` assignments applied.

    A value is JSON, `true`, `false` or `none` in any case, or a string as it stands.

    Raises:
        ValueError: As `build`, and if an assignment has no `=`.
    """
    for assignment in assignments:
        key, separator, text = assignment.partition("=")
        if not separator:
            raise ValueError(f"An override reads KEY=VALUE. Received: {assignment!r}")
        try:
            _assign(cls, data, key.split("."), text, key)
        except _UnknownKey as unknown:
            meant = suggestions.did_you_mean(key, keys(cls))
            raise ValueError(
                f"Unknown key {key}. Known keys: {', '.join(unknown.known)}.{meant}"
            ) from None
    # Checked as a whole: values that only fit together may come in any order.
    return build(cls, data)


class _UnknownKey(Exception):
    """A key that is none; holds those that are known in its place."""

    def __init__(self, known: list[str]):
        super().__init__()
        self.known = known


def _assign(cls: type, data: dict[str, Any], path: list[str], text: str, full_key: str) -> None:
    hints = typing.get_type_hints(cls)
    head, *rest = path
    prefix = full_key[: len(full_key) - len(".".join(path))]
    known = ", ".join(prefix + item for item in hints)
    if head not in hints:
        raise _UnknownKey([prefix + item for item in hints])
    # A group that may be left out is reached into only where it is there.
    group = _group(hints[head])
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
            if str in typing.get_args(hint):
                return text
            raise ValueError(f"{key} must be {_type_name(hint)}. Received: {key}={text}") from error
    return _checked(hint, value, key)


def _group(hint: Any) -> type | None:
    """Returns the dataclass that a hint names, alone or beside None."""
    found = [item for item in (hint, *typing.get_args(hint)) if dataclasses.is_dataclass(item)]
    is_tuple = typing.get_origin(hint) is tuple
    return typing.cast(type, found[0]) if found and not is_tuple else None


def _checked(hint: Any, value: Any, key: str) -> Any:
    """Returns a value of the type that the hint names, or raises."""
    group = _group(hint)
    if group is not None and isinstance(value, group):
        return value
    if group is not None and (value is not None or group is hint):
        return build(group, value, f"{key}.")
    if typing.get_origin(hint) is tuple:
        return _checked_tuple(hint, value, key)
    allowed = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if float in allowed and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) in allowed:
        return value
    raise ValueError(f"{key} must be {_type_name(hint)}. Received: {key}={value!r}")


def _checked_tuple(hint: Any, value: Any, key: str) -> tuple:
    items = typing.get_args(hint)
    if isinstance(value, list | tuple):
        if items[-1] is ...:
            items = (items[0],) * len(value)
        if len(items) == len(value):
            pairs = enumerate(zip(items, value, strict=True))
            return tuple(_checked(item, x, f"{key}[{i}]") for i, (item, x) in pairs)
    raise ValueError(f"{key} must be {_type_name(hint)}. Received: {key}={value!r}")


def _type_name(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) else str(hint)
