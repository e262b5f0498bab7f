"""The Beam transform of ingest: examine, group, split, write.

Images never cross a shuffle. The first pass reads every part of the input once and passes on rows
without images; the second reads the images of one output shard and writes it. Images that cannot be
read again in place, or that are stored in another form, wait in files of their own in between.
Memory is bounded by one output shard per worker, and the outcome depends neither on the runner nor
on the number of workers.
"""

import posixpath
from dataclasses import replace

import apache_beam as beam

from sigline.components.ingest import (
    account_transforms,
    counts_transforms,
    examine_transforms,
    group_transforms,
    input_files,
    inventory,
    placement,
    report_transforms,
    shard_transforms,
    tag_transforms,
)
from sigline.components.ingest.class_labels import ClassNames
from sigline.components.ingest.examine_transforms import Work
from sigline.components.ingest.options import IngestConfig
from sigline.components.ingest.sources import Part, SourceConfig
from sigline.components.shared.files import BeamFiles
from sigline.schemas import record


class Ingest(beam.PTransform):
    """Reads an input and writes the examples artifact and the report beside it.

    Below `examples_dir`: `Split-NAME/data_tfrecord-k-of-n.gz` and `manifest.json`. Below
    `report_dir`: `rejected/rejected-k-of-n-i.jsonl`, for part k of the input, if something of it
    was rejected, and `counts.json`, which is written last.
    """

    def __init__(self, input_base: str, examples_dir: str, report_dir: str, config: IngestConfig):
        """Finds the parts of the input.

        Raises:
            ValueError: If there are none, or the input's `classes.json` is no label set.
        """
        super().__init__()
        config = replace(config, source=config.source.below(input_base))
        self._inventory = inventory.take(input_base, BeamFiles(), config.source)
        sets = [
            (base, inventory.take(base, BeamFiles(), SourceConfig())) for base in config.eval_sets
        ]
        self._passed_over_of_sets = [thing for _, one in sets for thing in one.passed_over]
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
            *(Work(number, input_base, part) for number, part in enumerate(self._inventory.parts)),
            *(
                Work(-1 - number, base, part, split)
                for number, (base, split, part) in enumerate(others)
            ),
        ]
        labels = input_files.read_classes(input_base)
        self._classes = ClassNames(labels.names if labels is not None else ())
        self._examples_dir = examples_dir
        self._report_dir = report_dir
        self._config = config

    def expand(self, pbegin):
        """Returns the counts, a collection of one dictionary."""
        examined = pbegin | "Examine" >> examine_transforms.Examine(
            self._work,
            self._examples_dir,
            self._report_dir,
            self._config,
            self._classes,
            with_names=bool(self._inventory.named),
        )
        rows, rejected = _deduplicated(examined, self._config)
        tags = pbegin | "NoTags" >> beam.Create([], reshuffle=False)
        if self._config.tags.is_enabled:
            rows, tags = rows | "Tag" >> tag_transforms.Tag(self._config.tags)
        shards = rows | "WriteShards" >> shard_transforms.WriteShards(
            self._examples_dir, self._config
        )
        members = examined[examine_transforms.MEMBERS]
        outcomes = {"read": examined[examine_transforms.READ], "rejected": rejected}
        pairs = outcomes | "WriteParts" >> counts_transforms.WriteParts(
            len(self._inventory.parts), self._report_dir
        )
        named = examined[examine_transforms.NAMED]
        files = named | "PassedOverFiles" >> account_transforms.PassedOverFiles(
            self._inventory, self._report_dir
        )
        eval_sets = {
            "rejected": rejected,
            "members": members,
        } | "UnreadOfSets" >> counts_transforms.CountUnreadOfSets(self._passed_over_of_sets)
        collections = {
            "profile": rows | "Profile" >> report_transforms.Profile(),
            "samples": {"kept": rows, "rejected": rejected}
            | "Samples" >> report_transforms.Samples(),
            "files": files,
            "members": members,
            "shards": shards,
            "pairs": pairs,
            "eval_sets": eval_sets,
            "tags": tags,
            "remarks": rows | "Remarks" >> counts_transforms.CountRemarks(),
        }
        return collections | "WriteReport" >> counts_transforms.WriteReport(
            self._examples_dir, self._report_dir, self._config, self._inventory
        )


def _examples(folder: str) -> tuple[tuple[str, Part], ...]:
    """Returns the parts of a split of examples."""
    return inventory.take(folder, BeamFiles(), SourceConfig(format="tfrecord")).parts


def _deduplicated(examined, config: IngestConfig):
    """Returns the rows to write, `(split, row)` with keys of their own, and all rejections."""
    captions = group_transforms.FilterCaptions(config)
    captioned = examined[examine_transforms.ROWS] | "Captions" >> captions
    grouped = captioned[group_transforms.ROWS] | "Group" >> group_transforms.Group(config)
    rejected = (
        examined[examine_transforms.REJECTED],
        captioned[group_transforms.REJECTED],
        grouped[group_transforms.REJECTED],
    ) | "AllRejected" >> beam.Flatten()
    rows = (
        grouped[group_transforms.ROWS]
        | "KeyByKey" >> beam.MapTuple(lambda split, row: (row.key, (split, row)))
        | "GroupByKey" >> beam.GroupByKey()
        | "UniqueKeys"
        >> beam.FlatMapTuple(lambda _, items: placement.with_unique_keys(items, config))
    )
    return rows, rejected
