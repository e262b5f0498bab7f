"""What fields of a configuration must satisfy beyond their types; None always passes."""

import math
import re
from collections.abc import Sequence

from sigline.schemas import suggestions


def one_of(key: str, value: str, allowed: Sequence[str]) -> None:
    """Raises ValueError unless a text is one of those allowed."""
    if value not in allowed:
        raise ValueError(
            f"{key} must be one of {', '.join(allowed)}. Received: {key}={value!r}."
            f"{suggestions.did_you_mean(str(value), allowed)}"
        )


def at_least(key: str, value: float | None, least: float) -> None:
    """Raises ValueError if a number is less than `least`."""
    if value is not None and value < least:
        raise ValueError(f"{key} must be at least {least}. Received: {key}={value}")


def finite(key: str, value: float) -> None:
    """Raises ValueError if a number is not finite."""
    if not math.isfinite(value):
        raise ValueError(f"{key} must be finite. Received: {key}={value}")


def not_negative(key: str, value: float) -> None:
    """Raises ValueError unless a number is finite and at least zero."""
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{key} must be at least 0. Received: {key}={value}")


def positive(key: str, value: float) -> None:
    """Raises ValueError unless a number is finite and above zero."""
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{key} must be positive. Received: {key}={value}")


def share(key: str, value: float | None) -> None:
    """Raises ValueError unless a number is at least zero and less than one."""
    if value is not None and not 0.0 <= value < 1.0:
        raise ValueError(f"{key} must be at least 0 and less than 1. Received: {key}={value}")


def pattern(key: str, value: str) -> None:
    """Raises ValueError if a text is no regular expression."""
    try:
        re.compile(value)
    except re.error as error:
        raise ValueError(
            f"{key} holds no regular expression: {error}. Received: {value!r}"
        ) from error
