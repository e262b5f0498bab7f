"""Suggests the known name that is nearest to an unknown one."""

import difflib
from collections.abc import Iterable

# Least similarity, the default of `difflib.get_close_matches`. Names below it are rarely what was
# meant.
_CUTOFF = 0.6


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Returns the known name that is nearest to an unknown one; None if none is near.

    A name may be a path of keys with dots between. A key of any depth is matched by its last part
    (`learning_rate` is `optimizer.learning_rate`), by its words (`batch_size` is
    `global_batch_size`), by its initials (`lr`), and by its spelling, in this order.
    """
    candidates = list(dict.fromkeys(known))
    if name in candidates:
        return name
    last = _last(name)
    words = set(last.split("_"))
    rules = (
        lambda key: _last(key).lower() == last.lower(),
        lambda key: words < set(_last(key).split("_")),
        lambda key: "".join(word[:1] for word in _last(key).split("_")) == last and len(last) > 1,
        lambda key: set(_last(key).split("_")) < words and _ratio(name, key) >= _CUTOFF,
    )
    for rule in rules:
        # The most similar full path, such as one of the same group; then the shortest path.
        if matches := [key for key in candidates if rule(key)]:
            return max(matches, key=lambda key: (_ratio(name, key), -len(key), key))
    spelled = {key: max(_ratio(name, key), _ratio(last, _last(key))) for key in candidates}
    best = max(spelled, key=lambda key: (spelled[key], _ratio(name, key), key), default=None)
    return best if best is not None and spelled[best] >= _CUTOFF else None


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Returns ` Did you mean NAME?` for the end of a sentence, or nothing."""
    suggestion = nearest(name, known)
    return f" Did you mean {suggestion}?" if suggestion is not None else ""


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def _ratio(name: str, other: str) -> float:
    return difflib.SequenceMatcher(None, name.lower(), other.lower()).ratio()
