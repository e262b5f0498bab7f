"""Beam transforms of ingest: examine, group, split, write.

Images never cross a shuffle. The first pass reads every part of the input once and passes on rows
without images; the second reads the images of one output shard and writes it. Images that cannot be
read again in place, or that are stored in another form, wait in files of their own in between.
Memory is bounded by one output shard per worker, and the outcome depends neither on the runner nor
on the number of workers.
"""

import functools
import gc
import hashlib
import itertools
import json
import posixpath
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any, BinaryIO, NamedTuple

import apache_beam as beam
from apache_beam.io.filesystems import FileSystems
from apache_beam.pvalue import AsDict, AsList, AsSingleton

from sigline.components.files import BeamFiles, make_folder, rename, write_file
from sigline.components.ingest import (
    account,
    account_transforms,
    group_transforms,
    inventory,
    readers,
    reasons,
    report_transforms,
    rules,
    tag_transforms,
)
from sigline.components.ingest.class_labels import ClassNames
from sigline.components.ingest.filters import FilterConfig
from sigline.components.ingest.images import ImageLimits
from sigline.components.ingest.readers.tables import caption_files
from sigline.components.ingest.sources import (
    Members,
    Part,
    PassedOver,
    Place,
    Problem,
    RawPair,
    SourceConfig,
    is_no_file,
    unicode_text,
)
from sigline.components.outputs import ParDoByTag
from sigline.schemas import artifacts, digests, entries, progress, record
from sigline.schemas.labels import LabelSet

_ROW, _REJECTED, _READ, _APART = "row", "rejected", "read", "apart"
_MEMBERS, _NAMED = "members", "named"
# Name of the count of all pairs read, which stands beside the counts by reason of rejection.
_INPUT = "input"
# Folder of images that wait to be written to a shard.
_WAITING_FOLDER = "waiting"
# Prefix of the names of shards that are not complete yet.
_UNFINISHED = "tmp-"
# Bytes read from an image file at a time.
_PIECE_BYTES = 2**16
# Rejections written to one file.
_REJECTED_LINES = 10_000
# Reasons for passing over files that can be read and may hold pairs.
_COUNTED_FILES = (reasons.UNKNOWN_FORMAT, reasons.OTHER_FORMAT, reasons.UNLISTED)


class Read(NamedTuple):
    """A part of the input that was read: how many pairs, and when, in seconds of the epoch."""

    pairs: int
    begin: float
    end: float


def input_files(base: str, source: SourceConfig) -> list[str]:
    """Returns all files that what ingest writes may depend on, sorted.

    Raises:
        ValueError: If the input holds no file of a format that is read.
    """
    source = source.below(base)
    inputs = inventory.take(base, BeamFiles(), source)
    read = {path for paths in inputs.read.values() for path in paths}
    if set(inputs.read) <= set(inventory.SELF_CONTAINED):
        # Ingest reports files that it passes over though they may hold pairs: its output depends
        # on them too.
        others = (x.path for x in inputs.passed_over if x.reason in _COUNTED_FILES)
        return sorted(read.union(others))
    roots = {inputs.base}
    if not source.dataset:
        roots.add(source.root.rstrip("/") or inputs.base)
    entered = (entry for root in roots for entry in BeamFiles().entries(root))
    return sorted(read.union(entry.path for entry in entered if entry.kind == entries.FILE))


def class_names(base: str, source: SourceConfig) -> tuple[str, ...]:
    """Returns the names of the classes that the folders of an input are; none if they are none."""
    if not source.class_folders:
        return ()
    inputs = inventory.take(base, BeamFiles(), source.below(base))
    return next((part.classes for _, part in inputs.parts if part.classes), ())


def copy_classes(base: str, examples_dir: str) -> None:
    """Copies the input's `classes.json` to the examples, if there is one.

    Raises:
        ValueError: If the file is no label set.
    """
    labels = _read_classes(base)
    if labels is not None:
        write_file(posixpath.join(examples_dir, record.CLASSES_FILE), labels.to_json().encode())


def _read_classes(base: str) -> LabelSet | None:
    path = posixpath.join(base, record.CLASSES_FILE)
    if not FileSystems.exists(path):
        return None
    with FileSystems.open(path) as handle:
        return LabelSet.from_json(handle.read().decode())


class Ingest(beam.PTransform):
    """Reads an input and writes the examples artifact and the report beside it.

    Below `examples_dir`: `Split-NAME/data_tfrecord-k-of-n.gz` and `manifest.json`. Below
    `report_dir`: `rejected/rejected-k-of-n-i.jsonl`, for part k of the input, if something of it
    was rejected, and `counts.json`, which is written last.
    """

    def __init__(
        self, input_base: str, examples_dir: str, report_dir: str, config: rules.IngestConfig
    ):
        """Finds the parts of the input.

        Raises:
            ValueError: If there are none, or the input's `classes.json` is no label set.
        """
        super().__init__()
        config = replace(config, source=config.source.below(input_base))
        self._input_base = input_base
        self._inventory = inventory.take(input_base, BeamFiles(), config.source)
        self._parts = self._inventory.parts
        sets = [
            (base, inventory.take(base, BeamFiles(), SourceConfig())) for base in config.eval_sets
        ]
        self._unread_of_sets = [
            (thing.reason, 1)
            for _, of_set in sets
            for thing in of_set.passed_over
            if thing.reason not in reasons.EXPECTED
        ]
        others = [
            *((base, "", part) for base, of_set in sets for part in of_set.parts),
            *(
                (base, split, part)
                for base in config.earlier
                for split in record.SPLITS
                for part in _examples(posixpath.join(base, f"Split-{split}"))
            ),
        ]
        self._work = [
            *(_Work(number, input_base, part) for number, part in enumerate(self._parts)),
            *(
                _Work(-1 - number, base, part, split)
                for number, (base, split, part) in enumerate(others)
            ),
        ]
        labels = _read_classes(input_base)
        self._classes = ClassNames(labels.names if labels is not None else ())
        self._examples_dir = examples_dir
        self._report_dir = report_dir
        self._config = config

    def expand(self, pbegin):
        """Returns the counts, a collection of one dictionary."""
        scanned = (
            pbegin
            | "Parts" >> beam.Create(self._work)
            | "SpreadParts" >> beam.Reshuffle()
            | "ExaminePart"
            >> ParDoByTag(
                _ExaminePart(
                    self._examples_dir,
                    self._report_dir,
                    self._config,
                    self._classes,
                    with_names=bool(self._inventory.named),
                ),
                (_ROW, _REJECTED, _READ, _APART, _MEMBERS, _NAMED),
            )
        )
        apart = (
            scanned[_APART]
            | "SpreadImages" >> beam.Reshuffle()
            | "ExamineImage"
            >> ParDoByTag(
                _ExamineImage(self._examples_dir, self._config, self._classes), (_ROW, _REJECTED)
            )
        )
        examined = {
            name: (scanned[name], apart[name]) | f"All_{name}" >> beam.Flatten()
            for name in (_ROW, _REJECTED)
        }
        captioned = examined[_ROW] | "Captions" >> group_transforms.FilterCaptions(self._config)
        grouped = captioned[group_transforms.ROWS] | "Group" >> group_transforms.Group(self._config)
        rejected = (
            examined[_REJECTED],
            captioned[group_transforms.REJECTED],
            grouped[group_transforms.REJECTED],
        ) | "AllRejected" >> beam.Flatten()
        listed = (
            rejected
            | "OfInput" >> beam.Filter(lambda item: item[0][0] >= 0)
            | "ByFile" >> beam.Map(_by_file)
            | "GroupRejected" >> beam.GroupByKey()
            | "WriteRejected" >> beam.ParDo(_WriteRejected(len(self._parts), self._report_dir))
        )
        rows = (
            grouped[group_transforms.ROWS]
            | "KeyByKey" >> beam.MapTuple(lambda split, row: (row.key, (split, row)))
            | "GroupByKey" >> beam.GroupByKey()
            | "UniqueKeys"
            >> beam.FlatMapTuple(lambda _, items: rules.with_unique_keys(items, self._config))
        )
        tagged = pbegin | "NoTags" >> beam.Create([], reshuffle=False)
        if self._config.tags.wanted:
            rows, tagged = rows | "Tag" >> tag_transforms.Tag(self._config.tags)
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
        parts = (
            {
                "read": scanned[_READ] | "Own" >> beam.Filter(lambda item: item[0] >= 0),
                "rejected": listed,
            }
            | "ByPart" >> beam.CoGroupByKey()
            | "WriteStats" >> beam.ParDo(_WriteStats(self._report_dir))
        )
        evaluated = (
            (
                rejected
                | "OfEvalSets" >> beam.Filter(lambda item: item[0][0] < 0)
                | "ReasonsOfEvalSets" >> beam.Map(lambda item: (item[1].reason, 1)),
                scanned[_MEMBERS] | "MembersOfEvalSets" >> beam.FlatMap(_unread_of_sets),
                pbegin | "FilesOfEvalSets" >> beam.Create(self._unread_of_sets, reshuffle=False),
            )
            | "AllOfEvalSets" >> beam.Flatten()
            | "CountEvalSets" >> beam.CombinePerKey(sum)
        )
        files = scanned[_NAMED] | "PassedOverFiles" >> account_transforms.PassedOverFiles(
            self._inventory, self._report_dir
        )
        remarks = (
            rows
            | "RemarksOfRow" >> beam.FlatMapTuple(lambda _, row: rules.remarks_on(row))
            | "CountRemarks" >> beam.combiners.Count.PerElement()
        )
        profile = rows | "Profile" >> report_transforms.Profile()
        samples = {"kept": rows, "rejected": rejected} | "Samples" >> report_transforms.Samples()
        return (
            pbegin
            | "Once" >> beam.Create([None])
            | "WriteReport"
            >> beam.Map(
                _write_report,
                AsSingleton(profile),
                AsSingleton(samples),
                AsList(files),
                AsList(scanned[_MEMBERS]),
                AsList(written),
                AsSingleton(parts | "AddParts" >> beam.CombineGlobally(rules.add_counts)),
                AsDict(evaluated),
                AsDict(tagged),
                AsDict(remarks),
                self._examples_dir,
                self._report_dir,
                self._config,
                _num_files(self._inventory),
            )
        )


class _Work(NamedTuple):
    """A part to read: its number, the input that it is of, where it lies, and its role."""

    number: int
    base: str
    part: tuple[str, Part]
    earlier: str = ""


def _examples(folder: str) -> tuple[tuple[str, Part], ...]:
    """Returns the parts of a split of examples."""
    return inventory.take(folder, BeamFiles(), SourceConfig(format="tfrecord")).parts


def _by_file(item: tuple[tuple[int, int], rules.Rejection]):
    """Keys a rejection by the file that it is written to."""
    (part, number), rejection = item
    return (part, number // _REJECTED_LINES), (number, rejection)


def _assign_shard(item: tuple[str, rules.Row], sizes: dict[str, int], config: rules.IngestConfig):
    split, row = item
    shards = rules.num_shards(sizes[split], config)
    return (split, rules.shard_of(rules.order_key(row, config), shards), shards), row


def _all_shards(split: str, sizes: dict[str, int], config: rules.IngestConfig):
    shards = rules.num_shards(sizes.get(split, 0), config)
    return [((split, shard, shards), None) for shard in range(shards)]


@functools.cache
def _settle() -> None:
    # Libraries are never freed, yet every full collection would visit all of their objects, which
    # takes a fifth of the time. Frozen once per process only: frozen garbage is never collected.
    gc.freeze()


class _Examine(beam.DoFn):
    """Examines pairs; keeps the images that must wait in one file for each bundle."""

    def __init__(self, examples_dir: str, config: rules.IngestConfig, classes: ClassNames):
        self._folder = posixpath.join(examples_dir, _WAITING_FOLDER)
        self._config = config
        self._classes = classes
        # Filters and limits are for training: a pair is evaluated on whatever training leaves out.
        self._unfiltered = replace(config, filters=FilterConfig(), limits=ImageLimits())
        self._waiting: Any = None
        self._path, self._size = "", 0

    def setup(self):
        """Leaves out of garbage collection what is loaded by now."""
        _settle()

    def finish_bundle(self):
        """Closes the file of the images that wait."""
        if self._waiting is not None:
            self._waiting.close()
            self._waiting = None

    def _outcome(self, part: int, number: int, pair: RawPair):
        config = self._config if part >= 0 else self._unfiltered
        examined = rules.examine(pair, config, (part, number), self._classes)
        progress.advance(1, "pairs")
        if isinstance(examined, rules.Rejection):
            return _REJECTED, ((part, number), examined)
        row, image = examined
        waits = row.place is None and part >= 0
        return _ROW, replace(row, place=self._keep(image)) if waits else row

    def _keep(self, image: bytes) -> Place:
        if self._waiting is None:
            make_folder(self._folder)
            # A unique name, since a runner may execute the same work twice at a time.
            self._path = posixpath.join(self._folder, uuid.uuid4().hex)
            self._waiting = FileSystems.create(self._path, compression_type="uncompressed")
            self._size = 0
        self._waiting.write(image)
        self._size += len(image)
        return Place(self._path, self._size - len(image), len(image))


def _inside(path: str, base: str) -> str:
    """Returns a path from the input's folder on; of that folder its name."""
    return path.removeprefix(base + "/") if path != base else posixpath.basename(path)


class _ExaminePart(_Examine):
    """Reads one part of the input; images with files of their own are left for others."""

    def __init__(
        self,
        examples_dir: str,
        report_dir: str,
        config: rules.IngestConfig,
        classes: ClassNames,
        *,
        with_names: bool,
    ):
        super().__init__(examples_dir, config, classes)
        self._report_dir = report_dir
        self._with_names = with_names

    def process(self, work: _Work):
        part, base, (format_name, place), earlier = work
        source = self._config.source if part >= 0 else SourceConfig()
        limits = self._config.limits if part >= 0 else self._unfiltered.limits
        begin, read = time.time(), 0
        members = account_transforms.PartAccount(part, base.rstrip("/"), self._report_dir)
        named = self._with_names and part >= 0 and format_name in inventory.NAMING
        pairs = readers.READERS[format_name].scan(place, BeamFiles(), source, limits.max_bytes)
        for pair in self._readable(pairs, place.path):
            if isinstance(pair, PassedOver):
                members.add(pair)
                continue
            if isinstance(pair, Members):
                members.num_members = tuple(pair)
                continue
            if named and pair.image_path is not None:
                for path in _named_by(pair.image_path, format_name):
                    yield _NAMED, path
            pair = replace(
                pair,
                shard=_inside(pair.shard, base.rstrip("/")),
                source=place.source or pair.source,
            )
            pair = rules.with_optional_captions(pair, self._config)
            if pair.image_path is not None and pair.problem is None:
                yield _APART, (part, read, pair)
            else:
                tag, outcome = self._outcome(part, read, pair)
                if earlier and isinstance(outcome, rules.Row):
                    outcome = replace(outcome, earlier=earlier)
                yield tag, outcome
            read += 1
        if members.num_members[0]:
            yield _MEMBERS, (part, *members.end())
        yield _READ, (part, Read(read, begin, time.time()))

    def _readable(
        self, pairs: Iterator[RawPair | PassedOver | Members], path: str
    ) -> Iterator[RawPair | PassedOver | Members]:
        try:
            yield from pairs
        except OSError as error:
            if not is_no_file(error):
                raise
            detail = f"the file cannot be opened: {error.strerror}"
            problem = Problem(reasons.DAMAGED_ARCHIVE, detail)
            yield RawPair(key="", source="", shard=path, problem=problem)


def _named_by(image_path: str, format_name: str) -> list[str]:
    """Returns the files that a row names: its image, and a list's caption beside it."""
    sides = caption_files(image_path) if format_name == inventory.LIST else ()
    return [unicode_text(path) for path in (image_path, *sides)]


def _read_up_to(handle: BinaryIO, limit: int) -> bytes:
    """Reads a file piece by piece: at once, room for all of the limit would be made."""
    pieces = []
    while limit > 0 and (piece := handle.read(min(limit, _PIECE_BYTES))):
        pieces.append(piece)
        limit -= len(piece)
    return b"".join(pieces)


class _ExamineImage(_Examine):
    """Reads the image of one pair from its own file."""

    def process(self, item: tuple[int, int, RawPair]):
        part, number, pair = item
        assert pair.image_path is not None
        try:
            with BeamFiles().open(pair.image_path) as handle:
                limits = self._config.limits if part >= 0 else self._unfiltered.limits
                image = _read_up_to(handle, limits.max_bytes + 1)
            pair = replace(pair, image=image, place=Place(pair.image_path, 0, len(image)))
        except OSError as error:
            if not is_no_file(error):
                raise
            problem = Problem(reasons.MISSING_IMAGE, f"{pair.image_path}: {error.strerror}")
            pair = replace(pair, problem=problem)
        yield self._outcome(part, number, pair)


class _WriteRejected(beam.DoFn):
    """Writes some of the rejections of a part, in order, and counts them by reason."""

    def __init__(self, num_parts: int, report_dir: str):
        self._num_parts = num_parts
        self._folder = posixpath.join(report_dir, artifacts.REJECTED_FOLDER)

    def process(self, item: tuple[tuple[int, int], Iterable[tuple[int, rules.Rejection]]]):
        """Returns the part with each reason and its number."""
        (part, piece), numbered = item
        rejections = [x for _, x in sorted(numbered, key=lambda pair: pair[0])]
        name = f"rejected-{part:05d}-of-{self._num_parts:05d}-{piece:03d}.jsonl"
        lines = "".join(rejection.to_json() + "\n" for rejection in rejections)
        write_file(posixpath.join(self._folder, name), lines.encode())
        for reason, count in sorted(Counter(x.reason for x in rejections).items()):
            yield part, (reason, count)


# Reasons that img2dataset counts as failed downloads; it counts the others as failed resizes.
_NOT_DOWNLOADED = (
    reasons.MISSING_IMAGE,
    reasons.UNSAFE_PATH,
    reasons.INVALID_ROW,
    reasons.DAMAGED_ARCHIVE,
)


class _WriteStats(beam.DoFn):
    """Writes what became of a part as img2dataset does, for the dashboards that read that."""

    def __init__(self, report_dir: str):
        self._folder = posixpath.join(report_dir, artifacts.STATS_FOLDER)

    def process(self, item):
        """Returns the part's counts: of the pairs read, and of those rejected by reason."""
        part, joined = item
        read: Read = next(iter(joined["read"]))
        rejected = Counter()
        for reason, count in joined["rejected"]:
            rejected[reason] += count
        successes = read.pairs - rejected.total()
        not_downloaded = sum(rejected[reason] for reason in _NOT_DOWNLOADED)
        stats = {
            "count": read.pairs,
            "successes": successes,
            "failed_to_download": not_downloaded,
            "failed_to_resize": rejected.total() - not_downloaded,
            "status_dict": {"success": successes, **rejected},
            "start_time": read.begin,
            "end_time": read.end,
            "duration": read.end - read.begin,
        }
        content = json.dumps(stats, sort_keys=True, indent=1).encode()
        write_file(posixpath.join(self._folder, f"{part:05d}_stats.json"), content)
        yield Counter({_INPUT: read.pairs}) + rejected


class _WriteShard(beam.DoFn):
    """Writes one output shard in its final order."""

    def __init__(self, examples_dir: str, config: rules.IngestConfig):
        self._examples_dir = examples_dir
        self._config = config

    def process(self, item):
        # Imported here, so that only workers that write shards load TensorFlow.
        from sigline.schemas import tf_example

        (split, shard, shards), rows = item
        progress.note(f"writing {split}")
        rows = sorted(
            (row for row in rows if row is not None),
            key=lambda row: rules.order_key(row, self._config),
        )
        stored = self._fetch(rows)
        name = f"data_tfrecord-{shard:05d}-of-{shards:05d}.gz"
        # Written outside the split's folder, because every file in that counts as a shard.
        scratch = posixpath.join(self._examples_dir, f"{_UNFINISHED}{uuid.uuid4().hex}-{name}")
        tf_example.write_shard(
            scratch,
            (tf_example.encode(row.to_record(stored[row.place])) for row in rows),
        )
        with FileSystems.open(scratch, compression_type="uncompressed") as handle:
            digest = digests.stream_digest(handle)
        rename(scratch, posixpath.join(self._examples_dir, f"Split-{split}", name))
        sources: dict[str, int] = defaultdict(int)
        for row in rows:
            sources[row.source] += 1
        captionless = sum(not row.text for row in rows)
        yield split, name, {"records": len(rows), "sha256": digest}, dict(sources), captionless

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


def _num_files(inputs: inventory.Inventory) -> tuple[int, int, int]:
    """Returns how many files there are, how many are read, and how many if a row names them."""
    return inputs.num_things, sum(map(len, inputs.read.values())), len(inputs.named)


def _unread_of_sets(item: tuple[int, account.Ledger, tuple[int, int]]):
    """Yields what was passed over in an archive of an evaluation set that may hold pairs."""
    part, (by_reason, _), _ = item
    if part < 0:
        yield from ((x, number) for x, number in by_reason.items() if x not in reasons.EXPECTED)


def _account(
    files: list[account.Ledger],
    members: list[tuple[int, account.Ledger, tuple[int, int]]],
    num_files: int,
    num_read: int,
    num_named: int,
) -> dict[str, Any]:
    own = [(account.Ledger(*one), numbers) for part, one, numbers in members if part >= 0]
    passed_over = account.add(account.Ledger(*one) for one in files)
    named = num_named - passed_over.by_reason.get(reasons.UNNAMED_IMAGE, 0)
    return account.summary(
        passed_over,
        account.add(one for one, _ in own),
        num_files=(num_files, num_read + named),
        num_members=(sum(total for _, (total, _) in own), sum(read for _, (_, read) in own)),
    )


def _write_report(
    _,
    profile: dict[str, Any],
    samples: dict[str, Any],
    files: list[account.Ledger],
    members: list[tuple[int, account.Ledger, tuple[int, int]]],
    written,
    counted: Counter,
    not_protected: dict[str, int],
    tagged: dict[str, int],
    remarks: dict[str, int],
    examples_dir: str,
    report_dir: str,
    config: rules.IngestConfig,
    num_files: tuple[int, int, int],
) -> dict[str, Any]:
    splits: dict[str, dict[str, Any]] = {
        name: {"shards": {}, "sources": {}} for name in record.SPLITS
    }
    captionless = 0
    for split, name, shard, sources, number in sorted(written, key=lambda item: item[:2]):
        captionless += number
        splits[split]["shards"][name] = shard
        for source, count in sources.items():
            splits[split]["sources"][source] = splits[split]["sources"].get(source, 0) + count
    sources = {source for split in splits.values() for source in split["sources"]}
    if missing := sorted(set(config.eval_sources) - sources):
        raise ValueError(
            f"eval_sources must name sources of the input. Received: {missing}, which no record "
            f"has; the input has {sorted(sources)}"
        )
    if tagged:
        content = json.dumps(tagged, sort_keys=True, indent=1).encode()
        write_file(posixpath.join(examples_dir, record.TAGS_FILE), content)
    records = {
        name: sum(shard["records"] for shard in split["shards"].values())
        for name, split in splits.items()
    }
    # Shards that killed runs left unfinished go, too.
    waiting = posixpath.join(examples_dir, _WAITING_FOLDER)
    unfinished = FileSystems.match([posixpath.join(examples_dir, _UNFINISHED + "*")])[0]
    stale = [file.path for file in unfinished.metadata_list]
    FileSystems.delete(stale + ([waiting] if FileSystems.exists(waiting) else []))
    by_reason = {name: count for name, count in counted.items() if name != _INPUT}
    read, written_total, rejected_total = (
        counted[_INPUT],
        sum(records.values()),
        sum(by_reason.values()),
    )
    if read != written_total + rejected_total:
        raise RuntimeError(
            "Ingest lost or doubled pairs; its output must not be used. Received: "
            f"read={read}, written={written_total}, rejected={rejected_total}"
        )
    counts = {
        "input": read,
        "written": written_total,
        "rejected": rejected_total,
        "rejected_by_reason": by_reason,
        # Pairs of evaluation sets that could not be read, or that are trained on already.
        "eval_sets_unreadable": not_protected,
        "splits": records,
        # What was dropped from pairs that were written, such as captions that are empty.
        "remarks": dict(remarks),
        # Files and archive members; those read and those passed over add up to all of them.
        "passed_over": _account(files, members, *num_files),
    }
    if config.captions == rules.OPTIONAL:
        counts[record.WITHOUT_CAPTIONS] = captionless
    for name, content in (
        (artifacts.PROFILE_FILE, profile),
        (artifacts.SAMPLES_FILE, samples),
    ):
        encoded = json.dumps(content, sort_keys=True, indent=1).encode()
        write_file(posixpath.join(report_dir, name), encoded)
    write_file(
        posixpath.join(report_dir, artifacts.COUNTS_FILE),
        json.dumps(counts, sort_keys=True, indent=1).encode(),
    )
    # The manifest is written last: if it is there, everything else is.
    manifest = json.dumps({"splits": splits}, sort_keys=True, indent=1)
    write_file(posixpath.join(examples_dir, record.MANIFEST_FILE), manifest.encode())
    return counts
