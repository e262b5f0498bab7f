"""Beam transforms that read the parts of an input and examine their pairs."""

import functools
import gc
import posixpath
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, BinaryIO, NamedTuple

import apache_beam as beam
from apache_beam.io.filesystems import FileSystems

from sigline.components.ingest import account_transforms, inventory, readers, reasons, rules
from sigline.components.ingest.class_labels import ClassNames
from sigline.components.ingest.filters import FilterConfig
from sigline.components.ingest.images import ImageLimits
from sigline.components.ingest.options import IngestConfig
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
from sigline.components.shared.files import BeamFiles, make_folder
from sigline.components.shared.outputs import ParDoByTag
from sigline.schemas import progress

# Outputs of `Examine`.
ROWS, REJECTED, READ, MEMBERS, NAMED = "row", "rejected", "read", "members", "named"
# Pairs whose images lie in files of their own, to be read by other workers.
_APART = "apart"
# Folder of images that wait to be written to a shard.
WAITING_FOLDER = "waiting"
# Bytes read from an image file at a time.
_PIECE_BYTES = 2**16


class Work(NamedTuple):
    """A part to read: its number, the input that it is of, where it lies, and its role."""

    number: int
    base: str
    part: tuple[str, Part]
    earlier: str = ""


class Read(NamedTuple):
    """A part of the input that was read: how many pairs, and when, in seconds of the epoch."""

    pairs: int
    begin: float
    end: float


class Examine(beam.PTransform):
    """Reads parts of inputs and examines their pairs.

    What comes out of the parts with negative numbers is of evaluation sets and earlier examples.
    """

    def __init__(
        self,
        work: Sequence[Work],
        examples_dir: str,
        report_dir: str,
        config: IngestConfig,
        classes: ClassNames,
        *,
        with_names: bool,
    ):
        """Takes the parts to read, and what to do with their pairs.

        Args:
            work: The parts.
            examples_dir: Images that wait to be written go below it.
            report_dir: The names of members that were passed over go below it.
            config: The configuration.
            classes: The classes of the input, if it names them.
            with_names: Whether the images that rows name are put out.
        """
        super().__init__()
        self._work = work
        self._examples_dir = examples_dir
        self._report_dir = report_dir
        self._config = config
        self._classes = classes
        self._with_names = with_names

    def expand(self, pbegin):
        """Returns collections by name.

        `ROWS`: rows; `REJECTED`: rejections with their numbers; `READ`: of each part its number
        and `Read`; `MEMBERS`: of each archive the number of its part, the ledger of the members
        that were passed over, and how many members there are and were read; `NAMED`: paths of
        images that rows name.
        """
        examine_part = _ExaminePart(
            self._examples_dir,
            self._report_dir,
            self._config,
            self._classes,
            with_names=self._with_names,
        )
        scanned = (
            pbegin
            | "Parts" >> beam.Create(self._work)
            | "SpreadParts" >> beam.Reshuffle()
            | "ExaminePart"
            >> ParDoByTag(examine_part, (ROWS, REJECTED, READ, _APART, MEMBERS, NAMED))
        )
        examine_image = _ExamineImage(self._examples_dir, self._config, self._classes)
        apart = (
            scanned[_APART]
            | "SpreadImages" >> beam.Reshuffle()
            | "ExamineImage" >> ParDoByTag(examine_image, (ROWS, REJECTED))
        )
        both = {
            name: (scanned[name], apart[name]) | f"All_{name}" >> beam.Flatten()
            for name in (ROWS, REJECTED)
        }
        return {name: scanned[name] for name in (READ, MEMBERS, NAMED)} | both


@functools.cache
def _settle() -> None:
    # Libraries are never freed, yet every full collection would visit all of their objects, which
    # takes a fifth of the time. Frozen once per process only: frozen garbage is never collected.
    gc.freeze()


class _Examine(beam.DoFn):
    """Examines pairs; keeps the images that must wait in one file for each bundle."""

    def __init__(self, examples_dir: str, config: IngestConfig, classes: ClassNames):
        self._folder = posixpath.join(examples_dir, WAITING_FOLDER)
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
            return REJECTED, ((part, number), examined)
        row, image = examined
        waits = row.place is None and part >= 0
        return ROWS, replace(row, place=self._keep(image)) if waits else row

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
        config: IngestConfig,
        classes: ClassNames,
        *,
        with_names: bool,
    ):
        super().__init__(examples_dir, config, classes)
        self._report_dir = report_dir
        self._with_names = with_names

    def process(self, work: Work):
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
                    yield NAMED, path
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
            yield MEMBERS, (part, *members.end())
        yield READ, (part, Read(read, begin, time.time()))

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
