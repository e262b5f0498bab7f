"""Which Arrow files of a Hugging Face folder are its data: those that its own listing names.

`save_to_disk` writes `state.json` beside the files of a data set and `dataset_dict.json` above the
folders of its splits; `load_dataset` leaves `dataset_info.json` in its cache. What `map` and
`filter` compute is put beside both, as `cache-*.arrow`, and is no data.
"""

import json
import posixpath
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from sigline.components.ingest.sources import Files, is_no_file

DICT_FILE = "dataset_dict.json"
STATE_FILE = "state.json"
_INFO_FILE = "dataset_info.json"
# Maximum size of a listing; one of this size names half a million files.
_MAX_LISTING_BYTES = 2**26
_CACHE = re.compile(r"(cache-|indices|tmp).*\.arrow", re.IGNORECASE)


@dataclass(frozen=True)
class Listing:
    """The data of one folder.

    Attributes:
        names: The files, also those that are listed and not there.
        sources: Sources of the files of a cache, which name their split; empty for others.
    """

    names: tuple[str, ...]
    sources: dict[str, str]


def is_cache(path: str) -> bool:
    """Whether an Arrow file holds what `datasets` computed, by its name."""
    return _CACHE.fullmatch(posixpath.basename(path)) is not None


def listing(folder: str, names: Iterable[str], files: Files) -> Listing:
    """Returns which of the Arrow files of a folder are data.

    Args:
        folder: The folder.
        names: Names of its files.
        files: The file system.

    Raises:
        ValueError: If the rows of the data are chosen by a table of indices, as old versions of
            `datasets` saved them.
    """
    names = set(names)
    arrows = sorted(name for name in names if name.lower().endswith(".arrow"))
    state = read_json(posixpath.join(folder, STATE_FILE), files) if STATE_FILE in names else {}
    if any(state.get(key) for key in ("_indices_files", "_indices_data_files")):
        raise ValueError(
            "A saved data set must hold its rows as they are; load it and save it again with "
            f"`flatten_indices()`. Received: {folder}, whose {STATE_FILE} names files of indices"
        )
    items = state.get("_data_files")
    if isinstance(items, list):
        listed = [item.get("filename") for item in items if isinstance(item, dict)]
        plain = [posixpath.basename(name) for name in listed if isinstance(name, str)]
        return Listing(tuple(dict.fromkeys(plain)), {})
    if _INFO_FILE in names and (sources := _of_cache(folder, arrows, files)):
        return Listing(tuple(sources), sources)
    return Listing(tuple(name for name in arrows if not is_cache(name)), {})


def _of_cache(folder: str, arrows: list[str], files: Files) -> dict[str, str]:
    """Returns the files that `dataset_info.json` tells by their splits, with their sources."""
    splits = read_json(posixpath.join(folder, _INFO_FILE), files).get("splits")
    sources: dict[str, str] = {}
    for split, about in (splits if isinstance(splits, dict) else {}).items():
        pattern = re.compile(rf"(.+)-{re.escape(str(split))}(-\d+-of-\d+)?\.arrow", re.IGNORECASE)
        matches = [match for name in arrows if (match := pattern.fullmatch(name))]
        for match in matches:
            sources[match[0]] = f"{match[1]}/{split}"
        lengths = about.get("shard_lengths") if isinstance(about, dict) else None
        if matches and isinstance(lengths, list) and len(lengths) > 1:
            for number in range(len(lengths)):
                name = f"{matches[0][1]}-{split}-{number:05d}-of-{len(lengths):05d}.arrow"
                sources.setdefault(name, f"{matches[0][1]}/{split}")
    return dict(sorted(sources.items()))


def splits_of(folder: str, files: Files) -> tuple[str, ...]:
    """Returns the names of the splits that `dataset_dict.json` of a folder lists."""
    names = read_json(posixpath.join(folder, DICT_FILE), files).get("splits")
    if not isinstance(names, list):
        return ()
    return tuple(name for name in names if isinstance(name, str) and "/" not in name)


def read_json(path: str, files: Files) -> dict[str, Any]:
    """Returns the object in a file; an empty one if it holds none."""
    try:
        with files.open(path) as handle:
            content = handle.read(_MAX_LISTING_BYTES)
    except OSError as error:
        if not is_no_file(error):
            raise
        return {}
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
