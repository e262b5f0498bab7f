"""The account of an input: how many things lie there, which were read, which passed over."""

import json
import posixpath
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from sigline.components.ingest import reasons
from sigline.components.ingest.sources import PassedOver, unicode_text

# Number of the largest groups, by folder, suffix and reason, that are counted separately.
_MAX_GROUPS = 500
# Example names kept per group.
_NAMES = 3
_NAME_LENGTH = 200


class Group(NamedTuple):
    """Things of one folder and suffix that are passed over for one reason: how many, and some."""

    count: int
    names: tuple[str, ...]


Groups = Mapping[tuple[str, str, str], Group]


class Ledger(NamedTuple):
    """What was passed over, by reason, and by folder, suffix and reason."""

    by_reason: Mapping[str, int]
    groups: Groups


def from_base(item: PassedOver, base: str) -> PassedOver:
    """Returns a thing with its path from the input's folder, as Unicode."""
    path = item.path.removeprefix(posixpath.join(base, ""))
    return PassedOver(unicode_text(path), item.reason)


def ledger(items: Iterable[PassedOver]) -> Ledger:
    """Returns the ledger of things, whose paths count from the input's folder."""
    by_reason: Counter[str] = Counter()
    groups: dict[tuple[str, str, str], Group] = {}
    for item in items:
        by_reason[item.reason] += 1
        folder, name = posixpath.split(item.path)
        key = (folder, posixpath.splitext(name)[1].lower(), item.reason)
        _add(groups, key, Group(1, (name[:_NAME_LENGTH],)))
    return Ledger(by_reason, _largest(groups))


def add(ledgers: Iterable[Ledger]) -> Ledger:
    """Returns the sum of ledgers."""
    by_reason: Counter[str] = Counter()
    groups: dict[tuple[str, str, str], Group] = {}
    for one in ledgers:
        by_reason.update(one.by_reason)
        for key, group in one.groups.items():
            _add(groups, key, group)
    return Ledger(by_reason, _largest(groups))


def add_counts(counts: Iterable[Mapping[str, int]]) -> Counter[str]:
    """Returns the sum of counts; coders make plain dictionaries of them."""
    total: Counter[str] = Counter()
    for item in counts:
        total.update(item)
    return total


def _add(groups: dict[tuple[str, str, str], Group], key: tuple[str, str, str], more: Group) -> None:
    count, names = groups.get(key, Group(0, ()))
    names = tuple(sorted({*names, *more.names})[:_NAMES])
    groups[key] = Group(count + more.count, names)


def _largest(groups: Groups) -> Groups:
    """Returns the groups that are counted on their own: first what may hold pairs, then by size."""

    def order(item: tuple[tuple[str, str, str], Group]):
        key, group = item
        return key[-1] in reasons.EXPECTED, -group.count, key

    return dict(sorted(groups.items(), key=order)[:_MAX_GROUPS])


def lines(items: Iterable[PassedOver]) -> bytes:
    """Returns things as JSON Lines."""
    return "".join(json.dumps(item._asdict(), sort_keys=True) + "\n" for item in items).encode()


def summary(
    files: Ledger, members: Ledger, *, num_files: tuple[int, int], num_members: tuple[int, int]
) -> dict[str, Any]:
    """Returns the account as `counts.json` has it.

    Args:
        files: The files, links and folders that were passed over.
        members: The members of archives that were.
        num_files: How many files there are, and how many were read.
        num_members: How many members there are, and how many were read.

    Raises:
        RuntimeError: If those that were read and passed over are not all there are.
    """
    total: dict[str, dict[str, int]] = {}
    for name, (number, read), one in (
        ("files", num_files, files),
        ("members", num_members, members),
    ):
        passed_over = sum(one.by_reason.values())
        if number != read + passed_over:
            raise RuntimeError(
                f"Ingest lost sight of {name} of its input; its output must not be used. Received: "
                f"total={number}, read={read}, passed_over={passed_over}"
            )
        total[name] = {"total": number, "read": read, "passed_over": passed_over}
    both = add([files, members])
    counted = sum(n for reason, n in both.by_reason.items() if reason not in reasons.EXPECTED)
    return total | {
        # Things that may hold pairs; the data gate limits their number.
        "counted": counted,
        "by_reason": dict(sorted(both.by_reason.items())),
        "groups": [
            {
                "folder": folder,
                "suffix": suffix,
                "reason": reason,
                "counted": reason not in reasons.EXPECTED,
                "count": group.count,
                "names": list(group.names),
            }
            for (folder, suffix, reason), group in both.groups.items()
        ],
    }
