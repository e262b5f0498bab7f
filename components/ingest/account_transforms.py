"""Beam transforms that account for the files of an input: read, or passed over by name."""

import posixpath
from collections.abc import Iterable, Sequence
from typing import Any

import apache_beam as beam

from sigline.components.ingest import account, reasons
from sigline.components.ingest.inventory import Inventory
from sigline.components.ingest.sources import PassedOver, unicode_text
from sigline.components.shared.files import write_file
from sigline.schemas import artifacts

# Lines written to one file.
_LINES = 10_000


def write_passed_over(report_dir: str, name: str, things: Sequence[PassedOver]) -> None:
    """Writes the names of things that were passed over, if there are any."""
    if things:
        path = posixpath.join(report_dir, artifacts.PASSED_OVER_FOLDER, f"passed-over-{name}.jsonl")
        write_file(path, account.lines(things))


class PassedOverFiles(beam.PTransform):
    """Lists the files that were passed over; takes the paths of images that rows name."""

    def __init__(self, inventory: Inventory, report_dir: str):
        super().__init__()
        self._base = inventory.base
        self._named = inventory.named
        self._report_dir = report_dir
        passed_over = [account.from_base(item, self._base) for item in inventory.passed_over]
        self._pieces = list(_pieces("files", passed_over))

    def expand(self, paths):
        """Returns ledgers of some of the files each."""
        pieces = paths.pipeline | "Files" >> beam.Create(self._pieces, reshuffle=False)
        if self._named:
            candidates = [(unicode_text(path), number) for number, path in enumerate(self._named)]
            unnamed = (
                {
                    "candidates": paths.pipeline | "Images" >> beam.Create(candidates),
                    "rows": paths | "OfRow" >> beam.Map(lambda path: (path, None)),
                }
                | "ByImage" >> beam.CoGroupByKey()
                | "WithoutRow" >> beam.FlatMap(_without_row, self._base)
                | "GroupUnnamed" >> beam.GroupByKey()
                | "Unnamed" >> beam.MapTuple(_unnamed)
            )
            pieces = (pieces, unnamed) | "AllFiles" >> beam.Flatten()
        return pieces | "ListFiles" >> beam.Map(_list, self._report_dir)


def _pieces(name: str, things: Sequence[PassedOver]) -> Iterable[tuple[str, list[PassedOver]]]:
    for number, start in enumerate(range(0, len(things), _LINES)):
        yield f"{name}-{number:03d}", list(things[start : start + _LINES])


def _without_row(item: tuple[str, dict[str, Iterable[Any]]], base: str):
    """Yields an image that no row names, by the file that lists it."""
    path, joined = item
    if not any(True for _ in joined["rows"]):
        thing = account.from_base(PassedOver(path, reasons.UNNAMED_IMAGE), base)
        for number in joined["candidates"]:
            yield number // _LINES, (number, thing)


def _unnamed(piece: int, numbered: Iterable[tuple[int, PassedOver]]):
    return f"images-{piece:03d}", [thing for _, thing in sorted(numbered)]


def _list(item: tuple[str, list[PassedOver]], report_dir: str) -> account.Ledger:
    name, plain = item
    # Beam's coders turn named tuples into plain ones.
    things = [PassedOver(*thing) for thing in plain]
    write_passed_over(report_dir, name, things)
    return account.ledger(things)


class PartAccount:
    """Counts what becomes of the members of one archive, and writes their names as they come."""

    def __init__(self, part: int, base: str, report_dir: str):
        self._part, self._base, self._report_dir = part, base, report_dir
        self._things: list[PassedOver] = []
        self._pieces = 0
        self._ledgers: list[account.Ledger] = []
        self.num_members = (0, 0)

    def add(self, thing: PassedOver) -> None:
        """Takes a member that was passed over."""
        self._things.append(account.from_base(thing, self._base))
        if len(self._things) == _LINES:
            self._flush()

    def _flush(self) -> None:
        # The report covers this input's parts only, not those of evaluation sets.
        if self._part >= 0:
            name = f"{self._part:05d}-{self._pieces:03d}"
            write_passed_over(self._report_dir, name, self._things)
        self._ledgers = [account.add([*self._ledgers, account.ledger(self._things)])]
        self._things, self._pieces = [], self._pieces + 1

    def end(self) -> tuple[account.Ledger, tuple[int, int]]:
        """Returns the ledger, and the numbers of members and of those that were read."""
        self._flush()
        return self._ledgers[0], self.num_members
