"""Beam transforms that choose records of a split, and write which as a selection."""

import json
import posixpath
from collections.abc import Iterable, Iterator
from fractions import Fraction
from typing import Any

import apache_beam as beam
import numpy as np
from apache_beam.pvalue import AsDict, AsSingleton

from sigline.components import files, served_model
from sigline.components.curate import rules
from sigline.components.curate.rules import Candidate
from sigline.schemas import digests, record, signatures
from sigline.schemas.selection import (
    KEYS_FOLDER,
    SELECTION_FILE,
    Selection,
    ShardSelection,
    bits_of,
)

_BATCH = 64
# Embeddings that the first centres are drawn from, for each cluster.
_SAMPLE_PER_CLUSTER = 32


class Curate(beam.PTransform):
    """Chooses records of a split as the configuration says and writes the selection."""

    def __init__(
        self,
        examples_dir: str,
        output_dir: str,
        config: rules.CurateConfig,
        *,
        model_dir: str | None = None,
        entries: tuple[str, ...] = (),
        split: str = record.TRAIN_SPLIT,
    ):
        """Reads the manifest.

        Args:
            examples_dir: Folder of the splits and their manifest.
            output_dir: Folder to write `Split-NAME` to.
            config: What to choose.
            model_dir: A SavedModel of the model contract, if pairs are embedded.
            entries: Entries to match captions with, for `entry_limit`.
            split: Which split.

        Raises:
            ValueError: If the configuration needs a model or entries that are not given, or the
                manifest has no such split.
        """
        super().__init__()
        if config.embeds and model_dir is None:
            raise ValueError("A choice by similarity or clusters needs a model to embed pairs.")
        if config.entry_limit is not None and not entries:
            raise ValueError("entry_limit needs entries to match captions with.")
        manifest = json.loads(files.read_text(posixpath.join(examples_dir, record.MANIFEST_FILE)))
        if split not in manifest[record.MANIFEST_SPLITS]:
            raise ValueError(f"The manifest has no such split. Received: split={split}")
        self._shards = manifest[record.MANIFEST_SPLITS][split]["shards"]
        self._split_dir = posixpath.join(examples_dir, f"Split-{split}")
        self._output_dir = posixpath.join(output_dir, f"Split-{split}")
        self._config = config
        self._model_dir = model_dir if config.embeds else None
        self._entries = rules.Entries(entries) if config.entry_limit is not None else None

    def expand(self, pbegin):
        """Returns what was chosen, a collection of one `Selection`."""
        config = self._config
        read = (
            pbegin
            | "Shards" >> beam.Create(sorted(self._shards))
            | "SpreadShards" >> beam.Reshuffle()
            | "Read" >> beam.ParDo(_ReadShard(self._split_dir, self._model_dir))
        )
        chosen = read
        if config.min_similarity is not None:
            limit = config.min_similarity
            chosen = chosen | "SimilarEnough" >> beam.Filter(lambda item: item[1][0] >= limit)
        if config.similarity_fraction is not None:
            chosen = chosen | "MostSimilar" >> TopFraction(
                config.similarity_fraction, score=lambda item: item[1][0]
            )
        if config.clusters is not None:
            chosen = chosen | "BalanceClusters" >> BalanceClusters(config)
        candidates = chosen | "Candidates" >> beam.Keys()
        if self._entries is not None:
            candidates = candidates | "BalanceEntries" >> BalanceEntries(self._entries, config)
        written = (
            candidates
            | "ByShard" >> beam.Map(lambda item: (item.shard, (item.position, item.key)))
            | "GroupByShard" >> beam.GroupByKey()
            | "SelectOfShard" >> beam.Map(_select, self._shards, self._output_dir)
        )
        return (
            pbegin
            | "Once" >> beam.Create([None])
            | "WriteSelection"
            >> beam.Map(
                _write_selection, AsDict(written), self._shards, self._split_dir, self._output_dir
            )
        )


class _ReadShard(beam.DoFn):
    """Reads the records of a shard: the candidate, its similarity and its image's embedding."""

    def __init__(self, split_dir: str, model_dir: str | None):
        self._split_dir = split_dir
        self._model_dir = model_dir

    def setup(self):
        if self._model_dir is not None:
            self._model = served_model.load(self._model_dir)

    def process(self, shard: str) -> Iterator[tuple[Candidate, tuple[float, Any]]]:
        from sigline.schemas import tf_example

        batch: list[tuple[Candidate, bytes]] = []
        path = posixpath.join(self._split_dir, shard)
        for position, serialized in enumerate(tf_example.read_shard(path)):
            item = tf_example.decode(serialized)
            candidate = Candidate(shard, position, item.key, item.text)
            if self._model_dir is None:
                yield candidate, (0.0, None)
                continue
            batch.append((candidate, item.image))
            if len(batch) == _BATCH:
                yield from self._embedded(batch)
                batch = []
        if batch:
            yield from self._embedded(batch)

    def _embedded(self, batch: list[tuple[Candidate, bytes]]):
        texts = [text for candidate, _ in batch for text in candidate.texts]
        embedded_images = served_model.embed(
            self._model, signatures.EMBED_IMAGE, [image for _, image in batch]
        )
        embedded_texts = served_model.embed(self._model, signatures.EMBED_TEXT, texts)
        start = 0
        for (candidate, _), image in zip(batch, embedded_images, strict=True):
            own = embedded_texts[start : start + len(candidate.texts)]
            start += len(own)
            if not (np.isfinite(image).all() and np.isfinite(own).all()):
                raise RuntimeError(
                    f"The model's embeddings must be numbers. Received: key={candidate.key!r}"
                )
            similarity = float(np.mean(own.astype(np.float64) @ image.astype(np.float64)))
            yield candidate, (similarity, image)


class TopFraction(beam.PTransform):
    """Keeps a share of items, those with the largest scores, exactly.

    Scores are cut by counting how many there are of each of their leading bits; only items that
    agree in nearly all bits with the last that is kept meet on one worker. Of equal scores, keys
    decide. Items are `(Candidate, value)`.
    """

    def __init__(self, fraction: float, *, score):
        super().__init__()
        self._fraction = fraction
        self._score = score

    def expand(self, items):
        """Returns the items that are kept."""
        score = self._score
        scored = items | "Ordered" >> beam.Map(lambda item: (rules.ordered(score(item)), item))
        shift = 32 - rules.UPPER_BITS
        upper = AsSingleton(
            scored
            | "Upper" >> beam.MapTuple(lambda bits, _: bits >> shift)
            | "CountUpper" >> beam.combiners.Count.PerElement()
            | "UpperCounts" >> beam.combiners.ToDict()
            | "CutUpper" >> beam.Map(_cut_share, self._fraction)
        )
        last = rules.LAST_BITS
        exact = AsSingleton(
            scored
            | "OfUpper" >> beam.Filter(lambda item, found: item[0] >> shift == found[0], upper)
            | "Next" >> beam.MapTuple(lambda bits, _: bits >> last)
            | "CountNext" >> beam.combiners.Count.PerElement()
            | "NextCounts" >> beam.combiners.ToDict()
            | "CutNext" >> beam.Map(lambda counts, found: rules.cut(counts, found[1]), upper)
        )
        above = scored | "Above" >> beam.Filter(
            lambda item, found: item[0] >> last > found[0], exact
        )
        level = (
            scored
            | "Level" >> beam.Filter(lambda item, found: item[0] >> last == found[0], exact)
            | "ListLevel" >> beam.combiners.ToList()
            | "CutLevel" >> beam.FlatMap(_first_of_level, exact)
        )
        return (above, level) | "Kept" >> beam.Flatten() | "WithoutScore" >> beam.Values()


def _cut_share(counts: dict[int, int], fraction: float) -> tuple[int, int]:
    # At least one, so that a small split is not empty.
    total = sum(counts.values())
    # By its decimal digits: 0.29 of 100 are 29.
    wanted = int(Fraction(str(fraction)) * total)
    return rules.cut(counts, min(total, max(1, wanted)))


def _first_of_level(items: list, found: tuple[int, int]):
    items = sorted(items, key=lambda item: (-item[0], item[1][0].key))
    return items[: found[1]]


class BalanceEntries(beam.PTransform):
    """Keeps about a number of candidates for each entry that captions match (MetaCLIP)."""

    def __init__(self, entries: rules.Entries, config: rules.CurateConfig):
        super().__init__()
        self._entries = entries
        self._config = config

    def expand(self, candidates):
        """Returns the candidates that are kept."""
        entries, limit, seed = self._entries, self._config.entry_limit, self._config.seed
        assert limit is not None
        matched = candidates | "Match" >> beam.Map(lambda item: (item, entries.matched(item.texts)))
        counts = AsDict(
            matched
            | "Entries" >> beam.FlatMapTuple(lambda _, found: found)
            | "CountEntries" >> beam.combiners.Count.PerElement()
        )
        return (
            matched
            | "KeepByEntries"
            >> beam.Filter(
                lambda item, numbers: rules.kept_by_entries(
                    item[0].key, item[1], numbers, limit, seed
                ),
                counts,
            )
            | "WithoutEntries" >> beam.Keys()
        )


class BalanceClusters(beam.PTransform):
    """Keeps about a number of items of each cluster of their embeddings, found by k-means.

    Items are `(Candidate, (similarity, embedding))`, embeddings of unit length; clusters are by
    direction. Sums are of integers: the outcome does not depend on how items are spread.
    """

    def __init__(self, config: rules.CurateConfig):
        super().__init__()
        self._config = config

    def expand(self, items):
        """Returns the items that are kept."""
        limit, seed = self._config.cluster_limit, self._config.seed
        assert limit is not None
        centres = items | "Clusters" >> KMeans(self._config)
        placed = items | "Place" >> beam.Map(_place, AsSingleton(centres))
        counts = AsDict(
            placed
            | "ClusterOf" >> beam.Keys()
            | "CountClusters" >> beam.combiners.Count.PerElement()
        )
        return (
            placed
            | "KeepOfCluster"
            >> beam.Filter(
                lambda item, numbers: rules.kept_of_cluster(
                    item[1][0].key, numbers[item[0]], limit, seed
                ),
                counts,
            )
            | "WithoutCluster" >> beam.Values()
        )


class KMeans(beam.PTransform):
    """From `(Candidate, (similarity, embedding))` to centres, a collection of one array."""

    def __init__(self, config: rules.CurateConfig):
        super().__init__()
        self._config = config

    def expand(self, items):
        """Returns `(clusters, dim)`, float64, of unit length."""
        config = self._config
        seed, clusters = config.seed, config.clusters
        assert clusters is not None
        size = _SAMPLE_PER_CLUSTER * clusters
        centres = (
            items
            | "Coins"
            >> beam.Map(
                lambda item: (rules.coin(seed, "sample", item[0].key), item[0].key, item[1][1])
            )
            | "Sample" >> beam.combiners.Top.Of(size, key=lambda item: (-item[0], item[1]))
            | "First"
            >> beam.Map(lambda found: rules.first_centres([x[1:] for x in found], clusters, seed))
        )
        for number in range(config.cluster_rounds):
            sums = (
                items
                | f"Place{number}" >> beam.Map(_place, AsSingleton(centres))
                | f"Fixed{number}"
                >> beam.MapTuple(lambda place, item: (place, rules.fixed_point(item[1][1])))
                | f"Sum{number}" >> beam.CombinePerKey(_add)
            )
            centres = centres | f"Move{number}" >> beam.Map(_moved, AsDict(sums))
        return centres


def _add(vectors: Iterable[np.ndarray]) -> np.ndarray | int:
    return sum(vectors)


def _moved(centres: np.ndarray, sums: dict[int, np.ndarray]) -> np.ndarray:
    return np.stack(
        [
            rules.centre(sums[place], old) if place in sums else old
            for place, old in enumerate(centres)
        ]
    )


def _place(item, centres: np.ndarray):
    """Keys an item by its cluster."""
    return rules.nearest(item[1][1], centres), item


def _select(
    item: tuple[str, Iterable[tuple[int, str]]], shards: dict[str, dict], output_dir: str
) -> tuple[str, ShardSelection]:
    """Writes the keys of one shard's records, in their order."""
    shard, found = item
    chosen = sorted(found)
    lines = "".join(json.dumps(key) + "\n" for _, key in chosen)
    name = shard.removesuffix(".gz") + ".jsonl"
    files.write_file(posixpath.join(output_dir, KEYS_FOLDER, name), lines.encode())
    records = shards[shard]["records"]
    positions = {position for position, _ in chosen}
    return shard, ShardSelection(records, len(chosen), bits_of(positions, records))


def _write_selection(
    _, written: dict[str, ShardSelection], shards: dict[str, dict], split_dir: str, output_dir: str
) -> Selection:
    selected = {
        name: written.get(name)
        or ShardSelection(shard["records"], 0, bits_of(set(), shard["records"]))
        for name, shard in shards.items()
    }
    selection = Selection(split_dir, digests.json_digest(shards), selected)
    files.write_file(posixpath.join(output_dir, SELECTION_FILE), selection.to_json().encode())
    return selection
