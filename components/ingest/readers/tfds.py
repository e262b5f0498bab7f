"""Data sets that TensorFlow Datasets prepared, read from their folder without its library."""

import json
import posixpath
from collections.abc import Iterator, Mapping
from typing import Any

from sigline.components.ingest import reasons
from sigline.components.ingest.readers.records import pairs_of
from sigline.components.ingest.readers.values import pair_of
from sigline.components.ingest.sources import (
    CAPTION_COLUMNS,
    MAX_SIDE_BYTES,
    Columns,
    Files,
    Part,
    Problem,
    RawPair,
    SourceConfig,
    family,
)

_FEATURES_FILE = "features.json"
INFO_FILE = "dataset_info.json"
_DEFAULT_NAME = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"


class TfdsReader:
    """The folder of one version: its `features.json` says which features are what.

    The image is the feature of that kind, captions are texts of a usual name, in sequences too, and
    the label is a class. Of data sets without captions the name of the class is the caption.
    """

    def accepts(self, path: str) -> bool:
        """Whether a file describes a prepared data set, by its name."""
        return posixpath.basename(path) == _FEATURES_FILE

    def parts(self, path: str, files: Files, config: SourceConfig) -> Iterator[Part]:
        """Yields every shard that the data set should have, up to its number of records.

        Raises:
            ValueError: If the description is none, or the files are no TFRecords.
        """
        folder = posixpath.dirname(path)
        info = _read_json(posixpath.join(folder, INFO_FILE), files)
        if info.get("fileFormat", "tfrecord") != "tfrecord":
            raise ValueError(
                "A data set must be prepared with file_format=tfrecord. "
                f"Received: {info['fileFormat']} in {folder}"
            )
        try:
            shards = [shard for split in info["splits"] for shard in _shards(info["name"], split)]
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            raise ValueError(
                f"{INFO_FILE} must name the data set and, for each split, the lengths of its "
                f"shards and a template of their names. Received: {folder}, where {error!r}"
            ) from None
        if not shards:
            raise ValueError(f"A prepared data set must have shards. Received: {folder}")
        for name, length in shards:
            yield Part(posixpath.join(folder, posixpath.basename(name)), stop=length)

    def scan(
        self, part: Part, files: Files, config: SourceConfig, max_image_bytes: int
    ) -> Iterator[RawPair]:
        """Yields a pair for each record; records that the shard should have and lacks are one."""
        folder = posixpath.dirname(part.path)
        kinds = _kinds(_read_json(posixpath.join(folder, _FEATURES_FILE), files))
        chosen = _named(kinds, config)
        classes = _class_names(folder, chosen.label, files)

        def to_pair(values: dict[str, Any], number: int) -> RawPair:
            label = values.get(chosen.label or "")
            named = dict(values)
            columns = chosen._replace(
                captions=tuple(name for name in chosen.captions if name in values)
            )
            if not columns.captions and isinstance(label, int) and 0 <= label < len(classes):
                named["class name"] = classes[label]
                columns = columns._replace(captions=("class name",))
            # A record may lack features that the data set declares.
            return pair_of(
                named,
                columns,
                config,
                shard=part.path,
                position=number,
                names_vary=bool(chosen.captions),
            )

        count, damaged = 0, False
        for pair in pairs_of(part.path, files, max_image_bytes, to_pair):
            count, damaged = count + 1, damaged or pair.problem is not None
            yield pair
        if part.stop is not None and count < part.stop and not damaged:
            detail = f"the file holds {count} records of {part.stop}"
            problem = Problem(reasons.DAMAGED_ARCHIVE, detail)
            yield RawPair("", family(part.path), part.path, position=count, problem=problem)


def find_version(base: str, name: str, files: Files) -> str:
    """Returns the folder of a prepared data set.

    Args:
        base: Folder of all data sets, TFDS's `data_dir`.
        name: `name`, `name/config`, or either with `:version`; the highest version otherwise.
        files: The file system.

    Raises:
        ValueError: If there is none, or several configurations and none is named.
    """
    place, _, version = name.partition(":")
    inner = posixpath.normpath(place)
    if not place or inner.startswith(("/", "..")) or "\0" in place:
        raise ValueError(f"source.dataset must be the name of a data set. Received: {name!r}")
    root = posixpath.join(base, inner)
    versions_by_folder: dict[str, list[tuple[int, ...]]] = {}
    for path in files.find(root):
        if posixpath.basename(path) == _FEATURES_FILE:
            above, number = posixpath.split(posixpath.dirname(path))
            if all(part.isdecimal() for part in number.split(".")):
                versions_by_folder.setdefault(above, []).append(
                    tuple(int(x) for x in number.split("."))
                )
    if root in versions_by_folder:
        versions_by_folder = {root: versions_by_folder[root]}
    if len(versions_by_folder) > 1:
        configs = ", ".join(
            sorted(f"{place}{folder.removeprefix(root)}" for folder in versions_by_folder)
        )
        raise ValueError(
            f"source.dataset must name one of several configurations: {configs}. Received: {name!r}"
        )
    for folder, versions in versions_by_folder.items():
        names = {".".join(map(str, number)): number for number in versions}
        if version and version not in names:
            break
        latest = max(names, key=lambda text: names[text])
        return posixpath.join(folder, version or latest)
    there = sorted(
        ".".join(map(str, x)) for versions in versions_by_folder.values() for x in versions
    )
    raise ValueError(
        f"source.dataset must be a prepared data set below {base}. Received: {name!r}; "
        f"versions there: {', '.join(there) or 'none'}"
    )


def _shards(dataset: str, split: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    """Yields the names of the shards of a split and their numbers of records."""
    lengths = [int(length) for length in split["shardLengths"]]
    for number, length in enumerate(lengths):
        name = (split.get("filepathTemplate") or _DEFAULT_NAME).format(
            DATASET=dataset,
            SPLIT=split["name"],
            FILEFORMAT="tfrecord",
            SHARD_INDEX=f"{number:05d}",
            NUM_SHARDS=f"{len(lengths):05d}",
            SHARD_X_OF_Y=f"{number:05d}-of-{len(lengths):05d}",
        )
        yield name, length


def _read_json(path: str, files: Files) -> dict[str, Any]:
    try:
        with files.open(path) as handle:
            value = json.loads(handle.read(MAX_SIDE_BYTES))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} must describe a prepared data set: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path} must hold a JSON object. Received: {type(value).__name__}")
    return value


def _kinds(feature: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Returns the kinds of features by their names in records: `image`, `text`, `classLabel`."""
    inner = feature.get("featuresDict", {}).get("features", {})
    if not inner and "sequence" in feature:
        return _kinds(feature["sequence"].get("feature", {}), prefix)
    kinds = {}
    for name, value in inner.items():
        path = f"{prefix}/{name}" if prefix else name
        nested = _kinds(value, path)
        kind = next((x for x in ("image", "text", "classLabel") if x in value), None)
        sequence = value.get("sequence", {}).get("feature", {})
        kind = kind or next((x for x in ("image", "text") if x in sequence), "other")
        kinds |= nested or {path: kind}
    return kinds


def _named(kinds: Mapping[str, str], config: SourceConfig) -> Columns:
    """Returns which features are what: as configured, else by kind and name."""
    named = Columns.choose(kinds, config)
    of_kind = {kind: [n for n, k in sorted(kinds.items()) if k == kind] for kind in kinds.values()}
    captions = tuple(name for name in named.captions if kinds[name] == "text" or config.caption)
    if not captions and not config.caption:
        usual = (
            name for name in of_kind.get("text", []) if set(name.split("/")) & set(CAPTION_COLUMNS)
        )
        captions = tuple(usual)
    if not config.image:
        named = named._replace(image=next(iter(of_kind.get("image", [])), None))
    if not config.label:
        whole = [name for name in of_kind.get("classLabel", []) if "/" not in name]
        named = named._replace(label=next(iter(whole), None))
    return named._replace(captions=captions)


def _class_names(folder: str, label: str | None, files: Files) -> list[str]:
    """Returns the names of classes; none if the data set has no names for them."""
    if label is None:
        return []
    path = posixpath.join(folder, f"{label.replace('/', '-')}.labels.txt")
    if path not in files.find(folder):
        return []
    with files.open(path) as handle:
        return handle.read(MAX_SIDE_BYTES).decode("utf-8", "replace").splitlines()
