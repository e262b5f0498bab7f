"""What becomes of one raw pair: a row to write or a rejection, and where a row goes."""

import hashlib
import json
import posixpath
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sigline.components.ingest import images
from sigline.schemas import record

# The closed set of reasons besides those of `images`.
MISSING_IMAGE = "missing_image"
MISSING_TEXT = "missing_text"
EMPTY_TEXT = "empty_text"
INVALID_UTF8 = "invalid_utf8"
INVALID_METADATA = "invalid_metadata"
DAMAGED_ARCHIVE = "damaged_archive"
REASONS = (
    images.UNSUPPORTED_IMAGE,
    images.CORRUPT_IMAGE,
    images.TOO_MANY_PIXELS,
    images.TOO_MANY_BYTES,
    MISSING_IMAGE,
    MISSING_TEXT,
    EMPTY_TEXT,
    INVALID_UTF8,
    INVALID_METADATA,
    DAMAGED_ARCHIVE,
)

# Pictures whose hashes differ in at most so many bits are compared by thumbnail ...
_NEAR_BITS = 3
_NUM_BANDS = _NEAR_BITS + 1
_BAND_BITS = 64 // _NUM_BANDS
# ... and are the same picture where the thumbnails' values differ by less than this on average:
# re-encoding moves them by under 1, moving an object by a pixel by more than 2.
_NEAR_THUMBNAIL = 1.5


@dataclass(frozen=True)
class IngestConfig:
    """What ingest does with its input.

    Attributes:
        eval_share: Share of the groups of duplicates that goes to the eval split.
        eval_sources: Sources that go to the eval split whole, such as held-out data.
        shard_records: Aim for the number of records per output shard.
        split_seed: Changes the split and the order of records.
        limits: Bounds on images.
    """

    eval_share: float = 0.1
    eval_sources: tuple[str, ...] = ()
    shard_records: int = 512
    split_seed: int = 0
    limits: images.ImageLimits = field(default_factory=images.ImageLimits)

    def __post_init__(self) -> None:
        if not 0 < self.eval_share < 1:
            raise ValueError(
                f"eval_share must be between 0 and 1. Received: eval_share={self.eval_share}"
            )
        if self.shard_records < 1:
            raise ValueError(
                f"shard_records must be at least 1. Received: shard_records={self.shard_records}"
            )


@dataclass(frozen=True)
class RawPair:
    """One sample as a reader finds it.

    Attributes:
        key: The source's key.
        source: Data set or shard family.
        shard: File that it stands in.
        locator: Where the image lies in the file, for the reader to fetch it again.
        image: Encoded image, if there is one.
        text: Bytes of the caption file, if there is one.
        metadata: Bytes of the JSON file, if there is one.
        problem: A reason of `REASONS` and its detail, where the reader could not read on.
    """

    key: str
    source: str
    shard: str
    locator: Any = None
    image: bytes | None = None
    text: bytes | None = None
    metadata: bytes | None = None
    problem: tuple[str, str] | None = None


@dataclass(frozen=True)
class Rejection:
    """A pair that is not written: key and file name find it again in the input folder."""

    key: str
    shard: str
    reason: str
    detail: str

    def to_json(self) -> str:
        """Returns one line of the `rejected` output."""
        # Keys may hold what is no Unicode; JSON escapes keep it.
        return json.dumps(self.__dict__, sort_keys=True)


@dataclass(frozen=True)
class Row:
    """All that is kept of a good pair except the image, which stays in its file until written.

    `transcoded` says that the image is stored in another form than the source's own bytes.
    """

    key: str
    source: str
    shard: str
    locator: Any
    text: tuple[str, ...]
    language: tuple[str, ...]
    width: int
    height: int
    image_sha256: bytes
    image_phash: int
    thumbnail: bytes
    label: tuple[int, ...]
    meta: str
    transcoded: bool

    def to_record(self, image: bytes) -> record.ImageTextRecord:
        """Joins the row with its image."""
        return record.ImageTextRecord(
            key=self.key,
            image=image,
            text=self.text,
            language=self.language,
            source=self.source,
            width=self.width,
            height=self.height,
            image_sha256=self.image_sha256,
            image_phash=self.image_phash,
            label=self.label,
            meta=self.meta,
        )


def examine(pair: RawPair, limits: images.ImageLimits) -> Row | Rejection:
    """Turns a raw pair into a row, or says why it is rejected. Never raises on bad input."""
    try:
        return _row(pair, limits)
    except images.ImageError as error:
        return _rejection(pair, error.reason, str(error))
    except _PairError as error:
        return _rejection(pair, error.reason, str(error))


def _rejection(pair: RawPair, reason: str, detail: str) -> Rejection:
    return Rejection(pair.key, posixpath.basename(pair.shard), reason, detail)


class _PairError(Exception):
    def __init__(self, reason: str, detail: str):
        super().__init__(detail)
        self.reason = reason


def _row(pair: RawPair, limits: images.ImageLimits) -> Row:
    if pair.problem is not None:
        raise _PairError(*pair.problem)
    _check_unicode(pair.key, "the key")
    if pair.image is None:
        raise _PairError(MISSING_IMAGE, "the sample has no image file")
    metadata = _metadata(pair)
    captions = _captions(pair, metadata)
    image = images.check_image(pair.image, limits)
    label = metadata.pop("label", [])
    label = label if isinstance(label, list) else [label]
    if not all(type(item) is int and 0 <= item < 2**63 for item in label):
        raise _PairError(
            INVALID_METADATA, "label must be a class id of at least 0, or a list of such"
        )
    for name in ("caption", "captions", "key", "status"):
        metadata.pop(name, None)
    meta = json.dumps(metadata, sort_keys=True, ensure_ascii=False)
    _check_unicode(meta, "the metadata")
    return Row(
        key=pair.key or image.sha256.hex(),
        source=pair.source,
        shard=pair.shard,
        locator=pair.locator,
        text=tuple(text for text, _ in captions),
        language=tuple(language for _, language in captions),
        width=image.width,
        height=image.height,
        image_sha256=image.sha256,
        image_phash=image.phash,
        thumbnail=image.thumbnail,
        label=tuple(label),
        meta=meta,
        transcoded=image.stored is not pair.image,
    )


def _check_unicode(text: str, name: str) -> None:
    """Refuses lone surrogates, which JSON and file names may hold, but no UTF-8 text."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise _PairError(INVALID_UTF8, f"{name} holds half of a surrogate pair") from None


def _decode_text(data: bytes, name: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _PairError(INVALID_UTF8, f"{name}: {error.reason} at byte {error.start}") from None


def _metadata(pair: RawPair) -> dict[str, Any]:
    if pair.metadata is None:
        return {}
    try:
        value = json.loads(_decode_text(pair.metadata, "metadata"))
    except (ValueError, RecursionError) as error:  # Also for integers too long to convert.
        raise _PairError(INVALID_METADATA, f"metadata is no JSON: {error}") from None
    if not isinstance(value, dict):
        raise _PairError(INVALID_METADATA, "metadata is no JSON object")
    return value


def _captions(pair: RawPair, metadata: dict[str, Any]) -> list[tuple[str, str]]:
    """Returns the distinct captions with their languages, the caption file's first.

    The metadata may hold `caption`, one text, and `captions`: texts, or texts by language.
    """
    found: dict[str, str] = {}

    def _add(text: Any, language: str) -> None:
        if not isinstance(text, str):
            raise _PairError(
                INVALID_METADATA, f"a caption must be a text, not {type(text).__name__}"
            )
        _check_unicode(text, "a caption")
        _check_unicode(language, "a language")
        text = normalize_text(text)
        if text and found.get(text, record.UNKNOWN_LANGUAGE) == record.UNKNOWN_LANGUAGE:
            found[text] = language

    if pair.text is not None:
        _add(_decode_text(pair.text, "text"), record.UNKNOWN_LANGUAGE)
    if metadata.get("caption") is not None:
        _add(metadata["caption"], record.UNKNOWN_LANGUAGE)
    captions = metadata.get("captions") or {}
    by_language = captions if isinstance(captions, dict) else {record.UNKNOWN_LANGUAGE: captions}
    for language, texts in by_language.items():
        for text in texts if isinstance(texts, list) else [texts]:
            _add(text, language)
    if found:
        return list(found.items())
    if pair.text is None and not captions and metadata.get("caption") is None:
        raise _PairError(MISSING_TEXT, "the sample has neither a caption file nor a caption")
    raise _PairError(EMPTY_TEXT, "every caption is empty or white space")


def normalize_text(text: str) -> str:
    """Returns the NFC form without control characters, white space squeezed."""
    text = unicodedata.normalize("NFC", text)
    text = "".join(" " if unicodedata.category(char) == "Cc" else char for char in text)
    return " ".join(text.split())


def bands(phash: int) -> list[tuple[int, int]]:
    """Returns the parts of a hash; hashes that differ in at most three bits share one."""
    value = phash & (2**64 - 1)
    mask = 2**_BAND_BITS - 1
    return [(band, value >> (band * _BAND_BITS) & mask) for band in range(_NUM_BANDS)]


# A picture as grouping sees it: hash of the stored bytes, perceptual hash, thumbnail.
Fingerprint = tuple[bytes, int, bytes]


def same_picture(a: Fingerprint, b: Fingerprint) -> bool:
    """Whether two fingerprints show one picture, perhaps encoded differently."""
    if a[0] == b[0]:
        return True
    if images.hamming_distance(a[1], b[1]) > _NEAR_BITS:
        return False
    x, y = (np.frombuffer(item[2], np.uint8).astype(np.int16) for item in (a, b))
    return float(np.abs(x - y).mean()) < _NEAR_THUMBNAIL


def duplicate_edges(fingerprints: Iterable[Fingerprint]) -> list[tuple[bytes, bytes]]:
    """Returns the pairs of image hashes, among pictures that share a band, that are one picture."""
    distinct = sorted(set(fingerprints))
    return [
        (a[0], b[0])
        for i, a in enumerate(distinct)
        for b in distinct[i + 1 :]
        if same_picture(a, b)
    ]


def group_roots(edges: Iterable[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
    """Returns, for every image hash in an edge, the smallest hash that it is connected to."""
    parent: dict[bytes, bytes] = {}

    def _find(item: bytes) -> bytes:
        while (up := parent.setdefault(item, item)) != item:
            parent[item] = item = parent[up]
        return item

    for a, b in edges:
        low, high = sorted((_find(a), _find(b)))
        parent[high] = low
    return {item: _find(item) for item in list(parent)}


def split_of(group: bytes, config: IngestConfig) -> str:
    """Returns the split of a group of duplicates, a function of its key alone."""
    position = _uniform(b"split", group, config.split_seed)
    return record.EVAL_SPLIT if position < config.eval_share else record.TRAIN_SPLIT


def order_key(row: Row, config: IngestConfig) -> bytes:
    """Returns where a row stands in its split: pseudo-random, the same in every run."""
    # The file's name, not its folder: moved data keeps its order.
    file = posixpath.basename(row.shard)
    name = "\0".join((row.source, row.key, file, repr(row.locator))).encode()
    return hashlib.sha256(b"order%d\0" % config.split_seed + name).digest()


def num_shards(records: int, config: IngestConfig) -> int:
    """Returns the number of shards for a split; an empty split still has one."""
    return max(1, -(-records // config.shard_records))


def shard_of(position: bytes, shards: int) -> int:
    """Returns the shard that a row with this order key belongs to."""
    return int.from_bytes(position[:8], "big") * shards >> 64


def _uniform(purpose: bytes, key: bytes, seed: int) -> float:
    digest = hashlib.sha256(purpose + b"%d\0" % seed + key).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
