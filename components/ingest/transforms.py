"""Beam transforms of ingest: examine, group, split, write.

Images never cross a shuffle. The first pass reads every file once and passes on rows without
images; the second fetches the images of one output shard from their files and writes it. Memory is
bounded by one output shard per worker, and the outcome depends neither on the runner nor on the
number of workers.
"""

import hashlib
import json
import posixpath
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any

import apache_beam as beam
from apache_beam.io.filesystems import FileSystems
from apache_beam.pvalue import AsDict, AsList, AsSingleton, TaggedOutput

from sigline.components.files import rename, write_file
from sigline.components.ingest import images, rules
from sigline.components.ingest.readers import reader_for
from sigline.schemas import artifacts, digests, record
from sigline.schemas.labels import LabelSet

_ROW, _REJECTED, _READ = "row", "rejected", "read"


def input_files(base: str) -> list[str]:
    """Returns the files below a folder that some reader reads, sorted.

    Raises:
        ValueError: If there are none.
    """
    pattern = posixpath.join(base, "*")
    found = sorted(item.path for item in FileSystems.match([pattern])[0].metadata_list)
    files = [path for path in found if reader_for(path) is not None]
    if not files:
        raise ValueError(
            f"input_base must hold WebDataset shards (*.tar). Received: input_base={base}, "
            f"which holds {len(found)} other files"
        )
    return files


def copy_classes(base: str, examples_dir: str) -> None:
    """Copies the input's `classes.json` to the examples, if there is one.

    Raises:
        ValueError: If the file is no label set.
    """
    path = posixpath.join(base, record.CLASSES_FILE)
    if not FileSystems.exists(path):
        return
    with FileSystems.open(path) as handle:
        labels = LabelSet.from_json(handle.read().decode())
    write_file(posixpath.join(examples_dir, record.CLASSES_FILE), labels.to_json().encode())


class Ingest(beam.PTransform):
    """Reads shards and writes the examples artifact and the report beside it.

    Below `examples_dir`: `Split-NAME/data_tfrecord-k-of-n.gz` and `manifest.json`. Below
    `report_dir`: `rejected/rejected-k-of-n.jsonl`, one file per input file, and `counts.json`,
    which is written last.
    """

    def __init__(
        self, files: list[str], examples_dir: str, report_dir: str, config: rules.IngestConfig
    ):
        super().__init__()
        self._files = files
        self._examples_dir = examples_dir
        self._report_dir = report_dir
        self._config = config

    def expand(self, pbegin):
        """Returns the counts, a collection of one dictionary."""
        examined = (
            pbegin
            | "Files" >> beam.Create(list(enumerate(self._files)))
            | "SpreadFiles" >> beam.Reshuffle()
            | "Examine"
            >> beam.ParDo(
                _ExamineFile(len(self._files), self._report_dir, self._config.limits)
            ).with_outputs(_REJECTED, _READ, main=_ROW)
        )
        rows = self._split(examined[_ROW])
        sizes = AsDict(
            rows | "SplitOfRow" >> beam.Keys() | "SplitSizes" >> beam.combiners.Count.PerElement()
        )
        splits = pbegin | "Splits" >> beam.Create(record.SPLITS)
        empty_shards = splits | "EveryShard" >> beam.FlatMap(_all_shards, sizes, self._config)
        written = (
            (rows | "AssignShard" >> beam.Map(_assign_shard, sizes, self._config), empty_shards)
            | "RowsAndShards" >> beam.Flatten()
            | "GroupByShard" >> beam.GroupByKey()
            | "WriteShard" >> beam.ParDo(_WriteShard(self._examples_dir, self._config))
        )
        return (
            pbegin
            | "Once" >> beam.Create([None])
            | "WriteReport"
            >> beam.Map(
                _write_report,
                AsList(written),
                AsList(examined[_READ]),
                AsDict(examined[_REJECTED] | "CountReasons" >> beam.combiners.Count.PerElement()),
                self._examples_dir,
                self._report_dir,
                self._config.eval_sources,
            )
        )

    def _split(self, rows):
        """Keys rows by split: groups of duplicates go one way, with forced sources to eval."""
        edges = (
            rows
            | "Bands" >> beam.FlatMap(_by_band)
            | "GroupByBand" >> beam.GroupByKey()
            | "DuplicateEdges" >> beam.FlatMapTuple(lambda _, items: rules.duplicate_edges(items))
        )
        roots = AsSingleton(
            edges | "Edges" >> beam.combiners.ToList() | "GroupRoots" >> beam.Map(rules.group_roots)
        )
        return (
            rows
            | "KeyByGroup"
            >> beam.Map(lambda row, up: (up.get(row.image_sha256, row.image_sha256), row), roots)
            | "GroupByPicture" >> beam.GroupByKey()
            | "KeyBySplit" >> beam.FlatMap(_split_group, self._config)
        )


def _by_band(row: rules.Row) -> Iterator[tuple[tuple[int, int], rules.Fingerprint]]:
    for band in rules.bands(row.image_phash):
        yield band, (row.image_sha256, row.image_phash, row.thumbnail)


def _split_group(item: tuple[bytes, Iterable[rules.Row]], config: rules.IngestConfig):
    group, rows = item[0], list(item[1])
    forced = any(row.source in config.eval_sources for row in rows)
    split = record.EVAL_SPLIT if forced else rules.split_of(group, config)
    return [(split, row) for row in rows]


def _assign_shard(item: tuple[str, rules.Row], sizes: dict[str, int], config: rules.IngestConfig):
    split, row = item
    shards = rules.num_shards(sizes[split], config)
    return (split, rules.shard_of(rules.order_key(row, config), shards), shards), row


def _all_shards(split: str, sizes: dict[str, int], config: rules.IngestConfig):
    shards = rules.num_shards(sizes.get(split, 0), config)
    return [((split, shard, shards), None) for shard in range(shards)]


class _ExamineFile(beam.DoFn):
    """Reads one input file; writes its rejections and passes on its rows."""

    def __init__(self, num_files: int, report_dir: str, limits: images.ImageLimits):
        self._num_files = num_files
        self._folder = posixpath.join(report_dir, artifacts.REJECTED_FOLDER)
        self._limits = limits

    def process(self, item: tuple[int, str]):
        number, path = item
        reader = reader_for(path)
        assert reader is not None, path
        rejected, read = [], 0
        with FileSystems.open(path, compression_type="uncompressed") as handle:
            for pair in reader.scan(handle, path, self._limits.max_bytes):
                read += 1
                outcome = rules.examine(pair, self._limits)
                if isinstance(outcome, rules.Row):
                    yield outcome
                else:
                    rejected.append(outcome)
                    yield TaggedOutput(_REJECTED, outcome.reason)
        name = f"rejected-{number:05d}-of-{self._num_files:05d}.jsonl"
        lines = "".join(rejection.to_json() + "\n" for rejection in rejected)
        write_file(posixpath.join(self._folder, name), lines.encode())
        yield TaggedOutput(_READ, read)


class _WriteShard(beam.DoFn):
    """Writes one output shard in its final order."""

    def __init__(self, examples_dir: str, config: rules.IngestConfig):
        self._examples_dir = examples_dir
        self._config = config

    def process(self, item):
        # TensorFlow is imported where shards are written only.
        from sigline.schemas import tf_example

        (split, shard, shards), rows = item
        rows = sorted(
            (row for row in rows if row is not None),
            key=lambda row: rules.order_key(row, self._config),
        )
        stored = self._fetch(rows)
        name = f"data_tfrecord-{shard:05d}-of-{shards:05d}.gz"
        # Written outside the split's folder, whose every file counts as a shard.
        scratch = posixpath.join(self._examples_dir, f"tmp-{split}-{name}")
        tf_example.write_shard(
            scratch,
            (tf_example.encode(row.to_record(stored[row.shard, row.locator])) for row in rows),
        )
        with FileSystems.open(scratch, compression_type="uncompressed") as handle:
            digest = digests.stream_digest(handle)
        rename(scratch, posixpath.join(self._examples_dir, f"Split-{split}", name))
        sources: dict[str, int] = defaultdict(int)
        for row in rows:
            sources[row.source] += 1
        yield split, name, {"records": len(rows), "sha256": digest}, dict(sources)

    def _fetch(self, rows: list[rules.Row]) -> dict[tuple[str, Any], bytes]:
        """Returns the stored form of the rows' images, reading each input file front to back."""
        by_file: dict[str, list[rules.Row]] = defaultdict(list)
        for row in rows:
            by_file[row.shard].append(row)
        found = {}
        for path, wanted in sorted(by_file.items()):
            wanted.sort(key=lambda row: row.locator)
            reader = reader_for(path)
            assert reader is not None, path
            with FileSystems.open(path, compression_type="uncompressed") as handle:
                fetched = reader.fetch(handle, [row.locator for row in wanted])
                for row, image in zip(wanted, fetched, strict=True):
                    if row.transcoded:
                        image = images.check_image(image, self._config.limits).stored
                    if hashlib.sha256(image).digest() != row.image_sha256:
                        raise RuntimeError(f"{path} changed while it was read, at {row.key!r}.")
                    found[row.shard, row.locator] = image
        return found


def _write_report(
    _,
    written,
    read: list[int],
    reasons: dict[str, int],
    examples_dir: str,
    report_dir: str,
    eval_sources: tuple[str, ...],
) -> dict[str, Any]:
    splits: dict[str, dict[str, Any]] = {
        name: {"shards": {}, "sources": {}} for name in record.SPLITS
    }
    for split, name, shard, sources in sorted(written, key=lambda item: item[:2]):
        splits[split]["shards"][name] = shard
        for source, count in sources.items():
            splits[split]["sources"][source] = splits[split]["sources"].get(source, 0) + count
    sources = {source for split in splits.values() for source in split["sources"]}
    if missing := sorted(set(eval_sources) - sources):
        raise ValueError(
            f"eval_sources must name sources of the input. Received: {missing}, which no record "
            f"has; the input has {sorted(sources)}"
        )
    manifest = json.dumps({"splits": splits}, sort_keys=True, indent=1)
    write_file(posixpath.join(examples_dir, record.MANIFEST_FILE), manifest.encode())
    records = {
        name: sum(shard["records"] for shard in split["shards"].values())
        for name, split in splits.items()
    }
    written_total, rejected_total = sum(records.values()), sum(reasons.values())
    if sum(read) != written_total + rejected_total:
        raise RuntimeError(
            "Ingest lost or doubled pairs; its output must not be used. Received: "
            f"read={sum(read)}, written={written_total}, rejected={rejected_total}"
        )
    counts = {
        "input": sum(read),
        "written": written_total,
        "rejected": rejected_total,
        "rejected_by_reason": reasons,
        "splits": records,
    }
    write_file(
        posixpath.join(report_dir, artifacts.COUNTS_FILE),
        json.dumps(counts, sort_keys=True, indent=1).encode(),
    )
    return counts
