"""What an input holds besides its pairs: the files that count for a digest, and its classes."""

import posixpath

from apache_beam.io.filesystems import FileSystems

from sigline.components.ingest import inventory, reasons
from sigline.components.ingest.sources import SourceConfig
from sigline.components.shared.files import BeamFiles, write_file
from sigline.schemas import entries, record
from sigline.schemas.labels import LabelSet

# Reasons for passing over files that can be read and may hold pairs.
_COUNTED_FILES = (reasons.UNKNOWN_FORMAT, reasons.OTHER_FORMAT, reasons.UNLISTED)


def input_files(base: str, source: SourceConfig) -> list[str]:
    """Returns all files that what ingest writes may depend on, sorted.

    Raises:
        ValueError: If the input holds no file of a format that is read.
    """
    source = source.below(base)
    inputs = inventory.take(base, BeamFiles(), source)
    read = {path for paths in inputs.read.values() for path in paths}
    if set(inputs.read) <= set(inventory.SELF_CONTAINED):
        # Ingest reports files that it passes over though they may hold pairs: its output depends
        # on them too.
        others = (x.path for x in inputs.passed_over if x.reason in _COUNTED_FILES)
        return sorted(read.union(others))
    roots = {inputs.base}
    if not source.dataset:
        roots.add(source.root.rstrip("/") or inputs.base)
    entered = (entry for root in roots for entry in BeamFiles().entries(root))
    return sorted(read.union(entry.path for entry in entered if entry.kind == entries.FILE))


def class_names(base: str, source: SourceConfig) -> tuple[str, ...]:
    """Returns the names of the classes that the folders of an input are; none if they are none."""
    if not source.class_folders:
        return ()
    inputs = inventory.take(base, BeamFiles(), source.below(base))
    return next((part.classes for _, part in inputs.parts if part.classes), ())


def copy_classes(base: str, examples_dir: str) -> None:
    """Copies the input's `classes.json` to the examples, if there is one.

    Raises:
        ValueError: If the file is no label set.
    """
    labels = read_classes(base)
    if labels is not None:
        write_file(posixpath.join(examples_dir, record.CLASSES_FILE), labels.to_json().encode())


def read_classes(base: str) -> LabelSet | None:
    """Returns the input's `classes.json`; None if there is none.

    Raises:
        ValueError: If the file is no label set.
    """
    path = posixpath.join(base, record.CLASSES_FILE)
    if not FileSystems.exists(path):
        return None
    with FileSystems.open(path) as handle:
        return LabelSet.from_json(handle.read().decode())
