"""Damaged shards: what of them can be read, and copies to go on with, up to a limit of records."""

import hashlib
import json
import os
import sys
import uuid
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from sigline.schemas import tf_example, tfrecord
from sigline.schemas.tfrecord import Place
from sigline.trainer import data

DAMAGE_FILE = "damage.json"
# Of gzip without a name in it, as TensorFlow writes it; what is decompressed at a time, so that not
# much before the damage is lost with it.
_GZIP_HEADER, _PIECE = 10, 512


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
        found = bytes(self._plain[:count])
        del self._plain[:count]
        return found


def read(path: str | Path) -> Iterator[bytes | Place]:
    """Yields the records of a damaged shard, and a place for each that is damaged."""
    with open(path, "rb") as file:
        yield from tfrecord.records(_Reader(file).read)


class Repairs:
    """Copies of damaged shards that a run goes on with, in a folder of its own.

    In a copy each damaged record is replaced by a whole one beside it, so that the number of
    records, and with it the order of all others, stays. What was replaced is listed in
    `damage.json`; a run that resumes starts from there.
    """

    def __init__(self, folder: str | Path, folders: data.Folders, limit: int):
        """Takes up what an interrupted run left.

        Args:
            folder: Where the copies go.
            folders: Folders of the splits.
            limit: How many records may be damaged.
        """
        self._folder, self._limit = Path(folder), limit
        self._names = data.shard_names(folders)
        self._expected = data.expected_records(folders)
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
        return sum(found["lost"] for found in self._shards.values())

    def mend(self) -> bool:
        """Copies what is damaged; returns whether the run can go on with the copies.

        A copy that is damaged itself is made again.

        Raises:
            RuntimeError: If more records are damaged than may be; the message names all of them.
        """
        if not self._limit:
            return False
        print("sigline: looking for damaged records in all shards", file=sys.stderr)
        fresh: dict[str, dict] = {}
        for path, name in self._names.items():
            known = self._shards.get(name)
            if known and not _damage(self._folder / known["copy"], known["records"], name):
                continue
            if found := _damage(path, self._expected[path], name):
                fresh[path] = found
        if not fresh:
            return False
        shards = self._shards | {self._names[path]: found for path, found in fresh.items()}
        lost = sum(found["lost"] for found in shards.values())
        lines = [_line(path, found) for path, found in fresh.items()]
        if lost > self._limit or any(found["copy"] is None for found in fresh.values()):
            raise RuntimeError(
                "Training data cannot be read; write these shards again, or allow more by "
                f"data.max_damaged_records. Received: {lost} damaged records, "
                f"data.max_damaged_records={self._limit}: " + "; ".join(lines)
            )
        self._folder.mkdir(parents=True, exist_ok=True)
        for path, found in fresh.items():
            target = self._folder / found["copy"]
            scratch = target.with_name(f".tmp-{uuid.uuid4().hex}")
            tf_example.write_shard(str(scratch), _repaired(path, found["records"]))
            os.replace(scratch, target)
        self._shards = shards
        scratch = self._folder / f".tmp-{uuid.uuid4().hex}"
        scratch.write_text(json.dumps(shards, indent=1, sort_keys=True))
        os.replace(scratch, self._folder / DAMAGE_FILE)
        print(f"sigline: replaced damaged records: {'; '.join(lines)}", file=sys.stderr)
        return True


def _damage(path: str | Path, expected: int | None, name: str) -> dict | None:
    """Returns what is to be known of a shard's damage; None for a whole shard."""
    if not Path(path).is_file():
        gone = Place(0, 0, "the file is missing")
        return {"copy": None, "records": 0, "lost": 0, "places": [gone._asdict()]}
    places, whole, number = [], 0, 0
    for item in read(path):
        number += 1
        if isinstance(item, Place):
            places.append(item)
        else:
            whole += 1
    records = number if expected is None else expected
    if not places and number == records:
        return None
    if number < records:
        places = places or [Place(number, -1, "the shard ends before it")]
    copy = f"{hashlib.sha256(name.encode()).hexdigest()[:16]}.gz"
    return {
        # Without a whole record there is nothing to put in its place, and with too many the
        # manifest is of another shard.
        "copy": copy if whole and number <= records else None,
        "records": records,
        "lost": abs(records - whole),
        "places": [place._asdict() for place in places],
    }


def _line(path: str, found: dict) -> str:
    places = [f"record {x['record']} at byte {x['offset']}: {x['reason']}" for x in found["places"]]
    return f"{path}: {found['lost']} of {found['records']} records ({'; '.join(places)})"


def _repaired(path: str, records: int) -> Iterator[bytes]:
    """Yields as many records as the shard should have."""
    last, written, owed = b"", 0, 0
    for item in read(path):
        if isinstance(item, Place):
            owed += 1
            continue
        # What was damaged before the first whole record becomes a copy of that.
        for _ in range(owed):
            yield last or item
        written, owed, last = written + owed + 1, 0, item
        yield item
    for _ in range(records - written):
        yield last
