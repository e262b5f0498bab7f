"""Class ids from what sources write as labels: numbers of any kind, texts, names, lists of them."""

import numbers
from collections.abc import Sequence
from decimal import Decimal, InvalidOperation
from typing import Any, NamedTuple

from sigline.components.ingest import cells
from sigline.components.ingest.sources import FolderClass

# Records store labels as signed 64-bit integers.
_LARGEST = 2**63
# Maximum length of a number, in characters.
_MAX_NUMBER = 100


class ClassNames:
    """The classes of an input, by name."""

    def __init__(self, names: Sequence[str] = ()):
        """Takes the names; the position of each is its class id.

        Args:
            names: The names. Without any, every number of at least 0 is a class.
        """
        self.count = len(names)
        self._exact = {name.strip(): number for number, name in enumerate(names)}
        self._folded: dict[str, int | None] = {}
        for number, name in enumerate(names):
            folded = _folded(name)
            # Names that differ in case only must match exactly: their folded form is ambiguous.
            self._folded[folded] = None if folded in self._folded else number

    def exact(self, name: str) -> int | None:
        """Returns the class of a name that is the same to the letter."""
        return self._exact.get(name.strip())

    def number(self, name: str) -> int | None:
        """Returns the class of a name, the same to the letter or else but for case and blanks."""
        exact = self._exact.get(name.strip())
        return self._folded.get(_folded(name)) if exact is None else exact


class Labels(NamedTuple):
    """A label, parsed.

    Attributes:
        ids: Class ids.
        others: Values that are not known classes, to be kept in the metadata.
        missing: Number of values that stand for no label.
    """

    ids: tuple[int, ...] = ()
    others: tuple[Any, ...] = ()
    missing: int = 0


def resolve(value: Any, names: ClassNames) -> Labels:
    """Returns the class ids of a label, or of a list of labels.

    A whole number is a class id, also as `3.0` or as text; NaN, -1 and empty texts are no label;
    other texts are looked up among the names. A number that is no class may be a name, too, and so
    may a word for nothing, such as `none`, that is a name to the letter.

    Args:
        value: What the source has: a number, a text, bytes, a list of such, also one that is
            written as text, or None.
        names: The classes.
    """
    # NumPy's arrays become lists.
    value = value.tolist() if hasattr(value, "tolist") else value
    text = _text(value)
    items = cells.listed(text) if text is not None else None
    ids, others, missing = [], [], 0
    if value is None:
        return Labels()
    for item in cells.flat(value if items is None else items):
        if isinstance(item, FolderClass) and names.count:
            item = item.name if names.number(item.name) is not None else item.name.replace("_", " ")
        number = _number(item)
        if cells.is_missing(item) or number == -1 or _text(item) == "":
            named = names.exact(_text(item) or "")
            if named is None:
                missing += 1
            else:
                ids.append(named)
        elif number is not None and 0 <= number < (names.count or _LARGEST):
            ids.append(int(number))
        elif (named := names.number(_name(item))) is not None:
            ids.append(named)
        else:
            others.append(item)
    return Labels(tuple(ids), tuple(others), missing)


def _text(value: Any) -> str | None:
    if isinstance(value, bytes):
        try:
            value = value.decode("utf-8-sig")
        except UnicodeDecodeError:
            return None
    return value.strip() if isinstance(value, str) else None


def _name(item: Any) -> str:
    text = _text(item)
    return str(item) if text is None else text


def _number(value: Any) -> Decimal | None:
    """Returns a whole number; None for all else, and for truth values, which are names."""
    # NumPy's scalars become Python's.
    value = value.item() if hasattr(value, "item") else value
    text = _text(value)
    if text is not None:
        # Python accepts `1_000`, but tables do not write numbers that way.
        value = text if len(text) <= _MAX_NUMBER and "_" not in text else "none"
    elif isinstance(value, bool) or not isinstance(value, numbers.Number | Decimal):
        return None
    try:
        number = Decimal(value)  # type: ignore[arg-type]  # others raise TypeError
    except (InvalidOperation, TypeError, ValueError):
        return None
    if not number.is_finite() or not -_LARGEST <= number < _LARGEST:
        return None
    return number if number == number.to_integral_value() else None


def _folded(name: str) -> str:
    return " ".join(name.casefold().split())
