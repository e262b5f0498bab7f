"""Where a row goes: its split, its place in it, and the key that it goes by."""

import hashlib
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import replace

from sigline.components.ingest.options import IngestConfig
from sigline.components.ingest.rules import Row
from sigline.schemas import record


def is_evaluated(row: Row, config: IngestConfig) -> bool:
    """Whether a row belongs to what models are evaluated on, of this input or another."""
    of_sets = row.number[0] < 0 and not row.earlier
    return of_sets or row.source in config.eval_sources


def split_of(group: bytes, config: IngestConfig) -> str:
    """Returns the split of a group of duplicates, a function of its key alone."""
    position = _uniform(b"split", group, config.split_seed)
    return record.EVAL_SPLIT if position < config.eval_share else record.TRAIN_SPLIT


def rank(row: Row, config: IngestConfig) -> tuple:
    """Returns what orders the copies of a picture, the best first; no two are equal."""
    texts = set(row.text)
    longest = max(map(len, texts), default=0)
    return (-row.width * row.height, -len(texts), -longest, order_key(row, config))


def order_key(row: Row, config: IngestConfig) -> bytes:
    """Returns where a row stands in its split: pseudo-random, the same in every run."""
    where = (row.source, row.key, row.shard, repr(row.position))
    name = "\0".join(where).encode("utf-8", "surrogateescape")
    return hashlib.sha256(b"order%d\0" % config.split_seed + name).digest()


def with_unique_keys(
    rows: Iterable[tuple[str, Row]], config: IngestConfig
) -> Iterator[tuple[str, Row]]:
    """Returns rows, with their splits, that came with one key under keys of their own."""
    stream = iter(rows)
    first, second = next(stream), next(stream, None)
    if second is None:
        yield first
        return
    for split, row in itertools.chain((first, second), stream):
        # A repeated key is made unique by a digest of where the pair stood in the input.
        yield split, replace(row, key=f"{row.key}~{order_key(row, config).hex()[:12]}")


def num_shards(records: int, config: IngestConfig) -> int:
    """Returns the number of shards for a split; an empty split still has one.

    It is rounded up to a divisor or a multiple of the lanes that training reads a split in, so that
    lanes have equal numbers of shards.
    """
    shards = max(1, -(-records // config.shard_records))
    if shards > record.LANES:
        return -(-shards // record.LANES) * record.LANES
    return min(x for x in range(shards, record.LANES + 1) if record.LANES % x == 0)


def shard_of(position: bytes, shards: int) -> int:
    """Returns the shard that a row with this order key belongs to."""
    return int.from_bytes(position[:8], "big") * shards >> 64


def _uniform(purpose: bytes, key: bytes, seed: int) -> float:
    digest = hashlib.sha256(purpose + b"%d\0" % seed + key).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
