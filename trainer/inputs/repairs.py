"""Damaged shards: what of them can be read, and copies to go on with, up to a limit of records."""

import hashlib
import itertools
import json
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from sigline.schemas import atomic, tf_example, tfrecord
from sigline.schemas.tfrecord import Place
from sigline.trainer.inputs import shards
from sigline.trainer.inputs.usable import Check

DAMAGE_FILE = "damage.json"
# Bytes of a gzip header without a file name, as TensorFlow writes it. Bytes that are decompressed
# at a time: few, so that little before the damage is lost with it.
_GZIP_HEADER, _PIECE = 10, 512
# Records that are checked at a time; damaged places of a shard that an error lists.
_TRIED, _SHOWN = 256, 20


class _Reader:
    """A decompressed shard, byte by byte, up to where it cannot be decompressed."""

    def __init__(self, file: BinaryIO):
        self._file = file
        self._plain = bytearray()
        self._stream = zlib.decompressobj(wbits=-zlib.MAX_WBITS)
        header = self._file.read(_GZIP_HEADER)
        self._whole = header[:4] == b"\x1f\x8b\x08\x00"

    def read(self, count: int) -> bytes:
        """Returns the next bytes, or as many as there are."""
        while self._whole and len(self._plain) < count:
            piece = self._file.read(_PIECE)
            try:
                self._plain += self._stream.decompress(piece)
            except zlib.error:
                self._whole = False
            self._whole &= bool(piece)
        chunk = bytes(self._plain[:count])
        del self._plain[:count]
        return chunk


def read(path: str | Path) -> Iterator[bytes | Place]:
    """Yields the records of a damaged shard, and a place for each that is damaged."""
    with open(path, "rb") as file:
        yield from tfrecord.records(_Reader(file).read)


class Repairs:
    """Copies of damaged shards that a run goes on with, in a folder of its own.

    In a copy each damaged record is replaced by a whole one beside it, so that the number of
    records, and with it the order of all others, stays. What was replaced is listed in
    `damage.json`; a run that resumes starts from there. Several hosts that share the folder make
    the same copies.
    """

    def __init__(
        self,
        folder: str | Path,
        folders: shards.Folders,
        limit: int,
        check: Check | None = None,
    ):
        """Takes up what an interrupted run left.

        Args:
            folder: Where the copies go.
            folders: Folders of the splits.
            limit: How many records may be damaged.
            check: Tells which whole records cannot be used; None to use all.
        """
        self._folder, self._limit, self._check = Path(folder), limit, check
        self._names = shards.shard_names(folders)
        self._expected = shards.expected_records(folders)
        path = self._folder / DAMAGE_FILE
        self._shards: dict[str, dict] = json.loads(path.read_text()) if path.is_file() else {}

    @property
    def replaced(self) -> dict[str, str]:
        """Paths of copies by the shards that they stand for."""
        return {
            path: str(self._folder / self._shards[name]["copy"])
            for path, name in self._names.items()
            if name in self._shards
        }

    @property
    def count(self) -> int:
        """Records replaced so far."""
        return sum(damage["lost"] for damage in self._shards.values())

    def mend(self, *, use: bool = False) -> bool:
        """Copies what is damaged; returns whether the run can go on with the copies.

        A copy that is damaged itself is made again.

        Args:
            use: Whether every whole record is tried, too, which takes as long as decoding all
                pictures.

        Raises:
            RuntimeError: If more records are damaged than may be; the message names all of them.
        """
        if not self._limit:
            return False
        print("sigline: looking for damaged records in all shards", file=sys.stderr)
        check = self._check if use else None
        fresh: dict[str, dict] = {}
        for path, name in self._names.items():
            known = self._shards.get(name)
            if known and not _damage(self._folder / known["copy"], known["records"], name, check):
                continue
            # The copy may stand for records that only the check refuses, so a new copy needs the
            # check again.
            if damage := _damage(path, self._expected[path], name, self._check if known else check):
                fresh[path] = damage
        if not fresh:
            return False
        listed = self._shards | {self._names[path]: damage for path, damage in fresh.items()}
        lost = sum(damage["lost"] for damage in listed.values())
        lines = [_line(path, damage) for path, damage in fresh.items()]
        if lost > self._limit or any(damage["copy"] is None for damage in fresh.values()):
            raise RuntimeError(
                "Training data cannot be read; write these shards again, or allow more by "
                f"run.max_damaged_records. Received: {lost} damaged records, "
                f"run.max_damaged_records={self._limit}: " + "; ".join(lines)
            )
        self._folder.mkdir(parents=True, exist_ok=True)
        for path, damage in fresh.items():
            with atomic.new_file(self._folder / damage["copy"]) as scratch:
                tf_example.write_shard(str(scratch), _repaired(path, damage))
        self._shards = listed
        written = json.dumps(listed, indent=1, sort_keys=True)
        atomic.write_file(self._folder / DAMAGE_FILE, written)
        print(f"sigline: replaced damaged records: {'; '.join(lines)}", file=sys.stderr)
        return True


def _damage(path: str | Path, expected: int | None, name: str, check: Check | None) -> dict | None:
    """Returns what is to be known of a shard's damage; None for a whole shard."""
    if not Path(path).is_file():
        gone = Place(0, 0, "the file is missing")
        return {"copy": None, "records": 0, "lost": 0, "places": [gone._asdict()]}
    places, whole = [], 0
    for item in _tried(path, check):
        if isinstance(item, Place):
            places.append(item)
        else:
            whole += 1
    number = whole + len(places)
    records = number if expected is None else expected
    if not places and number == records:
        return None
    if number < records:
        places = places or [Place(number, -1, "the shard ends before it")]
    copy = f"{hashlib.sha256(name.encode()).hexdigest()[:16]}.gz"
    return {
        # No copy where no whole record can take the place of the damaged ones, or where too many
        # records show that the manifest is of another shard.
        "copy": copy if whole and number <= records else None,
        "records": records,
        "lost": abs(records - whole),
        "places": [place._asdict() for place in places],
    }


def _tried(path: str | Path, check: Check | None) -> Iterator[bytes | Place]:
    """Yields what `read` does, with a place for each record that cannot be used."""
    numbered = enumerate(read(path))
    while part := list(itertools.islice(numbered, _TRIED)):
        whole = [(number, item) for number, item in part if not isinstance(item, Place)]
        problems = check([item for _, item in whole]) if check else {}
        bad = {whole[i][0]: Place(whole[i][0], -1, reason) for i, reason in problems.items()}
        yield from (bad.get(number, item) for number, item in part)


def _line(path: str, damage: dict) -> str:
    places = []
    for place in damage["places"][:_SHOWN]:
        offset = f" at byte {place['offset']}" if place["offset"] >= 0 else ""
        places.append(f"record {place['record']}{offset}: {place['reason']}")
    more = len(damage["places"]) - _SHOWN
    places += [f"and {more} more"] if more > 0 else []
    return f"{path}: {damage['lost']} of {damage['records']} records ({'; '.join(places)})"


def _repaired(path: str, damage: dict) -> Iterator[bytes]:
    """Yields as many records as the shard should have."""
    last, written, owed = b"", 0, 0
    damaged = {place["record"] for place in damage["places"]}
    for number, item in enumerate(read(path)):
        if isinstance(item, Place) or number in damaged:
            owed += 1
            continue
        # Damaged records before the first whole one become copies of it.
        for _ in range(owed):
            yield last or item
        written, owed, last = written + owed + 1, 0, item
        yield item
    for _ in range(damage["records"] - written):
        yield last
