"""Where the pairs of an input lie: its files, the parts they are read in, and their columns."""

import errno
import functools
import posixpath
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, BinaryIO, NamedTuple, Protocol

from sigline.components.ingest import reasons
from sigline.schemas.entries import Entry

AUTO = "auto"
# Suffixes of the image formats that are read; `.jfif` and those after it are aliases.
IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".avif"),
    *(".jfif", ".jif", ".jfi", ".jpe", ".pjpeg", ".pjp", ".apng", ".dib", ".avifs"),
)
# Larger files beside an image are not captions or metadata.
MAX_SIDE_BYTES = 2**20
_URLS = ("http://", "https://")
# A byte order mark and a zero-width space, which copied URLs come with.
_INVISIBLE_BLANKS = "\ufeff\u200b"
_NO_FILE = (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError)
# Tried in this order where the configuration names none; open_clip, img2dataset, DataComp,
# TensorFlow Datasets and Hugging Face use them.
URL_COLUMNS = ("url", "image_url", "img_url")
IMAGE_COLUMNS = (
    "image",
    "jpg",
    "png",
    "webp",
    "image_bytes",
    "image/encoded",
    "image_path",
    "filepath",
    "file_name",
    "filename",
    "path",
    *URL_COLUMNS,
)
CAPTION_COLUMNS = ("caption", "captions", "text", "txt", "title", "image/text")
KEY_COLUMNS = ("key", "uid", "__key__", "id")
LANGUAGE_COLUMNS = ("language", "lang")
LABEL_COLUMNS = ("label", "cls", "image/class/label")
QUOTING = NO_QUOTES, MINIMAL_QUOTES = "none", "minimal"


class Files(Protocol):
    """Files on some file system."""

    def open(self, path: str) -> BinaryIO:
        """Opens a file for reading, seekable; raises an `OSError` if it cannot."""
        ...

    def find(self, folder: str) -> list[str]:
        """Returns the paths of all files below a folder, sorted."""
        ...

    def entries(self, folder: str) -> list[Entry]:
        """Returns everything below a folder, sorted by path; links to folders are followed."""
        ...


@dataclass(frozen=True)
class SourceConfig:
    """How the files of an input are read.

    Attributes:
        format: `webdataset`, `tfds`, `tfrecord`, `huggingface`, `parquet`, `table`, `list` or
            `images`; `auto` tells it by the names of the files.
        dataset: Data set that TensorFlow Datasets prepared below the input's folder: its name, with
            `/config` and `:version` if there are several.
        root: Folder that the paths of images in tables count from, and below which they must lie;
            that of the table if empty. It counts from the input's folder itself.
        image: Column of the encoded image, or of its path; the first of `IMAGE_COLUMNS` if empty.
        caption: Columns of captions; the first of `CAPTION_COLUMNS` if empty.
        key: Column of the key.
        language: Column of the captions' language.
        label: Column of class ids.
        delimiter: Delimiter of tables; tab for `.tsv` and comma otherwise if empty.
        quoting: Quoting of tables: `none`, quotes are characters like others; or `minimal`, a field
            that begins with a quote ends with one, and a doubled quote in it is one. If empty,
            `none` for `.tsv` and `minimal` otherwise.
        columns: Names of the columns of CSV and TSV files whose first line is a row already.
        class_folders: Whether the folders of an image folder are classes. Their position in order
            is the label, or, of an input with `classes.json`, the class of their name; their name
            is the caption of images that have none.
    """

    format: str = AUTO
    dataset: str = ""
    root: str = ""
    image: str = ""
    caption: tuple[str, ...] = ()
    key: str = ""
    language: str = ""
    label: str = ""
    delimiter: str = ""
    quoting: str = ""
    columns: tuple[str, ...] = ()
    class_folders: bool = False

    def __post_init__(self) -> None:
        if len(self.delimiter) > 1 or self.delimiter in tuple('"\r\n'):
            raise ValueError(
                "source.delimiter must be one character, and no quote or line end. "
                f"Received: source.delimiter={self.delimiter!r}"
            )
        if self.quoting not in ("", *QUOTING):
            raise ValueError(
                f"source.quoting must be one of {', '.join(QUOTING)}, or empty. "
                f"Received: source.quoting={self.quoting!r}"
            )
        if len(set(self.columns)) != len(self.columns):
            raise ValueError(
                "source.columns must name each column once. "
                f"Received: source.columns={', '.join(self.columns)}"
            )

    def below(self, base: str) -> "SourceConfig":
        """Returns the configuration with a root that no longer counts from the input's folder."""
        return replace(self, root=posixpath.join(base, self.root)) if self.root else self


class Part(NamedTuple):
    """A part of the input that is read on its own.

    Attributes:
        path: The file, or the folder of `names`.
        start: Where in the file the part begins, as its reader counts.
        stop: Where it ends; None for the end of the file.
        names: Files of a folder, relative to it, instead.
        classes: Names of a folder's classes, if its folders are such.
        class_depth: How many folders stand above those of the classes.
        source: The source of its pairs; that of the file's name if empty.
    """

    path: str
    start: int = 0
    stop: int | None = None
    names: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    class_depth: int = 0
    source: str = ""


class PassedOver(NamedTuple):
    """A thing that is passed over unread.

    Attributes:
        path: The file, or the archive's path and the member's name behind it.
        reason: One of `reasons.PASSED_OVER`.
    """

    path: str
    reason: str


class Members(NamedTuple):
    """How many members an archive has, and how many of them were read, behind its last pair."""

    total: int
    read: int


class Place(NamedTuple):
    """Where the bytes of an image can be read again."""

    path: str
    offset: int = 0
    size: int = -1


class Problem(NamedTuple):
    """Why a sample cannot be read: one of `reasons`, and what is wrong."""

    reason: str
    detail: str


@dataclass(frozen=True)
class RawPair:
    """One sample as a reader finds it.

    What belongs to it comes as files that stand beside its image, or as columns.

    Attributes:
        key: The source's key.
        source: Data set or shard family.
        shard: File that it stands in.
        position: Where it stands in that file.
        image: Encoded image, if there is one.
        image_path: Where the image is, if it has a file of its own.
        image_url: Where it can be fetched from, if only that is known.
        place: Where the image can be read again, if it can.
        text: Bytes of the caption file, if there is one.
        metadata: Bytes of the JSON file, if there is one.
        captions: Texts with their languages, from columns.
        label: Class ids, from a column.
        extra: All other columns.
        problem: Why the sample, or what follows it, could not be read.
        remarks: What was left out though the pair is good, of `remarks`.
        lacks_captions: Whether `problem` is that there is no column of captions, and a pair that
            needs no caption is good without it.
    """

    key: str
    source: str
    shard: str
    position: Any = None
    image: bytes | None = None
    image_path: str | None = None
    image_url: str | None = None
    place: Place | None = None
    text: bytes | None = None
    metadata: bytes | None = None
    captions: tuple[tuple[Any, Any], ...] | None = None
    label: Any = None
    extra: Mapping[str, Any] | None = None
    problem: Problem | None = None
    # Left out of repr, by which fetching recognises finished shards.
    remarks: tuple[str, ...] = field(default=(), repr=False)
    lacks_captions: bool = field(default=False, repr=False)


class FolderClass(int):
    """The place of a class folder in order: its class, unless the input's classes have names.

    Attributes:
        name: The folder's name.
    """

    name: str = ""

    @classmethod
    def of(cls, number: int, name: str) -> "FolderClass":
        """Returns the place of a folder of a name."""
        place = cls(number)
        place.name = name
        return place


class Reader(Protocol):
    """Reads one kind of file."""

    def accepts(self, path: str) -> bool:
        """Whether a file is of this kind, by its name."""
        ...

    def parts(self, path: str, files: Files, config: SourceConfig) -> Iterator[Part]:
        """Yields the parts of a file."""
        ...

    def scan(
        self, part: Part, files: Files, config: SourceConfig, max_image_bytes: int
    ) -> Iterator["RawPair | PassedOver | Members"]:
        """Yields every sample of a part in order; damage yields a pair with a `problem`.

        Readers of archives yield what they pass over, too, and at last the number of members.
        """
        ...


class Columns(NamedTuple):
    """Names of the columns that a table has for what belongs to a pair."""

    image: str | None
    captions: tuple[str, ...]
    key: str | None
    language: str | None
    label: str | None

    @classmethod
    def choose(cls, present: Collection[str], config: SourceConfig) -> "Columns":
        """Returns those of a table; what the configuration names is taken and nothing else.

        Names are compared without regard to case where none is the same to the letter.
        """
        return _chosen(tuple(present), config)


def column_named(name: str, present: Collection[str]) -> str | None:
    """Returns the column that a name means: the same to the letter, else but for case."""
    if name in present:
        return name
    folded = name.strip().casefold()
    return next((other for other in present if other.strip().casefold() == folded), None)


# Tables of text name the columns of each of their rows.
@functools.lru_cache(maxsize=64)
def _chosen(present: tuple[str, ...], config: SourceConfig) -> Columns:
    def first(named: str, usual: tuple[str, ...]) -> str | None:
        names = (column_named(name, present) for name in ((named,) if named else usual))
        return next((name for name in names if name is not None), None)

    captions = [column_named(name, present) for name in config.caption]
    if not config.caption:
        captions = [first("", CAPTION_COLUMNS)]
    return Columns(
        image=first(config.image, IMAGE_COLUMNS),
        captions=tuple(dict.fromkeys(name for name in captions if name is not None)),
        key=first(config.key, KEY_COLUMNS),
        language=first(config.language, LANGUAGE_COLUMNS),
        label=first(config.label, LABEL_COLUMNS),
    )


def url_of(text: str) -> str | None:
    """Returns the URL that a text is, without blanks around it; None for a text that is none."""
    text = text.strip().strip(_INVISIBLE_BLANKS).strip()
    return text if text[:8].lower().startswith(_URLS) else None


def image_below(root: str, path: str) -> dict[str, Any]:
    """Returns the field of a pair for an image that is named from a root, or its problem."""
    prefix = posixpath.join(root, "")
    named = path.removeprefix(prefix)
    if (url := url_of(named)) is not None:
        detail = f"{url[:200]!r} is a URL; `sigline data fetch` fetches it first"
        return {"image_url": url, "problem": Problem(reasons.UNSAFE_PATH, detail)}
    inner = posixpath.normpath(named)
    outside = inner.startswith("/") or inner == "." or inner.split("/")[0] == ".."
    if outside or "\0" in path or "\\" in path or "://" in named or not _is_name(path):
        detail = f"{path[:200]!r} is no path below the root of the images"
        return {"problem": Problem(reasons.UNSAFE_PATH, detail)}
    return {"image_path": prefix + inner}


def _is_name(path: str) -> bool:
    try:
        path.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return False
    return True


def unicode_text(text: str) -> str:
    """Returns a text that is Unicode: names of files may hold what is none."""
    return text.encode("utf-8", "backslashreplace").decode()


def is_no_file(error: OSError) -> bool:
    """Whether an error says that a path leads to no file that can be read, now or later."""
    return isinstance(error, _NO_FILE) or error.errno in (errno.ENAMETOOLONG, errno.ELOOP)


def family(path: str) -> str:
    """Returns the data set that a file belongs to: its name without suffix and running number."""
    stem = posixpath.basename(path).split(".")[0]
    name = re.sub(r"[-_]?\d+(-of-\d+)?$", "", stem) or stem
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
