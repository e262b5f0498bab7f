"""Beam transforms that choose among pairs: shares, balance, and what lies near or stands for all.

Items are `(Candidate, Embedded)` unless documented otherwise. The choice depends neither on how
they are distributed nor on their order.
"""

from collections.abc import Iterable
from dataclasses import replace
from fractions import Fraction

import apache_beam as beam
import numpy as np
from apache_beam.pvalue import AsDict, AsSingleton

from sigline.components.curate import covariance, rules, targets
from sigline.components.curate.rules import Candidate, Embedded

# The first centres are drawn from a sample of so many embeddings per cluster.
_SAMPLE_PER_CLUSTER = 32
# Maximum number of pairs of a latent class that one worker compares, which takes quadratic time;
# larger classes are divided.
_CLASS_PAIRS = 20_000


class TopFraction(beam.PTransform):
    """Keeps a share of items, those with the largest scores, exactly.

    Scores are cut by counting how many there are of each of their leading bits; only items that
    agree in nearly all bits with the last that is kept meet on one worker. Of equal scores, keys
    decide.
    """

    def __init__(self, fraction: float, *, score):
        super().__init__()
        self._fraction = fraction
        self._score = score

    def expand(self, items):
        """Returns the items that are kept."""
        score = self._score
        scored = items | "Ordered" >> beam.Map(lambda item: (rules.ordered(score(item)), item))
        # A radix selection. A global sort would bring all scores to one worker; histograms have at
        # most one bin per prefix, however many items there are. The first, over the upper bits,
        # finds the bin that the cut lies in, and how many items of it are still to be kept.
        shift = 32 - rules.UPPER_BITS
        upper = AsSingleton(
            scored
            | "Upper" >> beam.MapTuple(lambda bits, _: bits >> shift)
            | "CountUpper" >> beam.combiners.Count.PerElement()
            | "UpperCounts" >> beam.combiners.ToDict()
            | "CutUpper" >> beam.Map(_cut_share, self._fraction)
        )
        last = rules.LAST_BITS
        # The second histogram divides that one bin by the next bits.
        exact = AsSingleton(
            scored
            | "OfUpper" >> beam.Filter(lambda item, cut: item[0] >> shift == cut[0], upper)
            | "Next" >> beam.MapTuple(lambda bits, _: bits >> last)
            | "CountNext" >> beam.combiners.Count.PerElement()
            | "NextCounts" >> beam.combiners.ToDict()
            | "CutNext" >> beam.Map(lambda counts, cut: rules.cut(counts, cut[1]), upper)
        )
        # Items above the last bin are kept where they are. Only those inside it are listed, on one
        # worker: they agree in all bits but the last few, and keys decide between equal scores.
        above = scored | "Above" >> beam.Filter(lambda item, cut: item[0] >> last > cut[0], exact)
        level = (
            scored
            | "Level" >> beam.Filter(lambda item, cut: item[0] >> last == cut[0], exact)
            | "ListLevel" >> beam.combiners.ToList()
            | "CutLevel" >> beam.FlatMap(_first_of_level, exact)
        )
        return (above, level) | "Kept" >> beam.Flatten() | "WithoutScore" >> beam.Values()


def _cut_share(counts: dict[int, int], fraction: float) -> tuple[int, int]:
    # At least one is kept, so that a small split is not left empty.
    total = sum(counts.values())
    # The fraction is taken by its decimal digits: as a float, 0.29 * 100 is less than 29.
    size = int(Fraction(str(fraction)) * total)
    return rules.cut(counts, min(total, max(1, size)))


def _first_of_level(items: list, cut: tuple[int, int]):
    items = sorted(items, key=lambda item: (-item[0], item[1][0].key))
    return items[: cut[1]]


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
            | "Entries" >> beam.FlatMapTuple(lambda _, matches: matches)
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

    Items are `(Candidate, Embedded)`, embeddings of unit length; clusters are by
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
    """From `(Candidate, Embedded)` to centres, a collection of one array."""

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
                lambda item: (rules.coin(seed, "sample", item[0].key), item[0].key, _image(item))
            )
            # The smallest pseudo-random numbers, which depend on seed and key only: every run draws
            # the same sample.
            | "Sample" >> beam.combiners.Top.Of(size, key=lambda item: (-item[0], item[1]))
            | "First"
            >> beam.Map(lambda drawn: rules.first_centres([x[1:] for x in drawn], clusters, seed))
        )
        # The number of rounds is fixed: whether centres still move would have to be known while the
        # pipeline is built.
        for number in range(config.cluster_rounds):
            sums = (
                items
                | f"Place{number}" >> beam.Map(_place, AsSingleton(centres))
                | f"Fixed{number}"
                >> beam.MapTuple(lambda place, item: (place, rules.fixed_point(_image(item))))
                | f"Sum{number}" >> beam.CombinePerKey(_add)
            )
            centres = centres | f"Move{number}" >> beam.Map(_moved, AsDict(sums))
        return centres


def _add(vectors: Iterable[np.ndarray]) -> np.ndarray | int:
    return sum(vectors)


def _moved(centres: np.ndarray, sums: dict[int, np.ndarray]) -> np.ndarray:
    return np.stack(
        [
            # An empty cluster keeps its centre.
            rules.centre(sums[place], old) if place in sums else old
            for place, old in enumerate(centres)
        ]
    )


def _place(item, centres: np.ndarray):
    """Keys an item by its cluster."""
    return rules.nearest(_image(item), centres), item


class NearestToTarget(beam.PTransform):
    """Keeps the items whose images lie nearest to those of a target (SimCore).

    Takes `items` and `target`, both `(Candidate, Embedded)`. Of each centre of the target only the
    nearest images meet on one worker, about four times as many as are chosen.
    """

    def __init__(self, config: rules.CurateConfig, centres: int):
        super().__init__()
        self._config = config
        self._centres = centres

    def expand(self, collections):
        """Returns the items that are kept."""
        config, items = self._config, collections["items"]
        assert config.target_limit is not None
        clusters = replace(config, clusters=self._centres, cluster_limit=1)
        centres = collections["target"] | "Centres" >> KMeans(clusters)
        # Lists of bounded length per centre are merged like sums, so that no worker holds all of
        # the similarities.
        size = targets.list_size(config.target_limit, self._centres)
        chosen = (
            items
            | "NearCentres" >> beam.Map(_similarities, AsSingleton(centres))
            | "AddLists" >> beam.CombineGlobally(_AddLists(size))
            | "ChooseNearest"
            >> beam.Map(_nearest_names, config.target_limit, config.target_stop, size)
        )
        return items | "KeepNearest" >> beam.Filter(_is_named, AsSingleton(chosen))


def _similarities(item: tuple[Candidate, Embedded], centres: np.ndarray):
    return _name(item[0]), centres @ _image(item).astype(np.float64)


class _AddLists(beam.CombineFn):
    def __init__(self, size: int):
        self._size = size

    def create_accumulator(self):
        return targets.NearestLists(self._size)

    def add_input(self, lists, item):
        lists.add(*item)
        return lists

    def merge_accumulators(self, accumulators):
        total = self.create_accumulator()
        for other in accumulators:
            total.merge(other)
        return total

    def extract_output(self, lists):
        return lists.sorted()


def _name(candidate: Candidate) -> tuple[str, str, int]:
    return candidate.key, candidate.shard, candidate.position


def _nearest_names(lists: list, limit: int, stop: float, size: int) -> frozenset[tuple]:
    return frozenset(targets.choose(lists, limit, stop, size=size))


def _is_named(item: tuple[Candidate, Embedded], names: frozenset[tuple]) -> bool:
    return _name(item[0]) in names


class KeepCovariance(beam.PTransform):
    """Keeps a share of each latent class that varies as the whole does (ClipCov).

    Takes `(Candidate, Embedded)`. Classes larger than one worker should hold are divided by their
    keys, and each part is chosen from by itself.
    """

    def __init__(self, fraction: float, labels):
        super().__init__()
        self._fraction = fraction
        self._labels = labels

    def expand(self, items):
        """Returns the items that are kept."""
        placed = items | "Classify" >> beam.Map(_classify, self._labels)
        counts = AsDict(placed | "ClassOf" >> beam.Keys() | beam.combiners.Count.PerElement())
        sums = AsDict(
            placed
            | "BothFixed" >> beam.MapTuple(_both_fixed)
            | "SumClass" >> beam.CombinePerKey(_add)
        )
        return (
            placed
            | "Divide" >> beam.Map(_divide, counts)
            | "GroupClass" >> beam.GroupByKey()
            | "KeepOfClass" >> beam.FlatMap(_keep_of_class, self._fraction, self._labels, sums)
        )


def _classify(item: tuple[Candidate, Embedded], labels: np.ndarray):
    return covariance.nearest_label(_image(item), labels), item


def _both_fixed(place: int, item: tuple[Candidate, Embedded]):
    assert item[1].text is not None
    vectors = np.stack([_image(item), item[1].text])
    # A last component of 1 makes the sum count the class's pairs, too.
    return place, np.append(rules.fixed_point(vectors), 1)


def _divide(item, counts: dict[int, int]):
    place, pair = item
    # Rounded up, so that no part exceeds the limit by more than chance does.
    chunks = -(-counts[place] // _CLASS_PAIRS)
    return (place, rules.chunk_of(pair[0].key, chunks)), pair


def _keep_of_class(item, fraction: float, labels: np.ndarray, sums: dict[int, np.ndarray]):
    (place, _), members = item
    pairs = sorted(members, key=lambda pair: _name(pair[0]))
    # Other classes enter by their means only, which all workers can hold; sums carry their counts
    # in the last component.
    means = {
        other: (total[:-1] / rules.FIXED_POINT / total[-1]).reshape(2, -1)
        for other, total in sorted(sums.items())
        if other != place
    }
    others = np.stack(list(means.values())) if means else np.empty((0, 2, labels.shape[1]))
    chosen = covariance.greedy_subset(
        np.stack([_image(pair) for pair in pairs]),
        np.stack([embedded.text for _, embedded in pairs if embedded.text is not None]),
        max(1, int(Fraction(str(fraction)) * len(pairs))),
        label=labels[place],
        other_images=others[:, 0],
        other_texts=others[:, 1],
    )
    return [pairs[number] for number in chosen]


def _image(item: tuple[Candidate, Embedded]) -> np.ndarray:
    image = item[1].image
    assert image is not None
    return image
