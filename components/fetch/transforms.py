"""Beam transforms that fetch the images of tables of URLs into WebDataset shards.

A shard holds a fixed number of rows of one part of the input, is written whole or not at all, and
is not fetched again while its rows are the same. Every row ends in the list beside its shard.
"""

import collections
import functools
import hashlib
import io
import itertools
import json
import posixpath
import re
import tarfile
import time
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import apache_beam as beam
from apache_beam.io.filesystems import FileSystems

from sigline.components.fetch import url_tables
from sigline.components.fetch.fetcher import (
    INVALID_URL,
    SUCCESS,
    FetchConfig,
    Fetched,
    Fetcher,
)
from sigline.components.fetch.url_tables import TablePart
from sigline.components.ingest import account, cells, readers
from sigline.components.ingest.sources import (
    IMAGE_SUFFIXES,
    Part,
    Place,
    RawPair,
    SourceConfig,
    family,
    unicode_text,
)
from sigline.components.shared import files
from sigline.components.shared.files import BeamFiles
from sigline.schemas import digests, ownership, progress, record

COUNTS_FILE = "counts.json"
_NO_URL = "no_url"
# Statuses of rows for which no request was sent.
_NOT_ASKED = (_NO_URL, INVALID_URL)
# Names that the metadata of a fetched pair uses itself; columns of these names are renamed.
_OWN_NAMES = ("caption", "captions", "key", "label", "status", "url")
# Settings that decide which outcomes are accepted, not how requests are made.
_DECIDING = ("max_bytes", "max_redirects", "opt_outs", "user_agent_token", "allowed_networks")
# Matches a shard's name; the group is the name of its part.
_PART = re.compile(r"(.+-\d{12})\d+")
# Names of a shard's files: the table's family, then digits for the part and the place in it.
_SHARD = re.compile(r".+-\d{17}(\.tar|\.jsonl|_stats\.json)")


class Block(NamedTuple):
    """Rows of one part of the input that become one shard: its name, and the rows in order."""

    name: str
    rows: tuple[RawPair, ...]


class Fetch(beam.PTransform):
    """Fetches what the tables of a folder name.

    Writes, for each block of rows: `NAME.tar`, images with their captions; `NAME.jsonl`, what
    became of each row; `NAME_stats.json`, as img2dataset does, which is written last. And
    `counts.json` over all.
    """

    def __init__(
        self,
        input_base: str,
        output_dir: str,
        config: FetchConfig,
        *,
        source: SourceConfig | None = None,
        shard_rows: int = 1000,
        threads: int = 16,
        again: bool = False,
    ):
        """Finds the parts of the input.

        Args:
            input_base: Folder of the tables.
            output_dir: Folder to write to; one that is partly written is gone on with.
            config: How to fetch.
            source: How the tables are read.
            shard_rows: Rows of a shard.
            threads: Requests of a worker at a time.
            again: Whether rows of finished shards are tried again that may end otherwise now.

        Raises:
            ValueError: If there are no tables, one lacks a column, or a number is out of range.
        """
        super().__init__()
        for name, value in (("shard_rows", shard_rows), ("threads", threads)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1. Received: {name}={value}")
        inside = posixpath.join(input_base, "")
        tables = url_tables.find(input_base, output_dir, BeamFiles(), source or SourceConfig())
        self._parts = [(_part_name(item.part, inside), item) for item in tables.parts]
        self._tables = {name: item.part.path.removeprefix(inside) for name, item in self._parts}
        _check_counts(posixpath.join(output_dir, COUNTS_FILE))
        self._output_dir = output_dir
        self._shard_rows = shard_rows
        self._block = _FetchBlock(output_dir, config, threads, again=again)

    def expand(self, pbegin):
        """Returns the number of rows by status, a collection of one dictionary."""
        return (
            pbegin
            | "Parts" >> beam.Create(self._parts)
            | "SpreadParts" >> beam.Reshuffle()
            | "Blocks" >> beam.FlatMap(_blocks, self._shard_rows)
            | "SpreadBlocks" >> beam.Reshuffle()
            | "FetchBlock" >> beam.ParDo(self._block)
            | "AllBlocks" >> beam.combiners.ToList()
            | "WriteCounts" >> beam.Map(_write_counts, self._output_dir, self._tables)
        )


def _write_counts(
    blocks: list[tuple[str, dict[str, int]]], output_dir: str, tables: dict[str, str]
) -> dict[str, int]:
    # Shards whose rows the tables no longer hold, or that had another number of rows, are removed.
    names = {name for name, _ in blocks}
    existing = (posixpath.basename(path) for path in BeamFiles().find(output_dir))
    shards = ((name, _SHARD.fullmatch(name)) for name in existing)
    old: dict[str, list[str]] = {}
    for name, match in shards:
        if match and name[: match.start(1)] not in names:
            old.setdefault(name[: match.start(1)], []).append(posixpath.join(output_dir, name))
    stale = [paths for paths in old.values() if any(map(_is_of_shard, paths))]
    FileSystems.delete([path for paths in stale for path in paths])
    counted = account.add_counts(counts for _, counts in blocks)
    by_status = dict(sorted(counted.items()))
    counts = {
        "input": sum(counted.values()),
        "by_status": by_status,
        "tables_without_urls": _without_urls(blocks, tables),
    }
    content = json.dumps(counts, sort_keys=True, indent=1).encode()
    files.write_file(posixpath.join(output_dir, COUNTS_FILE), content)
    return by_status


def _is_of_shard(path: str) -> bool:
    """Returns whether a file is of a shard that was fetched, and not someone's of a like name."""
    name = posixpath.basename(path)
    try:
        if name.endswith("_stats.json"):
            return "rows_digest" in json.loads(files.read_text(path))
        prefix = f"{posixpath.splitext(name)[0]}-"
        if name.endswith(".jsonl"):
            first = files.read_text(path).partition("\n")[0]
            return json.loads(first)["key"].startswith(prefix)
        with (
            FileSystems.open(path, compression_type="uncompressed") as handle,
            tarfile.open(fileobj=handle, mode="r|") as archive,
        ):
            member = archive.next()
            return member is not None and member.name.startswith(prefix)
    except (ValueError, KeyError, TypeError, AttributeError, tarfile.TarError):
        return False


def _check_counts(path: str) -> None:
    """Refuses a folder whose file of counts is not one of fetching, as it would be replaced."""
    if not FileSystems.exists(path):
        return
    try:
        counts = json.loads(files.read_text(path))
        own = counts["input"] == sum(counts["by_status"].values())
    except (ValueError, KeyError, TypeError, AttributeError):
        own = False
    if not own:
        raise ownership.not_own(path, "sigline data fetch")


def _without_urls(blocks: list[tuple[str, dict[str, int]]], tables: dict[str, str]) -> list[str]:
    """Returns the tables of which no row names a URL that could be asked for."""
    by_table: dict[str, Counter[str]] = {}
    for name, counts in blocks:
        match = _PART.fullmatch(name)
        assert match is not None
        table = tables[match[1]]
        by_table.setdefault(table, Counter()).update(counts)
    return sorted(name for name, counts in by_table.items() if set(counts) <= set(_NOT_ASKED))


def _blocks(item: tuple[str, TablePart], shard_rows: int) -> Iterator[Block]:
    name, (format_name, part, source) = item
    items = readers.READERS[format_name].scan(part, BeamFiles(), source, 0)
    rows = (item for item in items if isinstance(item, RawPair))
    for place in itertools.count():
        block = tuple(itertools.islice(rows, shard_rows))
        if not block:
            return
        yield Block(f"{name}{place:05d}", block)


def _part_name(part: Part, inside: str) -> str:
    """Returns what a part's shards are named by, whatever other tables there are.

    Behind the table's family stand digits only, so that it is the family of the shards too.
    """
    place = json.dumps([part.path.removeprefix(inside), part.start])
    number = int(hashlib.sha256(place.encode()).hexdigest(), 16) % 10**12
    stem = re.sub(r"[^A-Za-z0-9_-]", "_", family(part.path))[:80]
    return f"{stem}-{number:012d}"


@functools.cache
def _fetcher(config: FetchConfig) -> Fetcher:
    # One fetcher per process, so that limits per host hold for all of its threads together.
    return Fetcher(config)


class _FetchBlock(beam.DoFn):
    def __init__(self, output_dir: str, config: FetchConfig, threads: int, *, again: bool):
        self._output_dir = output_dir
        self._config = config
        self._threads = threads
        self._again = again

    def process(self, block: Block) -> Iterator[tuple[str, dict[str, int]]]:
        """Returns the name of the shard, and its number of rows by status."""
        base = posixpath.join(self._output_dir, block.name)
        described = [repr(replace(row, shard=posixpath.basename(row.shard))) for row in block.rows]
        digest = digests.json_digest([described, [getattr(self._config, x) for x in _DECIDING]])
        before = _finished(f"{base}_stats.json", digest)
        if before is not None:
            statuses = Counter(before)
            if not (self._again and any(Fetched(status).may_pass for status in statuses)):
                yield block.name, dict(statuses)
                return
        begin = time.time()
        kept = _kept(base) if before is not None else {}
        results = self._results(block, kept)
        lines, statuses = _write_shard(base, results)
        lines.sort(key=lambda line: line["key"])
        text = "".join(json.dumps(line, sort_keys=True) + "\n" for line in lines)
        files.write_file(f"{base}.jsonl", text.encode())
        successes = statuses[SUCCESS]
        end = time.time()
        stats = {
            "count": len(block.rows),
            "successes": successes,
            "failed_to_download": len(block.rows) - successes,
            "failed_to_resize": 0,
            "status_dict": dict(statuses),
            "start_time": begin,
            "end_time": end,
            "duration": end - begin,
            "rows_digest": digest,
        }
        content = json.dumps(stats, sort_keys=True, indent=1).encode()
        files.write_file(f"{base}_stats.json", content)
        yield block.name, dict(statuses)

    def _results(
        self, block: Block, kept: dict[str, Fetched | Place]
    ) -> Iterator[tuple[str, RawPair, Fetched]]:
        """Yields rows with what became of them, hosts in turns."""
        fetcher = _fetcher(self._config)
        waiting: collections.deque[tuple[str, RawPair, Future | Fetched | Place]]
        waiting = collections.deque()
        with ThreadPoolExecutor(self._threads) as pool:
            for key, row in _in_turns(block):
                outcome: Future | Fetched | Place
                if key in kept:
                    outcome = kept[key]
                elif row.image_url is not None:
                    outcome = pool.submit(fetcher.fetch, row.image_url)
                else:
                    detail = row.problem.detail if row.problem else "the row names no URL"
                    outcome = Fetched(_NO_URL, detail=detail)
                waiting.append((key, row, outcome))
                # Rows are written in order: outcomes that arrive early wait, in bounded number.
                if len(waiting) > 2 * self._threads:
                    yield _done(*waiting.popleft())
            while waiting:
                yield _done(*waiting.popleft())


def _done(key: str, row: RawPair, outcome: Future | Fetched | Place):
    if isinstance(outcome, Place):
        with BeamFiles().open(outcome.path) as handle:
            handle.seek(outcome.offset)
            return key, row, Fetched(SUCCESS, handle.read(outcome.size))
    return key, row, outcome.result() if isinstance(outcome, Future) else outcome


def _in_turns(block: Block) -> Iterator[tuple[str, RawPair]]:
    """Yields the rows with their keys, the first of each host, then the second of each."""
    hosts: dict[str, list[tuple[str, RawPair]]] = {}
    for number, row in enumerate(block.rows):
        try:
            host = urlsplit(row.image_url or "").hostname or ""
        except ValueError:
            host = ""
        hosts.setdefault(host, []).append((f"{block.name}-{number:06d}", row))
    for turn in itertools.zip_longest(*hosts.values()):
        yield from (item for item in turn if item is not None)


def _finished(path: str, digest: str) -> dict[str, int] | None:
    """Returns the rows by status of a shard that is finished, None for another."""
    if not FileSystems.exists(path):
        return None
    stats = json.loads(files.read_text(path))
    return stats["status_dict"] if stats.get("rows_digest") == digest else None


def _kept(base: str) -> dict[str, Fetched | Place]:
    """Returns the outcomes of a finished shard that stay as they are; of images their places."""
    outcomes: dict[str, Fetched | Place] = {}
    for line in files.read_text(f"{base}.jsonl").splitlines():
        item = json.loads(line)
        outcome = Fetched(item["status"], detail=item["detail"])
        if not outcome.may_pass:
            outcomes[item["key"]] = outcome
    with (
        FileSystems.open(f"{base}.tar", compression_type="uncompressed") as handle,
        tarfile.open(fileobj=handle, mode="r|") as archive,
    ):
        for member in archive:
            key, suffix = posixpath.splitext(member.name)
            if suffix != ".json":
                outcomes[key] = Place(f"{base}.tar", member.offset_data, member.size)
    return outcomes


def _write_shard(
    base: str, results: Iterable[tuple[str, RawPair, Fetched]]
) -> tuple[list[dict[str, str]], Counter]:
    """Writes the images that were fetched, and returns what became of each row."""
    lines, statuses = [], Counter()
    folder, name = posixpath.split(f"{base}.tar")
    files.make_folder(folder)
    scratch = posixpath.join(folder, f".tmp-{uuid.uuid4().hex}-{name}")
    with (
        FileSystems.create(scratch, compression_type="uncompressed") as handle,
        tarfile.open(fileobj=handle, mode="w|", format=tarfile.USTAR_FORMAT) as archive,
    ):
        for key, row, outcome in results:
            progress.advance(1, "rows")
            statuses[outcome.status] += 1
            url = unicode_text(row.image_url or "")
            lines.append(
                {"key": key, "url": url, "status": outcome.status, "detail": outcome.detail}
            )
            if outcome.status != SUCCESS:
                continue
            for suffix, content in ((_suffix(url), outcome.content), (".json", _about(row))):
                member = tarfile.TarInfo(key + suffix)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    # The statistics of the previous shard no longer apply.
    if FileSystems.exists(f"{base}_stats.json"):
        FileSystems.delete([f"{base}_stats.json"])
    files.rename(scratch, f"{base}.tar")
    return lines, statuses


def _suffix(url: str) -> str:
    suffix = posixpath.splitext(urlsplit(url).path)[1].lower()
    # Readers of shards recognise images by their suffix; the real format is in the content.
    return suffix if suffix in IMAGE_SUFFIXES else ".jpg"


def _about(row: RawPair) -> bytes:
    """Returns the metadata of a pair, as ingest reads it beside an image."""
    captions: dict[str, list[Any]] = {}
    for text, language in row.captions or ():
        text = text.decode("utf-8", "surrogateescape") if isinstance(text, bytes) else text
        captions.setdefault(language or record.UNKNOWN_LANGUAGE, []).append(text)
    columns = dict(row.extra or {})
    about = {f"source_{x}" if x in _OWN_NAMES else x: value for x, value in columns.items()}
    about |= {"url": row.image_url, "captions": captions}
    if row.key:
        about["source_key"] = row.key
    if row.label is not None:
        about["label"] = row.label
    return json.dumps(cells.plain(about), sort_keys=True).encode()
