"""Beam transforms that find the groups of pairs with the same picture, and which of them to write.

Nothing is compared with everything: pictures meet below keys made of parts of their hashes, and
only hashes cross that shuffle. What is a group is then found in rounds, so that no worker ever
holds all of the groups.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import NamedTuple

import apache_beam as beam
from apache_beam.pvalue import AsDict, AsSingleton

from sigline.components.ingest import filters, fingerprints, groups, placement, reasons, rules
from sigline.components.ingest.fingerprints import View
from sigline.components.ingest.options import IngestConfig
from sigline.components.ingest.sources import Place
from sigline.components.shared.outputs import ParDoByTag
from sigline.schemas import record

ROWS, REJECTED = "rows", "rejected"
# Groups are small and nearly complete graphs, for which two rounds suffice. Each round costs two
# shuffles, so longer chains are finished on one worker instead.
_ROUNDS = 3
_Edge = tuple[bytes, bytes]
# A view's perceptual hash and thumbnail, as a plain tuple.
_Values = tuple[int, bytes]


class Best(NamedTuple):
    """The pair of a group that stands for it.

    Attributes:
        order: Pairs of the evaluation first, then those of earlier examples, those that are
            trained on first of them; then those of this input, by rank.
        number: Its number.
        key: Its key.
        sha256: SHA-256 of its picture.
        place: Where the picture is.
        evaluated: Whether it is one of the evaluation.
        earlier: The split of earlier examples that it is in; empty for others.
        trained: Whether any pair of the group is trained on already.
    """

    order: tuple
    number: tuple[int, int]
    key: str
    sha256: bytes
    place: Place | None
    evaluated: bool
    earlier: str
    trained: bool


class Group(beam.PTransform):
    """Keys rows by split: all rows of a group of the same picture go to one split.

    Rows whose picture is one of the evaluation's, and copies if they are not to be kept, come out
    as rejections, below `REJECTED`, with their numbers. Rows of evaluation sets of other inputs,
    which have the number of no part, do not come out.
    """

    def __init__(self, config: IngestConfig):
        super().__init__()
        self._config = config

    def expand(self, rows):
        """Returns `(split, row)` below `ROWS`, and rejections."""
        pictures = (
            rows
            # Plain tuples are encoded smaller and faster than named ones.
            | "ByPicture" >> beam.Map(lambda row: (row.image_sha256, tuple(map(tuple, row.views))))
            | "SamePicture" >> beam.CombinePerKey(_any)
        )
        # From here on a picture is known by its SHA-256: byte-identical copies are one node of the
        # graph already, however often they occur.
        edges = pictures | SamePictures()
        roots, remap = edges | Components()
        return (
            {
                "rows": rows | "WithoutViews" >> beam.Map(_by_picture),
                "roots": roots,
            }
            | "JoinRoots" >> beam.CoGroupByKey()
            # Few roots are to be replaced, so the dictionary fits into a side input.
            | "ByGroup" >> beam.FlatMap(_by_group, AsSingleton(remap))
            | "GroupByGroup" >> beam.GroupByKey()
            | "Decide" >> ParDoByTag(_Decide(self._config), (ROWS, REJECTED))
        )


def _any(values):
    return next(iter(values))


def _by_picture(row: rules.Row) -> tuple[bytes, rules.Row]:
    # Views are not needed any more, and are larger than the rest of the row.
    return row.image_sha256, replace(row, views=())


class SamePictures(beam.PTransform):
    """From pictures, `(sha256, views)` of plain tuples, to pairs of those that are the same."""

    def expand(self, pictures):
        """Returns `(sha256, sha256)`, once for each pair."""
        candidates = (
            pictures
            | "Bands" >> beam.FlatMapTuple(_by_band)
            | "GroupByBand" >> beam.GroupByKey()
            | "Candidates" >> beam.FlatMapTuple(_candidates)
            # A pair comes once for each key that its views share, and is to be compared once.
            | "DistinctCandidates" >> beam.Distinct()
        )
        # Thumbnails are too large to be sent to every key of a view. They are joined to the few
        # candidates only: first to each end of a pair, then both ends to the pair.
        ends = candidates | "Ends" >> beam.FlatMapTuple(lambda a, b: [(a, (a, b)), (b, (a, b))])
        return (
            {"views": pictures, "edges": ends}
            | "JoinViews" >> beam.CoGroupByKey()
            | "ByEdge" >> beam.FlatMap(_by_edge)
            | "GroupByEdge" >> beam.GroupByKey()
            | "Compare" >> beam.FlatMapTuple(_compare)
        )


def _by_band(name: bytes, views: tuple[_Values, ...]):
    for item in fingerprints.items(name, _views(views)):
        values = tuple(item)
        for key in fingerprints.band_keys(item.phash):
            yield key, values


def _views(values: tuple[_Values, ...]) -> list[View]:
    return [View(*item) for item in values]


def _candidates(_: int, bucket: Iterable[tuple[int, bytes, bytes]]) -> Iterator[_Edge]:
    members = list(bucket)
    # Most buckets hold a single view, which has nothing to be compared with.
    if len(members) > 1:
        yield from fingerprints.candidates(fingerprints.Item(*item) for item in members)


def _by_edge(item) -> Iterator[tuple[_Edge, tuple[_Values, ...]]]:
    _, joined = item
    for edge in joined["edges"]:
        yield edge, next(iter(joined["views"]))


def _compare(edge: _Edge, both: Iterable[tuple[_Values, ...]]) -> Iterator[_Edge]:
    a, b = both
    if fingerprints.same_picture(_views(a), _views(b)):
        yield edge


class Components(beam.PTransform):
    """From edges to the connected components, each named by its smallest member.

    Rounds of large and small stars (Kiveris et al., "Connected Components in MapReduce and
    Beyond", 2014) turn a component into a star around its smallest member. What so few rounds leave
    is joined on one worker: long chains, as crowded buckets make them of pictures that all look
    alike.
    """

    def expand(self, edges):
        """Returns `(member, root)`, and a dictionary of what roots are to be replaced by."""
        for number in range(_ROUNDS):
            # Both stars keep components connected as they were. The large star needs the edges in
            # both directions, the small one only from the larger end to the smaller. Alternating,
            # they need O(log^2 n) rounds at most; passing on the smallest label from neighbour to
            # neighbour would take as many as the component is long.
            edges = (
                edges
                | f"Both{number}" >> beam.FlatMapTuple(lambda a, b: [(a, b), (b, a)])
                | f"GroupLarge{number}" >> beam.GroupByKey()
                | f"LargeStar{number}" >> beam.FlatMapTuple(large_star)
                | f"Downwards{number}" >> beam.MapTuple(lambda a, b: (max(a, b), min(a, b)))
                | f"GroupSmall{number}" >> beam.GroupByKey()
                | f"SmallStar{number}" >> beam.FlatMapTuple(small_star)
                | f"Distinct{number}" >> beam.Distinct()
            )
        # In a finished star each member has one parent, and no parent has one of its own. Whatever
        # breaks that is an edge between groups that belong together: a node's further parents, and
        # the parent of a node that is a parent itself. Only these edges go to one worker.
        parents = edges | "Parents" >> beam.CombinePerKey(_smallest)
        more = edges | "MoreParents" >> beam.GroupByKey() | "Extra" >> beam.FlatMapTuple(_extra)
        chained = (
            {"up": parents, "used": edges | "Used" >> beam.Map(lambda edge: (edge[1], None))}
            | "JoinUsed" >> beam.CoGroupByKey()
            | "Chained" >> beam.FlatMap(_chained)
        )
        remap = (
            (more, chained)
            | "Left" >> beam.Flatten()
            | "JoinLeft" >> beam.CombineGlobally(_JoinEdges())
        )
        return parents, remap


class _JoinEdges(beam.CombineFn):
    """Joins edges into groups; what is held grows with the members, not with the edges."""

    def create_accumulator(self):
        return groups.Forest()

    def add_input(self, forest, edge):
        forest.join(*edge)
        return forest

    def merge_accumulators(self, forests):
        first, *others = forests
        for forest in others:
            # The root of each member says all that is known of it; the edges are not needed again.
            for member, root in forest.roots().items():
                first.join(member, root)
        return first

    def extract_output(self, forest):
        return forest.roots()


def _smallest(values):
    return min(values)


def large_star(node: bytes, neighbours: Iterable[bytes]) -> Iterator[_Edge]:
    """Links the larger neighbours of a node to the smallest of all."""
    linked = set(neighbours)
    root = min(linked | {node})
    for other in sorted(linked):
        # A smaller neighbour links its own larger ones, among them this node.
        if other > node:
            yield other, root


def small_star(node: bytes, neighbours: Iterable[bytes]) -> Iterator[_Edge]:
    """Links a node and its neighbours, all smaller, to the smallest of them."""
    star = set(neighbours) | {node}
    root = min(star)
    for other in sorted(star - {root}):
        yield other, root


def _extra(_: bytes, parents: Iterable[bytes]) -> Iterator[_Edge]:
    distinct = sorted(set(parents))
    # All parents of one node belong together; the smallest stands for them, as in `_smallest`.
    for other in distinct[1:]:
        yield distinct[0], other


def _chained(item) -> Iterator[_Edge]:
    node, joined = item
    ups = list(joined["up"])
    # A node without a parent is a root already; one that is nobody's parent is no root to replace.
    if ups and any(True for _ in joined["used"]):
        yield node, ups[0]


def _by_group(item, remap: dict[bytes, bytes]) -> Iterator[tuple[bytes, rules.Row]]:
    name, joined = item
    # A picture without edges is a group of its own.
    root: bytes = next(iter(joined["roots"]), name)
    for row in joined["rows"]:
        yield remap.get(root, root), row


def _standing(row: rules.Row, config: IngestConfig) -> Best:
    evaluated = placement.is_evaluated(row, config)
    # Evaluated pairs stand first, so that training copies are rejected against them. Next come
    # pairs of earlier examples, so that a picture stays in the split that it was put in before.
    splits = ("",) if evaluated else (*record.SPLITS, "")
    earlier = splits.index("" if evaluated else row.earlier)
    order = (not evaluated, earlier, row.number[0] < 0, *placement.rank(row, config))
    trained = row.earlier == record.TRAIN_SPLIT
    return Best(
        order, row.number, row.key, row.image_sha256, row.place, evaluated, row.earlier, trained
    )


def _best(rows: Iterable[rules.Row], config: IngestConfig) -> Best:
    best, trained = None, False
    for row in rows:
        standing = _standing(row, config)
        trained |= standing.trained
        if best is None or standing.order < best.order:
            best = standing
    assert best is not None
    return best._replace(trained=trained)


class _Decide(beam.DoFn):
    """Sends the rows of a group to a split, or rejects them."""

    def __init__(self, config: IngestConfig):
        self._config = config

    def process(self, item):
        # Groups may be large: rows are iterated twice instead of being held in memory.
        group, rows = item
        best = _best(rows, self._config)
        keep_all = self._config.duplicates.keep == "all"
        split = best.earlier or placement.split_of(group, self._config)
        split = record.EVAL_SPLIT if best.evaluated else split
        for row in rows:
            if best.trained and placement.is_evaluated(row, self._config):
                # Pairs of other inputs' evaluation sets, too: they are counted as not protected.
                yield _rejected(row, reasons.LEAK, "earlier examples train on the picture", best)
                continue
            if row.number[0] < 0:
                continue
            how = "is that" if row.image_sha256 == best.sha256 else "looks like that"
            if best.evaluated and not placement.is_evaluated(row, self._config):
                detail = f"the picture {how} of {best.key!r}, which is evaluated on"
                yield _rejected(row, reasons.LEAK, detail, best)
            elif keep_all or row.number == best.number:
                yield ROWS, (split, row)
            else:
                detail = f"the picture {how} of {best.key!r}"
                yield _rejected(row, reasons.DUPLICATE, detail, best)


def _rejected(row: rules.Row, reason: str, detail: str, best: Best):
    return REJECTED, (row.number, rules.rejected(row, reason, detail, best.place))


class FilterCaptions(beam.PTransform):
    """Leaves out captions that repeat too often, and those of the evaluation.

    Rows that had captions and have none left come out as rejections, below `REJECTED`, with their
    numbers.
    """

    def __init__(self, config: IngestConfig):
        super().__init__()
        self._config = config

    def expand(self, rows):
        """Returns rows below `ROWS`, and rejections."""
        limit = self._config.filters.max_repeats
        none = rows.pipeline | "NoCaptions" >> beam.Create([], reshuffle=False)
        repeated = evaluated = none
        if limit is not None:
            repeated = (
                rows
                | "Own" >> beam.Filter(lambda row: row.number[0] >= 0)
                | "CaptionsOfRow" >> beam.FlatMap(_caption_keys)
                | "CountCaptions" >> beam.combiners.Count.PerElement()
                | "Repeated" >> beam.Filter(lambda item: item[1] > limit)
            )
        if self._config.duplicates.captions:
            evaluated = (
                rows
                | "Evaluated" >> beam.Filter(placement.is_evaluated, self._config)
                | "CaptionsOfEvaluated" >> beam.FlatMap(_caption_keys)
                | "DistinctCaptions" >> beam.Distinct()
                | "WithNone" >> beam.Map(lambda key: (key, None))
            )
        if repeated is none and evaluated is none:
            return {ROWS: rows, REJECTED: none}
        leave_out = _LeaveOut(self._config)
        return rows | "LeaveOut" >> ParDoByTag(
            leave_out, (ROWS, REJECTED), AsDict(repeated), AsDict(evaluated)
        )


def _caption_keys(row: rules.Row) -> Iterator[str]:
    yield from sorted({filters.caption_key(text) for text in row.text})


class _LeaveOut(beam.DoFn):
    def __init__(self, config: IngestConfig):
        self._config = config

    def process(self, row: rules.Row, repeated: dict[str, int], evaluated: dict[str, None]):
        if row.number[0] < 0 or not row.text:
            yield ROWS, row
            return
        if not placement.is_evaluated(row, self._config):
            for text in row.text:
                if filters.caption_key(text) in evaluated:
                    detail = f"the caption {text[:100]!r} is one that is evaluated on"
                    rejection = rules.rejected(row, reasons.LEAK, detail)
                    yield REJECTED, (row.number, rejection)
                    return
        kept = rules.without_captions(row, repeated)
        if kept is not None:
            yield ROWS, kept
            return
        count = repeated[filters.caption_key(row.text[0])]
        detail = f"the caption {row.text[0][:100]!r} is that of {count} pairs"
        rejection = rules.rejected(row, reasons.REPEATED_TEXT, detail)
        yield REJECTED, (row.number, rejection)
