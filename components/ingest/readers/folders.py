"""Folders of image files, with texts beside them or classes for folders."""

import itertools
import posixpath
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from sigline.components.ingest import reasons
from sigline.components.ingest.sources import (
    IMAGE_SUFFIXES,
    MAX_SIDE_BYTES,
    Files,
    FolderClass,
    Part,
    Problem,
    RawPair,
    SourceConfig,
    family,
    is_no_file,
)

_SIDE_FIELDS = {".txt": "text", ".json": "metadata"}
SIDE_SUFFIXES = tuple(_SIDE_FIELDS)
# Samples per part; a worker reads one part at a time.
_PART_SAMPLES = 500


class FolderReader:
    """Image files in folders; `a/b.jpg` has its caption in `a/b.txt` and more in `a/b.json`."""

    def accepts(self, path: str) -> bool:
        """Whether a file is an image, by its name."""
        return path.lower().endswith(IMAGE_SUFFIXES)

    def parts(self, path: str, files: Files, config: SourceConfig) -> Iterator[Part]:
        """Yields some of a folder's samples at a time."""
        base = path.rstrip("/")
        inside = [path[len(base) + 1 :] for path in files.find(base)]
        inside = [name for name in inside if not any(x.startswith(".") for x in name.split("/"))]
        samples = list(self.samples(inside))
        classes: tuple[str, ...] = ()
        if config.class_folders:
            classes = tuple(sorted({x[0].split("/")[0] for x in samples if "/" in x[0]}))
        yield from self.parts_of(Part(base, classes=classes), samples)

    def samples(self, names: Iterable[str]) -> Iterator[tuple[str, ...]]:
        """Yields the files of each sample: images of one name with their text and metadata.

        Metadata alone, such as a list of classes, is no sample, but a caption alone is. Of two
        files for the same field (`a.txt`, `a.TXT`) the sample has the one in lower case.
        """
        usable = (name for name in names if self.accepts(name) or _suffix(name) in _SIDE_FIELDS)
        for _, group in itertools.groupby(sorted(usable, key=_order), key=_stem):
            pictures, sides = [], {}
            for name in group:
                if self.accepts(name):
                    pictures.append(name)
                else:
                    sides[_suffix(name)] = name
            if pictures or ".txt" in sides:
                yield tuple(sorted([*pictures, *sides.values()]))

    def parts_of(self, part: Part, samples: Sequence[tuple[str, ...]]) -> Iterator[Part]:
        """Yields some of the samples at a time, in parts that are otherwise as the one given."""
        for start in range(0, len(samples), _PART_SAMPLES):
            names = itertools.chain.from_iterable(samples[start : start + _PART_SAMPLES])
            yield part._replace(start=start, names=tuple(names))

    def scan(
        self, part: Part, files: Files, config: SourceConfig, max_image_bytes: int
    ) -> Iterator[RawPair]:
        """Yields the samples; their images are read later."""
        for _, group in itertools.groupby(part.names, key=_stem):
            names = list(group)
            fields: dict[str, Any] = {}
            for name in names:
                field = _SIDE_FIELDS.get(_suffix(name))
                if field is not None:
                    fields |= side_file(files, posixpath.join(part.path, name), field)
            *above, _ = names[0].split("/")
            if len(above) > part.class_depth and above[part.class_depth] in part.classes:
                folder = above[part.class_depth]
                fields["label"] = FolderClass.of(part.classes.index(folder), folder)
                if "text" not in fields and "metadata" not in fields:
                    fields["text"] = folder.replace("_", " ").encode("utf-8", "surrogateescape")
            pictures = [name for name in names if self.accepts(name)]
            for name in pictures or [None]:
                path = None if name is None else posixpath.join(part.path, name)
                yield RawPair(
                    key=name or names[0],
                    source=family(part.path),
                    shard=part.path,
                    position=name or names[0],
                    image_path=path,
                    **fields,
                )


def _order(name: str) -> tuple[str, str]:
    return _stem(name), name


def _stem(name: str) -> str:
    return posixpath.splitext(name)[0]


def _suffix(name: str) -> str:
    return posixpath.splitext(name)[1].lower()


def side_file(files: Files, path: str, field: str) -> dict[str, Any]:
    """Returns the field of a pair that a file beside its image fills, if there is one."""
    try:
        with files.open(path) as handle:
            content = handle.read(MAX_SIDE_BYTES + 1)
    except OSError as error:
        if not is_no_file(error):
            raise
        if not isinstance(error, PermissionError):
            return {}
        return {
            "problem": Problem(reasons.INVALID_METADATA, f"{path} cannot be read: {error.strerror}")
        }
    if len(content) > MAX_SIDE_BYTES:
        detail = f"{path} has more than {MAX_SIDE_BYTES} bytes"
        return {"problem": Problem(reasons.INVALID_METADATA, detail)}
    return {field: content}
