"""Readers of image-text sources, one for each format, behind one small interface."""

import posixpath
from collections.abc import Iterator

from sigline.components.ingest import sources
from sigline.components.ingest.readers import tfds
from sigline.components.ingest.readers.arrow import HuggingFaceReader, ParquetReader
from sigline.components.ingest.readers.folders import FolderReader
from sigline.components.ingest.readers.records import TFRecordReader
from sigline.components.ingest.readers.tables import ListReader, TableReader
from sigline.components.ingest.readers.webdataset import WebDatasetReader

IMAGES = "images"
TFDS = "tfds"
# The first whose files lie in the input is taken, so that companion files of shards, tables beside
# images and texts beside images are what they are.
READERS: dict[str, sources.Reader] = {
    "webdataset": WebDatasetReader(),
    TFDS: tfds.TfdsReader(),
    "tfrecord": TFRecordReader(),
    "huggingface": HuggingFaceReader(),
    "parquet": ParquetReader(),
    "table": TableReader(),
    "list": ListReader(),
    IMAGES: FolderReader(),
}

# Formats whose files hold the images themselves.
SELF_CONTAINED = ("webdataset", "tfrecord")


def input_files(
    base: str, files: sources.Files, config: sources.SourceConfig
) -> tuple[str, list[str]]:
    """Returns the format of an input and the files of that format, sorted.

    Raises:
        ValueError: If there are none, or the configuration names an unknown format.
    """
    if config.format not in (sources.AUTO, *READERS):
        known = ", ".join((sources.AUTO, *READERS))
        raise ValueError(f"source.format must be one of {known}. Received: {config.format!r}")
    base = base.rstrip("/")
    if config.dataset:
        if config.format not in (sources.AUTO, TFDS):
            raise ValueError(f"source.dataset is for the format tfds. Received: {config.format!r}")
        base = tfds.find_version(base, config.dataset, files)
    # What begins with a dot is the file system's own.
    below = [x for x in files.find(base) if not posixpath.basename(x).startswith(".")]
    found = [path for path in below if posixpath.dirname(path) == base]
    for name, reader in READERS.items():
        if config.format not in (name, sources.AUTO):
            continue
        # Of a list nothing tells that it is one.
        if name == "list" and config.format == sources.AUTO:
            continue
        deep = name in ("huggingface", IMAGES)
        accepted = [path for path in (below if deep else found) if reader.accepts(path)]
        if accepted:
            return name, accepted
    wanted = "pairs in any format" if config.format == sources.AUTO else config.format
    found = f"{len(below)} files: {', '.join(posixpath.basename(path) for path in below[:5])}"
    raise ValueError(
        f"input_base must hold {wanted}. Received: input_base={base}, "
        f"with {found if below else 'no files, if it is there'}"
    )


def input_parts(
    base: str, files: sources.Files, config: sources.SourceConfig
) -> Iterator[tuple[str, sources.Part]]:
    """Yields the parts of an input, each with the format that reads it."""
    name, paths = input_files(base, files, config)
    for path in [base] if name == IMAGES else paths:
        for part in READERS[name].parts(path, files, config):
            yield name, part
