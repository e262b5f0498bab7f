"""The files of an input: each is read by one reader, or passed over for one reason."""

import posixpath
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import cast

from sigline.components.ingest import documents, reasons, sources
from sigline.components.ingest.compression import without_suffix
from sigline.components.ingest.readers import READERS, saved_datasets, tfds
from sigline.components.ingest.readers.arrow import HuggingFaceReader, ParquetReader
from sigline.components.ingest.readers.folders import SIDE_SUFFIXES, FolderReader
from sigline.components.ingest.readers.tables import caption_files
from sigline.components.ingest.sources import AUTO, Part, PassedOver
from sigline.components.ingest.splits import SplitFolders
from sigline.schemas import entries

WEBDATASET, TFDS, TFRECORD, HUGGING_FACE = "webdataset", "tfds", "tfrecord", "huggingface"
PARQUET, TABLE, LIST, IMAGES = "parquet", "table", "list", "images"
# Formats whose rows may name images that have files of their own.
NAMING = (HUGGING_FACE, PARQUET, TABLE, LIST)
# Formats whose files hold the images themselves.
SELF_CONTAINED = (WEBDATASET, TFRECORD)
_FOLDERS = cast(FolderReader, READERS[IMAGES])
_ARROW = {
    PARQUET: cast(ParquetReader, READERS[PARQUET]),
    HUGGING_FACE: cast(HuggingFaceReader, READERS[HUGGING_FACE]),
}
# A folder of one of these kinds is a class, whatever it holds.
_CLASS_KINDS = (
    *(entries.FOLDER, entries.EMPTY_FOLDER, entries.UNREADABLE_FOLDER, entries.LINKED_TWICE),
)
# Suffixes of companion files of shards besides tables, texts and JSON: embeddings, indices, marks.
_DESCRIBING = (
    *(".npy", ".npz", ".pt", ".safetensors", ".pkl", ".pickle"),
    *(".idx", ".index", ".stats", ".done", ".ok"),
)


@dataclass(frozen=True)
class Inventory:
    """Everything below an input.

    Attributes:
        base: The folder.
        parts: What is read, each part with its format.
        read: The files of these parts, by format.
        named: Images that rows of tables may name; they are read if one does, else passed over.
        passed_over: The things that are not read.
        num_things: Number of all things: files, links that are not followed, empty folders.
    """

    base: str
    parts: tuple[tuple[str, Part], ...]
    read: Mapping[str, tuple[str, ...]]
    named: tuple[str, ...]
    passed_over: tuple[PassedOver, ...]
    num_things: int


def take(base: str, files: sources.Files, config: sources.SourceConfig) -> Inventory:
    """Lists everything below an input and decides what reads it.

    Raises:
        ValueError: If nothing is there that can be read, or the configuration names an unknown
            format.
    """
    if config.format not in (AUTO, *READERS):
        known = ", ".join((AUTO, *READERS))
        raise ValueError(f"source.format must be one of {known}. Received: {config.format!r}")
    base = base.rstrip("/")
    if config.dataset:
        if config.format not in (AUTO, TFDS):
            raise ValueError(f"source.dataset is for the format tfds. Received: {config.format!r}")
        base = tfds.find_version(base, config.dataset, files)
        config = replace(config, format=TFDS)
    sorting = _Sorting(base, files, config)
    sorting.run()
    parts = tuple(sorting.parts())
    if not parts:
        kind = "pairs in any format" if config.format == AUTO else config.format
        names = [posixpath.basename(path) for path in sorting.below]
        there = f"{len(names)} files: {', '.join(names[:5])}"
        raise ValueError(
            f"input_base must hold {kind}. Received: input_base={base}, "
            f"with {there if names else 'no files, if it is there'}"
        )
    read = {name: tuple(paths) for name, paths in sorting.read.items() if paths}
    return Inventory(
        base, parts, read, tuple(sorting.named), tuple(sorting.passed_over), sorting.num_things
    )


class _Sorting:
    """Sorts the things below an input, one kind after the other."""

    def __init__(self, base: str, files: sources.Files, config: sources.SourceConfig):
        self._base, self._files, self._config = base, files, config
        self._entries = files.entries(base)
        self._left: dict[str, None] = {}
        self._by_folder: dict[str, list[str]] = defaultdict(list)
        # Parts of data sets that list their files themselves, with the sources that they name.
        self._listed: dict[str, list[Part]] = {TFDS: [], HUGGING_FACE: []}
        self._sources: dict[str, str] = {}
        self._splits: dict[str, tuple[str, ...]] = {}
        self._samples: list[tuple[str, ...]] = []
        self._read_folders: dict[str, set[str]] = defaultdict(set)
        self.read: dict[str, list[str]] = {name: [] for name in READERS}
        self.named: list[str] = []
        self.passed_over: list[PassedOver] = []
        self.below: list[str] = []
        self.num_things = 0

    def run(self) -> None:
        """Sorts everything."""
        for path, kind in self._entries:
            if kind == entries.FOLDER:
                continue
            self.num_things += 1
            if documents.is_hidden(path[len(self._base) + 1 :]):
                self._pass(path, reasons.HIDDEN)
            elif kind != entries.FILE:
                self._pass(path, kind)
            else:
                self._left[path] = None
                self._by_folder[posixpath.dirname(path)].append(path)
        self.below = list(self._left)
        if self._reads(TFDS):
            self._sort_prepared()
        if self._reads(HUGGING_FACE):
            self._sort_saved()
        for name in SELF_CONTAINED:
            if self._reads(name):
                self._take(name, [path for path in self._left if READERS[name].accepts(path)])
        pictures = [path for path in self._left if _FOLDERS.accepts(path)]
        self._sort_tables(pictures)
        self._sort_images(pictures)
        stems = self._stems()
        with_metadata = {posixpath.dirname(x) for x in self.read[IMAGES] if _is_json(x)}
        for path in list(self._left):
            folder = posixpath.dirname(path)
            alone = _is_json(path) and folder in with_metadata
            companion = _stem(path) in stems[folder]
            self._pass(path, _reason(path, companion=companion, alone=alone))

    def parts(self) -> Iterator[tuple[str, Part]]:
        """Yields what is read, in the order of formats and paths."""
        paths = [path for paths in self.read.values() for path in paths]
        folders = SplitFolders(self._base, paths, self._splits)
        for name, reader in READERS.items():
            if name in self._listed:
                parts = self._listed[name]
            elif name == IMAGES:
                parts = self._image_parts(folders)
            else:
                parts_of_files = (
                    reader.parts(x, self._files, self._config) for x in self.read[name]
                )
                parts = [part for parts in parts_of_files for part in parts]
            for part in parts:
                source = part.source or folders.source_of(part.path)
                yield name, part._replace(source=source) if source else part

    def _reads(self, name: str) -> bool:
        return self._config.format in (name, AUTO)

    def _pass(self, path: str, reason: str) -> None:
        self._left.pop(path, None)
        self.passed_over.append(PassedOver(path, reason))

    def _take(self, name: str, paths: Iterable[str]) -> None:
        for path in paths:
            del self._left[path]
            self.read[name].append(path)
            self._read_folders[name].add(posixpath.dirname(path))

    def _sort_prepared(self) -> None:
        """Takes the data sets that TensorFlow Datasets prepared, the newest version of each."""
        versions: dict[str, dict[tuple[int, ...], str]] = defaultdict(dict)
        reader, described = READERS[TFDS], []
        for path in filter(reader.accepts, self.below):
            folder = posixpath.dirname(path)
            above, name = posixpath.split(folder)
            if folder == self._base:
                described.append(path)
            elif posixpath.join(folder, tfds.INFO_FILE) in self._left:
                numbers = name.split(".")
                if all(part.isdecimal() for part in numbers):
                    versions[above][tuple(map(int, numbers))] = path
                else:
                    versions[folder][()] = path
        for numbered in versions.values():
            *older, newest = (numbered[number] for number in sorted(numbered))
            described.append(newest)
            for path in older:
                for other in self._by_folder[posixpath.dirname(path)]:
                    self._pass(other, reasons.OLDER_VERSION)
        for path in sorted(described):
            parts = list(reader.parts(path, self._files, self._config))
            self._listed[TFDS] += parts
            self._take(TFDS, [part.path for part in parts if part.path in self._left])
            for other in self._by_folder[posixpath.dirname(path)]:
                if other in self._left:
                    holds_records = READERS[TFRECORD].accepts(other)
                    self._pass(other, reasons.UNLISTED if holds_records else reasons.DOCUMENT)

    def _sort_saved(self) -> None:
        """Takes the Arrow files that their data sets list; all but caches where none does."""
        for folder in sorted(self._by_folder):
            inside = [path for path in self._by_folder[folder] if path in self._left]
            names = [posixpath.basename(path) for path in inside]
            if saved_datasets.DICT_FILE in names:
                self._splits[folder] = splits = saved_datasets.splits_of(folder, self._files)
                for split in splits:
                    state = posixpath.join(folder, split, saved_datasets.STATE_FILE)
                    if state not in self._left:
                        # The split is listed but missing, which is reported when the part is read.
                        self._listed[HUGGING_FACE].append(Part(state))
            arrows = [path for path in inside if READERS[HUGGING_FACE].accepts(path)]
            if not arrows and saved_datasets.STATE_FILE not in names:
                continue
            listing = saved_datasets.listing(folder, names, self._files)
            for name in listing.names:
                path = posixpath.join(folder, name)
                part = Part(path, source=listing.sources.get(name, ""))
                self._listed[HUGGING_FACE].append(part)
                self._take(HUGGING_FACE, [path] if path in self._left else [])
            for path in arrows:
                if path in self._left:
                    cache = saved_datasets.is_cache(path)
                    self._pass(path, reasons.CACHE if cache else reasons.UNLISTED)
        self._listed[HUGGING_FACE].sort()

    def _sort_tables(self, pictures: Sequence[str]) -> None:
        """Takes tables. What lies beside shards describes them, unless there are its pictures."""
        formats = (TFDS, HUGGING_FACE, *SELF_CONTAINED)
        shards = set().union(*(self._read_folders[name] for name in formats))
        with_pictures = {folder for path in pictures for folder in _above(path, self._base)}
        for name in (PARQUET, TABLE, LIST):
            if not self._reads(name) or (name == LIST and self._config.format == AUTO):
                # Any text file may end in `.txt`, so lists are read only if they are asked for.
                continue
            stems = self._stems()
            taken = []
            for path in filter(READERS[name].accepts, self._left):
                folder = posixpath.dirname(path)
                if name == LIST:
                    # Lists lie in the base folder; `.txt` files below it are captions.
                    is_taken = folder == self._base
                elif self._config.format == name or folder not in shards:
                    is_taken = True
                elif _stem(path) in stems[folder]:
                    is_taken = False
                else:
                    is_taken = folder in with_pictures or self._holds_images(name, path)
                if is_taken:
                    taken.append(path)
            self._take(name, taken)

    def _holds_images(self, name: str, path: str) -> bool:
        """Whether a table holds the images themselves, and names no files."""
        reader = _ARROW.get(name)
        return reader is not None and reader.holds_images(path, self._files, self._config)

    def _sort_images(self, pictures: Sequence[str]) -> None:
        """Takes the pictures with what lies beside them; those below a table are its own."""
        naming: set[str] = set()
        if pictures:
            tables = ((name, path) for name in NAMING for path in self.read[name])
            naming = {posixpath.dirname(x) for name, x in tables if not self._holds_images(name, x)}
        roots = {self._config.root.rstrip("/")} if naming and self._config.root else naming
        for path in pictures:
            if not roots.isdisjoint(_above(path, self._base)):
                self.named.append(path)
                del self._left[path]
        if self.read[LIST]:
            captions = {side for path in self.named for side in caption_files(path)}
            sides = [path for path in self._left if path in captions]
            for path in sides:
                del self._left[path]
            self.named = sorted([*self.named, *sides])
        own = [path for path in pictures if path in self._left]
        if not own or not self._reads(IMAGES):
            return
        stems = {posixpath.splitext(path)[0] for path in own}
        others = set().union(*self._read_folders.values())
        for path in self._left:
            if path.lower().endswith(SIDE_SUFFIXES):
                alone = posixpath.dirname(path) in others or documents.is_document(path)
                if posixpath.splitext(path)[0] in stems or not alone:
                    own.append(path)
        start = len(self._base) + 1
        self._samples = list(_FOLDERS.samples(path[start:] for path in own))
        self._take(IMAGES, [f"{self._base}/{name}" for names in self._samples for name in names])

    def _image_parts(self, folders: SplitFolders) -> list[Part]:
        """Returns the parts of the image folder, those of each split apart."""
        by_split: dict[str, list[tuple[str, ...]]] = defaultdict(list)
        for names in self._samples:
            by_split[folders.folder_of(f"{self._base}/{names[0]}")].append(names)
        classes: tuple[str, ...] = ()
        if self._config.class_folders:
            classes = self._classes([folder or self._base for folder in by_split])
        depths = {folder: folder[len(self._base) :].count("/") for folder in by_split}
        if self._config.class_folders and not classes and min(depths.values(), default=0) > 1:
            # `cat/train` and `dog/train`: the classes stand above the splits.
            classes = self._classes([self._base])
            depths = dict.fromkeys(depths, 0)
        parts = []
        for folder, samples in sorted(by_split.items()):
            source = folders.source_of(f"{folder}/") if folder else ""
            depth = depths[folder]
            part = Part(self._base, classes=classes, class_depth=depth, source=source)
            parts += _FOLDERS.parts_of(part, samples)
        return parts

    def _classes(self, tops: Sequence[str]) -> tuple[str, ...]:
        """Returns the names of the folders below some, but for those that hold documents only.

        One whose pictures cannot be read keeps its place, so that the others keep their labels.
        """
        things = [path for paths in (*self.read.values(), self.named) for path in paths]
        documented: set[str] = set()
        filled = {folder for path in things for folder in _above(path, self._base)}
        for path, reason in self.passed_over:
            if reason in (reasons.DOCUMENT, reasons.COMPANION, reasons.CACHE):
                documented.update(_above(path, self._base))
            elif reason != reasons.HIDDEN:
                filled.update(_above(path, self._base))
        candidates = filled | {
            path
            for path, kind in self._entries
            if kind in _CLASS_KINDS
            or (kind == entries.BROKEN_LINK and not posixpath.splitext(path)[1])
        }
        folders = (candidates - (documented - filled)) - set(tops)
        names = {name for top, name in map(posixpath.split, folders) if top in tops}
        return tuple(sorted(name for name in names if not name.startswith(".")))

    def _stems(self) -> dict[str, set[str]]:
        """Returns what the names of shards begin with, by folder."""
        stems: dict[str, set[str]] = defaultdict(set)
        for name in (*SELF_CONTAINED, HUGGING_FACE, PARQUET):
            for path in self.read[name]:
                stems[posixpath.dirname(path)].add(_stem(path))
        return stems


def _reason(path: str, *, companion: bool, alone: bool) -> str:
    """Returns why a file is passed over that no reader takes.

    Args:
        path: The file.
        companion: Whether it shares the name of a shard beside it.
        alone: Whether it is metadata among metadata of images.
    """
    if documents.is_document(path):
        return reasons.DOCUMENT
    if companion and _describes(path):
        return reasons.COMPANION
    if path.lower().endswith(SIDE_SUFFIXES):
        return reasons.METADATA_ALONE if alone else reasons.DOCUMENT
    if any(reader.accepts(path) for reader in READERS.values()):
        return reasons.OTHER_FORMAT
    return reasons.UNKNOWN_FORMAT


def _describes(path: str) -> bool:
    """Whether a file may describe the shard that shares its name; a `.zip` holds more than that."""
    tables = (READERS[PARQUET], READERS[TABLE])
    return path.lower().endswith((*SIDE_SUFFIXES, *_DESCRIBING)) or any(
        reader.accepts(path) for reader in tables
    )


def _is_json(path: str) -> bool:
    return path.lower().endswith(".json")


def _above(path: str, base: str) -> Iterator[str]:
    """Yields the folders that a file lies in, up to one above."""
    folder = posixpath.dirname(path)
    while len(folder) >= len(base):
        yield folder
        folder = posixpath.dirname(folder)


def _stem(path: str) -> str:
    """Returns the name of a shard without suffixes, which the files that describe it share."""
    return posixpath.splitext(posixpath.basename(without_suffix(path)))[0].removesuffix("_stats")
