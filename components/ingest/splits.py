"""Folders of splits, `train/` beside `val/`: each split is a source of its own."""

import posixpath
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping

from sigline.components.ingest.sources import family

# Names that data sets give the folders of splits; those of sigline begin with `Split-`.
_NAMES = frozenset(
    ("train", "training", "val", "valid", "validation", "dev", "test", "testing", "eval")
)
_PREFIX = "split-"
# A year behind the name, as in COCO's `train2017`.
_YEAR = re.compile(r"[-_]?(19|20)\d\d$")


class SplitFolders:
    """Tells which folders below an input hold a split.

    A folder does whose name is that of a split, if so are those of all folders with data beside it:
    `train` beside `bus` is a class. In the folder of a saved `DatasetDict` its list decides.
    """

    def __init__(
        self, base: str, paths: Iterable[str], listed: Mapping[str, tuple[str, ...]] | None = None
    ):
        """Finds them.

        Args:
            base: The folder of the input.
            paths: The files that hold pairs.
            listed: Names of the splits by the folder of a data set that lists them.
        """
        self._base = base
        self._children: dict[str, set[str]] = defaultdict(set)
        self._listed = dict(listed or {})
        for folder in {posixpath.dirname(path) for path in paths}:
            while len(folder) > len(base):
                above, name = posixpath.split(folder)
                self._children[above].add(name)
                folder = above

    def folder_of(self, path: str) -> str:
        """Returns the outermost folder of a split that a path lies in; empty if there is none."""
        above = self._base
        for name in posixpath.dirname(path)[len(self._base) + 1 :].split("/"):
            if self._holds_split(above, name):
                return posixpath.join(above, name)
            above = posixpath.join(above, name)
        return ""

    def source_of(self, path: str) -> str:
        """Returns the source of the pairs of a file, `name/split`; empty if it lies in no split.

        The name is that of the folder above, without a number at its end, so that all spans of an
        input have the same sources.
        """
        above, split = posixpath.split(self.folder_of(path))
        return f"{family(above)}/{source_text(split)}" if split else ""

    def _holds_split(self, above: str, name: str) -> bool:
        if above in self._listed:
            return name in self._listed[above]
        return all(map(_is_split, {name, *self._children.get(above, ())}))


def source_text(name: str) -> str:
    """Returns the name of a source, which is Unicode, from a file name, which need not be."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _is_split(name: str) -> bool:
    return _YEAR.sub("", name.lower().removeprefix(_PREFIX)) in _NAMES
