"""Beam transforms that give records tags."""

from collections.abc import Iterator
from dataclasses import replace

import apache_beam as beam
from apache_beam.pvalue import AsDict

from sigline.components.ingest import rules, tags
from sigline.components.ingest.tags import TagConfig
from sigline.components.shared.files import read_text
from sigline.schemas import record


class Tag(beam.PTransform):
    """Gives rows, `(split, row)`, their tags."""

    def __init__(self, config: TagConfig):
        super().__init__()
        self._config = config

    def expand(self, rows):
        """Returns the rows with tags, and a collection of `(tag, number of training pairs)`."""
        config = self._config
        if config.entries:
            named = rows | "MatchTags" >> beam.ParDo(_MatchTags(config.entries))
            return named, named | "CountMatched" >> _CountTags()
        candidates = rows | "ParseTags" >> beam.Map(_parse_tags)
        counted = (
            candidates
            | "CountParsed" >> _CountTags()
            | "Frequent" >> beam.Filter(lambda item: item[1] >= config.min_count)
            | "MostFrequent" >> beam.combiners.Top.Smallest(config.most, key=_by_count)
            | "EachTag" >> beam.FlatMap(lambda top: top)
        )
        named = candidates | "KeepFrequent" >> beam.Map(_keep_tags, AsDict(counted))
        return named, counted


class _CountTags(beam.PTransform):
    """Counts the training pairs of each tag: evaluation has no say in what is frequent."""

    def expand(self, rows):
        return (
            rows
            | "OfTraining" >> beam.Filter(lambda item: item[0] == record.TRAIN_SPLIT)
            | "TagsOfRow" >> beam.FlatMapTuple(lambda _, row: row.tags)
            | "CountTags" >> beam.combiners.Count.PerElement()
        )


class _MatchTags(beam.DoFn):
    def __init__(self, path: str):
        self._path = path

    def setup(self):
        self._list = tags.TagList(read_text(self._path).splitlines())

    def process(self, item: tuple[str, rules.Row]) -> Iterator[tuple[str, rules.Row]]:
        split, row = item
        yield split, replace(row, tags=self._list.matched(row.text))


def _parse_tags(item: tuple[str, rules.Row]) -> tuple[str, rules.Row]:
    split, row = item
    return split, replace(row, tags=tags.parsed(row.text, row.language))


def _keep_tags(item: tuple[str, rules.Row], frequent: dict[str, int]) -> tuple[str, rules.Row]:
    split, row = item
    return split, replace(row, tags=tuple(tag for tag in row.tags if tag in frequent))


def _by_count(item: tuple[str, int]) -> tuple[int, str]:
    return -item[1], item[0]
