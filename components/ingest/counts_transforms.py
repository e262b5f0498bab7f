"""Beam transforms that say what became of an input: rejections, counts, and the manifest."""

import json
import posixpath
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import apache_beam as beam
from apache_beam.io.filesystems import FileSystems
from apache_beam.pvalue import AsDict, AsList, AsSingleton

from sigline.components.ingest import account, inventory, reasons, rules
from sigline.components.ingest.examine_transforms import WAITING_FOLDER, Read
from sigline.components.ingest.options import OPTIONAL, IngestConfig
from sigline.components.ingest.shard_transforms import UNFINISHED, WrittenShard
from sigline.components.ingest.sources import PassedOver
from sigline.components.shared.files import write_file
from sigline.schemas import artifacts, record

# Name of the count of all pairs read, which stands beside the counts by reason of rejection.
_INPUT = "input"
# Rejections written to one file.
_REJECTED_LINES = 10_000
# Reasons that img2dataset counts as failed downloads; it counts the others as failed resizes.
_NOT_DOWNLOADED = (
    reasons.MISSING_IMAGE,
    reasons.UNSAFE_PATH,
    reasons.INVALID_ROW,
    reasons.DAMAGED_ARCHIVE,
)


class WriteParts(beam.PTransform):
    """Writes the rejections of each part, and its counts as img2dataset does.

    Takes `{"read": (part, Read), "rejected": (number, rejection)}`; those of evaluation sets and
    earlier examples, whose parts have negative numbers, do not count.
    """

    def __init__(self, num_parts: int, report_dir: str):
        super().__init__()
        self._num_parts = num_parts
        self._report_dir = report_dir

    def expand(self, collections):
        """Returns one `Counter`: of the pairs read, and of those rejected by reason."""
        listed = (
            collections["rejected"]
            | "OfInput" >> beam.Filter(lambda item: item[0][0] >= 0)
            | "ByFile" >> beam.Map(_by_file)
            | "GroupRejected" >> beam.GroupByKey()
            | "WriteRejected" >> beam.ParDo(_WriteRejected(self._num_parts, self._report_dir))
        )
        read = collections["read"] | "Own" >> beam.Filter(lambda item: item[0] >= 0)
        return (
            {"read": read, "rejected": listed}
            | "ByPart" >> beam.CoGroupByKey()
            | "WriteStats" >> beam.ParDo(_WriteStats(self._report_dir))
            | "AddParts" >> beam.CombineGlobally(account.add_counts)
        )


def _by_file(item: tuple[tuple[int, int], rules.Rejection]):
    """Keys a rejection by the file that it is written to."""
    (part, number), rejection = item
    return (part, number // _REJECTED_LINES), (number, rejection)


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


class CountUnreadOfSets(beam.PTransform):
    """Counts by reason what of the evaluation sets could not be read, or is trained on already.

    Takes `{"rejected": (number, rejection), "members": (part, ledger, numbers)}`.
    """

    def __init__(self, files: Collection[PassedOver]):
        """Takes the files of the evaluation sets that were passed over."""
        super().__init__()
        self._files = [(x.reason, 1) for x in files if x.reason not in reasons.EXPECTED]

    def expand(self, collections):
        """Returns `(reason, number)`."""
        rejected, members = collections["rejected"], collections["members"]
        return (
            (
                rejected
                | "OfEvalSets" >> beam.Filter(lambda item: item[0][0] < 0)
                | "ReasonsOfEvalSets" >> beam.Map(lambda item: (item[1].reason, 1)),
                members | "MembersOfEvalSets" >> beam.FlatMap(_unread_of_sets),
                members.pipeline | "FilesOfEvalSets" >> beam.Create(self._files, reshuffle=False),
            )
            | "AllOfEvalSets" >> beam.Flatten()
            | "CountEvalSets" >> beam.CombinePerKey(sum)
        )


def _unread_of_sets(item: tuple[int, account.Ledger, tuple[int, int]]):
    """Yields what was passed over in an archive of an evaluation set that may hold pairs."""
    part, (by_reason, _), _ = item
    if part < 0:
        yield from ((x, number) for x, number in by_reason.items() if x not in reasons.EXPECTED)


class CountRemarks(beam.PTransform):
    """From `(split, row)` to `(remark, number)`."""

    def expand(self, rows):
        """Returns how often each remark is made on the rows."""
        return (
            rows
            | "RemarksOfRow" >> beam.FlatMapTuple(lambda _, row: rules.remarks_on(row))
            | "CountRemarks" >> beam.combiners.Count.PerElement()
        )


class WriteReport(beam.PTransform):
    """Writes the counts and the manifest, once everything else is written.

    Takes collections by name: `profile` and `samples`, one dictionary each; `files`, ledgers of
    the files that were passed over; `members`, the same of archives as `Examine` puts them out;
    `shards`, each `WrittenShard`; `pairs`, one `Counter` as of `WriteParts`; `eval_sets`, `tags`
    and `remarks`, numbers by name.
    """

    def __init__(
        self,
        examples_dir: str,
        report_dir: str,
        config: IngestConfig,
        inputs: inventory.Inventory,
    ):
        super().__init__()
        self._write = _WriteReport(examples_dir, report_dir, config, _num_files(inputs))

    def expand(self, collections):
        """Returns the counts, a collection of one dictionary."""
        single = (AsSingleton(collections[name]) for name in ("profile", "samples", "pairs"))
        lists = (AsList(collections[name]) for name in ("files", "members", "shards"))
        numbers = (AsDict(collections[name]) for name in ("eval_sets", "tags", "remarks"))
        once = collections["shards"].pipeline | "Once" >> beam.Create([None])
        return once | "Write" >> beam.ParDo(self._write, *single, *lists, *numbers)


class _WriteReport(beam.DoFn):
    def __init__(
        self,
        examples_dir: str,
        report_dir: str,
        config: IngestConfig,
        num_files: tuple[int, int, int],
    ):
        self._examples_dir = examples_dir
        self._report_dir = report_dir
        self._config = config
        self._num_files = num_files

    def process(
        self,
        _,
        profile: dict[str, Any],
        samples: dict[str, Any],
        pairs: Counter,
        files: list[account.Ledger],
        members: list[tuple[int, account.Ledger, tuple[int, int]]],
        shards: list[WrittenShard],
        eval_sets: dict[str, int],
        tags: dict[str, int],
        remarks: dict[str, int],
    ):
        """Returns the counts."""
        splits = _splits(shards)
        _check_eval_sources(splits, self._config)
        if tags:
            _write_json(posixpath.join(self._examples_dir, record.TAGS_FILE), tags)
        _remove_unfinished(self._examples_dir)
        counts = _pair_counts(splits, pairs) | {
            # Pairs of evaluation sets that could not be read, or that are trained on already.
            "eval_sets_unreadable": eval_sets,
            # What was dropped from pairs that were written, such as captions that are empty.
            "remarks": dict(remarks),
            # Files and archive members; those read and those passed over add up to all of them.
            "passed_over": _account(files, members, *self._num_files),
        }
        if self._config.captions == OPTIONAL:
            counts[record.WITHOUT_CAPTIONS] = sum(shard.captionless for shard in shards)
        for name, content in (
            (artifacts.PROFILE_FILE, profile),
            (artifacts.SAMPLES_FILE, samples),
            (artifacts.COUNTS_FILE, counts),
        ):
            _write_json(posixpath.join(self._report_dir, name), content)
        # The manifest is written last: if it is there, everything else is.
        manifest = posixpath.join(self._examples_dir, record.MANIFEST_FILE)
        _write_json(manifest, {"splits": splits})
        yield counts


def _splits(shards: Iterable[WrittenShard]) -> dict[str, dict[str, Any]]:
    """Returns the splits as the manifest has them: shards by file name, and records by source."""
    splits: dict[str, dict[str, Any]] = {
        name: {"shards": {}, "sources": {}} for name in record.SPLITS
    }
    for shard in sorted(shards, key=lambda shard: (shard.split, shard.name)):
        split = splits[shard.split]
        split["shards"][shard.name] = {
            "records": shard.records,
            record.SHARD_BYTES: shard.size,
            "sha256": shard.sha256,
        }
        split["sources"] = dict(account.add_counts([split["sources"], shard.sources]))
    return splits


def _check_eval_sources(splits: Mapping[str, Mapping[str, Any]], config: IngestConfig):
    sources = {source for split in splits.values() for source in split["sources"]}
    if missing := sorted(set(config.eval_sources) - sources):
        raise ValueError(
            f"eval_sources must name sources of the input. Received: {missing}, which no record "
            f"has; the input has {sorted(sources)}"
        )


def _remove_unfinished(examples_dir: str) -> None:
    """Removes the images that waited, and the shards that killed runs left unfinished."""
    waiting = posixpath.join(examples_dir, WAITING_FOLDER)
    unfinished = FileSystems.match([posixpath.join(examples_dir, UNFINISHED + "*")])[0]
    stale = [file.path for file in unfinished.metadata_list]
    FileSystems.delete(stale + ([waiting] if FileSystems.exists(waiting) else []))


def _pair_counts(
    splits: Mapping[str, Mapping[str, Any]], pairs: Mapping[str, int]
) -> dict[str, Any]:
    """Returns the numbers of pairs that were read, written and rejected.

    Raises:
        RuntimeError: If those that were written and rejected are not all that were read.
    """
    records = {
        name: sum(shard["records"] for shard in split["shards"].values())
        for name, split in splits.items()
    }
    by_reason = {name: count for name, count in pairs.items() if name != _INPUT}
    read, written, rejected = pairs[_INPUT], sum(records.values()), sum(by_reason.values())
    if read != written + rejected:
        raise RuntimeError(
            "Ingest lost or doubled pairs; its output must not be used. Received: "
            f"read={read}, written={written}, rejected={rejected}"
        )
    return {
        "input": read,
        "written": written,
        "rejected": rejected,
        "rejected_by_reason": by_reason,
        "splits": records,
    }


def _write_json(path: str, content: Any) -> None:
    write_file(path, json.dumps(content, sort_keys=True, indent=1).encode())


def _num_files(inputs: inventory.Inventory) -> tuple[int, int, int]:
    """Returns how many files there are, how many are read, and how many if a row names them."""
    return inputs.num_things, sum(map(len, inputs.read.values())), len(inputs.named)


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
