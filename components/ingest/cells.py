"""Values in cells of tables: lists written as text, words for missing values, and JSON."""

import ast
import json
import math
import numbers
import re
import warnings
from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import Any

from sigline.components.ingest.sources import MAX_SIDE_BYTES

# Words for missing values in pandas, Python, SQL, R and spreadsheets. `Nan` is left out, since it
# is also a name.
MISSING_WORDS = frozenset(
    (
        "nan",
        "NaN",
        "NAN",
        "-nan",
        "-NaN",
        "None",
        "none",
        "NONE",
        "null",
        "Null",
        "NULL",
        "NA",
        "N/A",
        "n/a",
        "<NA>",
        "NaT",
        "#N/A",
        "#N/A N/A",
        "#NA",
        "1.#IND",
        "-1.#IND",
        "1.#QNAN",
        "-1.#QNAN",
    )
)
# An item of a list as Python and NumPy print it, with the separator; NumPy separates by blanks.
_ITEM = re.compile(
    r"""\s*+(?P<item>u?'(?:[^'\\]|\\.)*+'|u?"(?:[^"\\]|\\.)*+"|[\w.+-]++)"""
    r"""(?:\s*+,|\s++|(?=\]))\s*+""",
    re.DOTALL,
)
# Begin and end of a nested list.
_BEGIN = re.compile(r"\s*+\[\s*+")
_END = re.compile(r"\s*+\](?:\s*+,|\s++|(?=\]))\s*+")
_MAX_DEPTH = 32
_NO_VALUE = ("None", "nan", "NaN", "null", "NA", "NaT")


def json_value(text: str | bytes) -> Any:
    """Returns the value that a JSON text holds; a whole number too long for Python is a text.

    Raises:
        ValueError: If it is no JSON.
        RecursionError: If it is nested too deep.
    """
    return json.loads(text, parse_int=lambda digits: int(digits) if len(digits) < 4000 else digits)


def is_missing(value: Any) -> bool:
    """Whether a value stands for none: None, not a number, or one of `MISSING_WORDS`."""
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    if isinstance(value, str):
        return value.strip() in MISSING_WORDS
    if isinstance(value, Decimal):
        return value.is_nan()
    return value is None or (isinstance(value, numbers.Number) and bool(value != value))


def listed(text: str) -> list[Any] | None:
    """Returns the list that a text is, as JSON, Python or NumPy write it; None for other texts.

    Nothing is evaluated but string literals.
    """
    text = text.strip()
    if not text.startswith("[") or not text.endswith("]") or len(text) > MAX_SIDE_BYTES:
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return _python_list(text)
    return value if isinstance(value, list) else None


def _python_list(text: str) -> list[Any] | None:
    lists: list[list[Any]] = [[]]
    place, end = 1, len(text) - 1
    while place < end:
        if match := _ITEM.match(text, place):
            try:
                lists[-1].append(_literal(match["item"]))
            except (ValueError, SyntaxError):
                return None
        elif (match := _BEGIN.match(text, place)) and len(lists) < _MAX_DEPTH:
            lists[-1].append([])
            lists.append(lists[-1][-1])
        elif (match := _END.match(text, place)) and match.end() <= end and len(lists) > 1:
            lists.pop()
        else:
            return None
        place = match.end()
    return lists[0] if place == end and len(lists) == 1 else None


def _literal(item: str) -> Any:
    if item in _NO_VALUE:
        return None
    if item[-1] in "'\"" and "\\" not in item:
        return item.removeprefix("u")[1:-1]
    with warnings.catch_warnings():
        # Python warns about escapes that it does not know, such as `\d`.
        warnings.simplefilter("ignore")
        return ast.literal_eval(item)


def flat(value: Any) -> Iterator[Any]:
    """Yields the items of lists in lists, in order, however deep; of another value the value."""
    stack = [value]
    while stack:
        value = stack.pop()
        if isinstance(value, list | tuple):
            stack.extend(reversed(value))
        else:
            yield value


def plain(value: Any) -> Any:
    """Returns a value that JSON has; of bytes that are no text their number."""
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return f"{len(value)} bytes"
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    return value if value is None or isinstance(value, str | int | bool) else str(value)
