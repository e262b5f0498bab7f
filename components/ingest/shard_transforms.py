"""Beam transforms that give the rows of a split to shards and write them."""

import hashlib
import itertools
import posixpath
import uuid
from collections import defaultdict
from dataclasses import dataclass

import apache_beam as beam
from apache_beam.io.filesystems import FileSystems
from apache_beam.pvalue import AsDict

from sigline.components.ingest import placement, rules
from sigline.components.ingest.options import IngestConfig
from sigline.components.ingest.sources import Place
from sigline.components.shared.files import BeamFiles, rename
from sigline.schemas import digests, progress, record

# Prefix of the names of shards that are not complete yet.
UNFINISHED = "tmp-"


@dataclass(frozen=True)
class WrittenShard:
    """A shard that was written.

    Attributes:
        split: Its split.
        name: Its file's name.
        records: How many records it holds.
        size: Bytes of its file.
        sha256: Digest of its file.
        sources: How many of them are of each source.
        captionless: How many of them have no caption.
    """

    split: str
    name: str
    records: int
    size: int
    sha256: str
    sources: dict[str, int]
    captionless: int


class WriteShards(beam.PTransform):
    """From `(split, row)` to shards below `examples_dir`, each in its final order."""

    def __init__(self, examples_dir: str, config: IngestConfig):
        super().__init__()
        self._examples_dir = examples_dir
        self._config = config

    def expand(self, rows):
        """Returns a `WrittenShard` for each; a split without rows has one without records."""
        sizes = AsDict(
            rows | "SplitOfRow" >> beam.Keys() | "SplitSizes" >> beam.combiners.Count.PerElement()
        )
        splits = rows.pipeline | "Splits" >> beam.Create(record.SPLITS)
        empty_shards = splits | "EveryShard" >> beam.FlatMap(_all_shards, sizes, self._config)
        return (
            (rows | "AssignShard" >> beam.Map(_assign_shard, sizes, self._config), empty_shards)
            | "RowsAndShards" >> beam.Flatten()
            | "GroupByShard" >> beam.GroupByKey()
            | "WriteShard" >> beam.ParDo(_WriteShard(self._examples_dir, self._config))
        )


def _assign_shard(item: tuple[str, rules.Row], sizes: dict[str, int], config: IngestConfig):
    split, row = item
    shards = placement.num_shards(sizes[split], config)
    return (split, placement.shard_of(placement.order_key(row, config), shards), shards), row


def _all_shards(split: str, sizes: dict[str, int], config: IngestConfig):
    shards = placement.num_shards(sizes.get(split, 0), config)
    return [((split, shard, shards), None) for shard in range(shards)]


class _WriteShard(beam.DoFn):
    """Writes one output shard in its final order."""

    def __init__(self, examples_dir: str, config: IngestConfig):
        self._examples_dir = examples_dir
        self._config = config

    def process(self, item):
        # Imported here, so that only workers that write shards load TensorFlow.
        from sigline.schemas import tf_example

        (split, shard, shards), rows = item
        progress.note(f"writing {split}")
        rows = sorted(
            (row for row in rows if row is not None),
            key=lambda row: placement.order_key(row, self._config),
        )
        stored = self._fetch(rows)
        name = f"data_tfrecord-{shard:05d}-of-{shards:05d}.gz"
        # Written outside the split's folder, because every file in that counts as a shard.
        scratch = posixpath.join(self._examples_dir, f"{UNFINISHED}{uuid.uuid4().hex}-{name}")
        tf_example.write_shard(
            scratch,
            (tf_example.encode(row.to_record(stored[row.place])) for row in rows),
        )
        with FileSystems.open(scratch, compression_type="uncompressed") as handle:
            digest = digests.stream_digest(handle)
            size = handle.tell()
        rename(scratch, posixpath.join(self._examples_dir, f"Split-{split}", name))
        sources: dict[str, int] = defaultdict(int)
        for row in rows:
            sources[row.source] += 1
        captionless = sum(not row.text for row in rows)
        yield WrittenShard(split, name, len(rows), size, digest, dict(sources), captionless)

    def _fetch(self, rows: list[rules.Row]) -> dict[Place | None, bytes]:
        """Returns the images of rows as they are stored, reading each file front to back."""
        images: dict[Place | None, bytes] = {}
        placed = [(row.place, row) for row in rows if row.place is not None]
        ordered = sorted(placed, key=lambda item: item[0])
        for path, group in itertools.groupby(ordered, key=lambda item: item[0].path):
            with BeamFiles().open(path) as handle:
                for place, row in group:
                    handle.seek(place.offset)
                    image = handle.read(place.size)
                    if hashlib.sha256(image).digest() != row.image_sha256:
                        raise RuntimeError(f"{path} changed while it was read, at {row.key!r}.")
                    images[place] = image
        return images
