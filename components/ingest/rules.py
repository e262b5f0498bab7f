"""What becomes of one raw pair: a row to write or a rejection, and where a row goes."""

import hashlib
import json
import math
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from sigline.components.ingest import images, reasons
from sigline.components.ingest.sources import MAX_SIDE_BYTES, Place, RawPair, SourceConfig
from sigline.schemas import record

# Characters of a caption; normalising one takes the square of them at worst.
_MAX_CAPTION = 10_000
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
        source: How the files are read.
        limits: Bounds on images.
        storage: How images are stored.
    """

    eval_share: float = 0.1
    eval_sources: tuple[str, ...] = ()
    shard_records: int = 512
    split_seed: int = 0
    source: SourceConfig = field(default_factory=SourceConfig)
    limits: images.ImageLimits = field(default_factory=images.ImageLimits)
    storage: images.ImageStorage = field(default_factory=images.ImageStorage)

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
class Rejection:
    """A pair that is not written: key, file name and position find it again in the input."""

    key: str
    shard: str
    position: Any
    reason: str
    detail: str

    def to_json(self) -> str:
        """Returns one line of the `rejected` output."""
        # Keys may hold what is no Unicode; JSON escapes keep it.
        return json.dumps(self.__dict__, sort_keys=True)


@dataclass(frozen=True)
class Row:
    """All that is kept of a good pair except the image, which stays in its place until written.

    Attributes:
        shard: File that the pair stands in, from the input's folder: moved data keeps its order.
        position: Where it stands there.
        place: Where the stored bytes of the image are; None for those of the pair, if they have no
            place of their own or are stored in another form.
    """

    key: str
    source: str
    shard: str
    position: Any
    place: Place | None
    text: tuple[str, ...]
    language: tuple[str, ...]
    width: int
    height: int
    image_sha256: bytes
    image_phash: int
    thumbnail: bytes
    label: tuple[int, ...]
    meta: str

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


def examine(pair: RawPair, config: IngestConfig) -> tuple[Row, bytes] | Rejection:
    """Turns a raw pair into a row and its image as it is stored, or says why it is rejected.

    Never raises on bad input.
    """
    try:
        return _row(pair, config)
    except images.ImageError as error:
        return _rejection(pair, error.reason, str(error))
    except _PairError as error:
        return _rejection(pair, error.reason, str(error))


def _rejection(pair: RawPair, reason: str, detail: str) -> Rejection:
    return Rejection(pair.key, pair.shard, pair.position, reason, detail)


class _PairError(Exception):
    def __init__(self, reason: str, detail: str):
        super().__init__(detail)
        self.reason = reason


def _row(pair: RawPair, config: IngestConfig) -> tuple[Row, bytes]:
    if pair.problem is not None:
        raise _PairError(*pair.problem)
    _check_unicode(pair.key, "the key")
    if pair.image is None:
        raise _PairError(reasons.MISSING_IMAGE, "the sample has no image")
    metadata = _metadata(pair)
    captions = _captions(pair, metadata)
    image = images.check_image(pair.image, config.limits, config.storage)
    label = metadata.pop("label", None)
    label = _labels(label if pair.label is None else pair.label)
    for name in ("caption", "captions", "key", "status"):
        metadata.pop(name, None)
    try:
        extra = _plain(metadata | dict(pair.extra or {}))
    except RecursionError:
        raise _PairError(reasons.INVALID_METADATA, "the metadata is nested too deep") from None
    meta = json.dumps(extra, sort_keys=True, ensure_ascii=False)
    _check_unicode(meta, "the metadata")
    if len(meta) > MAX_SIDE_BYTES:
        detail = f"metadata of {len(meta)} characters, the limit is {MAX_SIDE_BYTES}"
        raise _PairError(reasons.INVALID_METADATA, detail)
    row = Row(
        key=pair.key or image.sha256.hex(),
        source=pair.source,
        shard=pair.shard,
        position=pair.position,
        place=pair.place if image.stored is pair.image else None,
        text=tuple(text for text, _ in captions),
        language=tuple(language for _, language in captions),
        width=image.width,
        height=image.height,
        image_sha256=image.sha256,
        image_phash=image.phash,
        thumbnail=image.thumbnail,
        label=label,
        meta=meta,
    )
    return row, image.stored


def _labels(value: Any) -> tuple[int, ...]:
    """Returns class ids; a text may hold one, as in tables and `.cls` files."""
    if isinstance(value, bytes):
        value = _decode_text(value, "label")
    if isinstance(value, str):
        value = value.strip()
        value = int(value) if value.isdecimal() and len(value) < 20 else value or None
    items = value if isinstance(value, list) else [] if value is None else [value]
    if not all(type(item) is int and 0 <= item < 2**63 for item in items):
        raise _PairError(
            reasons.INVALID_METADATA, "label must be a class id of at least 0, or a list of such"
        )
    return tuple(items)


def _plain(value: Any) -> Any:
    """Returns a value that JSON has; of bytes that are no text their number."""
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return f"{len(value)} bytes"
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    return value if value is None or isinstance(value, str | int | bool) else str(value)


def _check_unicode(text: str, name: str) -> None:
    """Refuses lone surrogates, which JSON and file names may hold, but no UTF-8 text."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise _PairError(reasons.INVALID_UTF8, f"{name} holds half of a surrogate pair") from None


def _decode_text(data: bytes, name: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _PairError(
            reasons.INVALID_UTF8, f"{name}: {error.reason} at byte {error.start}"
        ) from None


def _metadata(pair: RawPair) -> dict[str, Any]:
    if pair.metadata is None:
        return {}
    try:
        value = json.loads(_decode_text(pair.metadata, "metadata"))
    except (ValueError, RecursionError) as error:  # Also for integers too long to convert.
        raise _PairError(reasons.INVALID_METADATA, f"metadata is no JSON: {error}") from None
    if not isinstance(value, dict):
        raise _PairError(reasons.INVALID_METADATA, "metadata is no JSON object")
    return value


def _captions(pair: RawPair, metadata: dict[str, Any]) -> list[tuple[str, str]]:
    """Returns the distinct captions with their languages, the caption file's first.

    The metadata may hold `caption`, one text, and `captions`: texts, or texts by language.
    """
    found: dict[str, str] = {}

    def _add(text: Any, language: Any) -> None:
        if isinstance(text, bytes):
            text = _decode_text(text, "a caption")
        language = language or record.UNKNOWN_LANGUAGE
        if text is None:
            return
        if not isinstance(text, str):
            raise _PairError(
                reasons.INVALID_METADATA, f"a caption must be a text, not {type(text).__name__}"
            )
        if len(text) > _MAX_CAPTION:
            detail = f"a caption of {len(text)} characters, the limit is {_MAX_CAPTION}"
            raise _PairError(reasons.TEXT_TOO_LONG, detail)
        _check_unicode(text, "a caption")
        _check_unicode(language, "a language")
        text = normalize_text(text)
        if text and found.get(text, record.UNKNOWN_LANGUAGE) == record.UNKNOWN_LANGUAGE:
            found[text] = language

    for text, language in pair.captions or ():
        _add(text, language)
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
    given = pair.text is not None or pair.captions or captions
    if not given and metadata.get("caption") is None:
        raise _PairError(
            reasons.MISSING_TEXT, "the sample has neither a caption file nor a caption"
        )
    raise _PairError(reasons.EMPTY_TEXT, "every caption is empty or white space")


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
    where = (row.source, row.key, row.shard, repr(row.position))
    name = "\0".join(where).encode("utf-8", "surrogateescape")
    return hashlib.sha256(b"order%d\0" % config.split_seed + name).digest()


def with_unique_keys(rows: Iterable[Row], config: IngestConfig) -> list[Row]:
    """Returns rows that came with one key under keys of their own, by where they stood."""
    rows = list(rows)
    if len(rows) == 1:
        return rows
    return [replace(row, key=f"{row.key}~{order_key(row, config).hex()[:12]}") for row in rows]


def num_shards(records: int, config: IngestConfig) -> int:
    """Returns the number of shards for a split; an empty split still has one."""
    return max(1, -(-records // config.shard_records))


def shard_of(position: bytes, shards: int) -> int:
    """Returns the shard that a row with this order key belongs to."""
    return int.from_bytes(position[:8], "big") * shards >> 64


def _uniform(purpose: bytes, key: bytes, seed: int) -> float:
    digest = hashlib.sha256(purpose + b"%d\0" % seed + key).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
