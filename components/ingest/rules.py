"""Rules for one raw pair: whether it becomes a row or a rejection, and what of it is kept."""

import json
import math
from collections.abc import Container
from dataclasses import dataclass, replace
from typing import Any

from sigline.components.ingest import cells, class_labels, filters, images, reasons, remarks
from sigline.components.ingest.captions import captions_of, check_unicode, decode_text
from sigline.components.ingest.class_labels import ClassNames
from sigline.components.ingest.filters import Caption
from sigline.components.ingest.fingerprints import View
from sigline.components.ingest.options import OPTIONAL, REQUIRED, IngestConfig
from sigline.components.ingest.reasons import Refusal
from sigline.components.ingest.sources import MAX_SIDE_BYTES, Place, RawPair
from sigline.schemas import record

# Maximum length of a rejection's detail, in characters.
_MAX_DETAIL = 500


@dataclass(frozen=True)
class Rejection:
    """A pair that is not written: key, file name and position find it again in the input.

    Attributes:
        place: Where the picture is, as far as it has a place.
        other: Where that is which it is a copy of.
    """

    key: str
    shard: str
    position: Any
    reason: str
    detail: str
    place: Place | None = None
    other: Place | None = None

    def to_json(self) -> str:
        """Returns one line of the `rejected` output."""
        names = ("key", "shard", "position", "reason", "detail")
        # Keys may hold lone surrogates, which JSON's escapes preserve.
        return json.dumps({name: getattr(self, name) for name in names}, sort_keys=True)


@dataclass(frozen=True)
class Row:
    """All that is kept of a good pair except the image, which stays in its place until written.

    Attributes:
        shard: File that the pair stands in, from the input's folder: moved data keeps its order.
        position: Where it stands there.
        number: The part of the input, and which of its pairs this is; the part is negative for
            pairs of evaluation sets and of earlier examples, which are not written.
        earlier: The split of earlier examples that it is in; empty for others.
        remarks: What was left out of it, of `remarks`.
        place: Where the stored bytes of the image are; None for those of the pair, if they have no
            place of their own or are stored in another form.
    """

    key: str
    source: str
    shard: str
    position: Any
    number: tuple[int, int]
    place: Place | None
    text: tuple[str, ...]
    language: tuple[str, ...]
    width: int
    height: int
    image_sha256: bytes
    image_phash: int
    views: tuple[View, ...]
    label: tuple[int, ...]
    meta: str
    tags: tuple[str, ...] = ()
    earlier: str = ""
    remarks: tuple[str, ...] = ()

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
            tag=self.tags,
            meta=self.meta,
        )


def examine(
    pair: RawPair,
    config: IngestConfig,
    number: tuple[int, int] = (0, 0),
    classes: ClassNames | None = None,
) -> tuple[Row, bytes] | Rejection:
    """Turns a raw pair into a row and its image as it is stored, or says why it is rejected.

    Never raises on bad input.

    Args:
        pair: The pair.
        config: The configuration.
        number: The part of the input, and which of its pairs this is.
        classes: The classes of the input, if it names them.
    """
    try:
        return _row(with_optional_captions(pair, config), config, number, classes or ClassNames())
    except Refusal as error:
        return _rejection(pair, error.reason, str(error))


def with_optional_captions(pair: RawPair, config: IngestConfig) -> RawPair:
    """Returns a pair without the problem that it has no captions, where it needs none."""
    if config.captions == OPTIONAL and pair.lacks_captions:
        return replace(pair, problem=None, lacks_captions=False)
    return pair


def _rejection(pair: RawPair, reason: str, detail: str) -> Rejection:
    detail = detail[:_MAX_DETAIL]
    return Rejection(pair.key, pair.shard, pair.position, reason, detail, pair.place)


def _row(
    pair: RawPair, config: IngestConfig, number: tuple[int, int], classes: ClassNames
) -> tuple[Row, bytes]:
    if pair.problem is not None:
        raise Refusal(*pair.problem)
    check_unicode(pair.key, "the key")
    if pair.image is None:
        raise Refusal(reasons.MISSING_IMAGE, "the sample has no image")
    if number[0] < 0:
        # A good picture suffices to find the copies of a pair of an evaluation set.
        metadata, captions = _as_far_as_good(pair, config)
        left_out = []
    else:
        metadata = _metadata(pair)
        required = config.captions == REQUIRED
        captions, left_out = captions_of(pair, metadata, config.filters, required=required)
        captions = filters.kept_captions(captions, config.filters)
    image = images.check_image(
        pair.image, config.limits, config.storage, mirrored=config.duplicates.mirrored
    )
    filters.check_picture(image.views[0], config.filters)
    label, others, label_remarks = _labels(pair.label, metadata.pop("label", None), classes)
    for name in ("caption", "captions", "key", "status"):
        metadata.pop(name, None)
    try:
        extra = cells.plain(metadata | dict(pair.extra or {}))
        if others:
            # A column of the metadata may have that name already; the label then gets the next one.
            name = next(x for x in ("label", "class_label", "source_label") if x not in extra)
            extra[name] = cells.plain(others[0] if len(others) == 1 else others)
    except RecursionError:
        raise Refusal(reasons.INVALID_METADATA, "the metadata is nested too deep") from None
    texts = tuple(caption.text for caption in captions)
    extra = cells.plain(filters.scored(image.stored, texts, extra, config.filters))
    meta = json.dumps(extra, sort_keys=True, ensure_ascii=False)
    check_unicode(meta, "the metadata")
    if len(meta) > MAX_SIDE_BYTES:
        detail = f"metadata of {len(meta)} characters, the limit is {MAX_SIDE_BYTES}"
        raise Refusal(reasons.INVALID_METADATA, detail)
    row = Row(
        key=pair.key or image.sha256.hex(),
        source=pair.source,
        shard=pair.shard,
        position=pair.position,
        number=number,
        place=pair.place if image.stored is pair.image else None,
        text=texts,
        language=tuple(caption.language for caption in captions),
        width=image.width,
        height=image.height,
        image_sha256=image.sha256,
        image_phash=image.views[0].phash,
        views=image.views,
        label=label,
        meta=meta,
        remarks=(*pair.remarks, *left_out, *label_remarks),
    )
    return row, image.stored


def _labels(
    column: Any, beside: Any, classes: ClassNames
) -> tuple[tuple[int, ...], list[Any], list[str]]:
    """Returns the class ids of a pair, labels that are not known classes, and remarks on both.

    A label in a column or file of its own takes precedence over one in the metadata.
    """
    labels = [class_labels.resolve(value, classes) for value in (column, beside)]
    ids = next((label.ids for label in labels if label.ids), ())
    others = [item for label in labels for item in label.others]
    others += labels[1].ids if ids != labels[1].ids else ()
    missing = sum(label.missing for label in labels)
    notes = [remarks.LABELS_IN_META] * len(others) + [remarks.LABELS_MISSING] * missing
    return ids, others, notes


def _as_far_as_good(pair: RawPair, config: IngestConfig) -> tuple[dict[str, Any], list[Caption]]:
    """Returns captions as far as there are any, and no metadata."""
    try:
        return {}, captions_of(pair, _metadata(pair), config.filters)[0]
    except Refusal:
        return {}, []


def _metadata(pair: RawPair) -> dict[str, Any]:
    if pair.metadata is None:
        return {}
    try:
        value = cells.json_value(decode_text(pair.metadata, "metadata"))
    except (ValueError, RecursionError) as error:
        raise Refusal(reasons.INVALID_METADATA, f"metadata is no JSON: {error}") from None
    if not isinstance(value, dict):
        raise Refusal(reasons.INVALID_METADATA, "metadata is no JSON object")
    return value


def remarks_on(row: Row) -> list[str]:
    """Returns what was left out of a row or is there twice, of `remarks`."""
    further = len(row.text) - len(set(row.text))
    return [*row.remarks, *[remarks.CAPTIONS_IN_FURTHER_LANGUAGES] * further]


def rejected(row: Row, reason: str, detail: str, other: Place | None = None) -> Rejection:
    """Returns the rejection of a row."""
    detail = detail[:_MAX_DETAIL]
    return Rejection(row.key, row.shard, row.position, reason, detail, row.place, other)


# The features of a profile.
PROFILED = ("aspect", "captions", "language", "shorter side", "source", "tag", "words")


def profile(row: Row) -> list[tuple[str, str]]:
    """Returns what a pair counts for in the report: features and values, few of each."""
    captions = [("language", language) for language in row.language]
    texts = dict.fromkeys(row.text)
    captions += [("words", _range(len(text.split()))) for text in texts]
    aspect = math.log2(row.width / row.height)
    return [
        *captions,
        *(("tag", tag) for tag in row.tags),
        ("source", row.source),
        ("captions", str(len(texts))),
        ("shorter side", _range(min(row.width, row.height))),
        ("aspect", f"{2 ** (round(2 * aspect) / 2):.2f}"),
    ]


def _range(value: int) -> str:
    """Returns the powers of two that a number lies between, so that ranges sort by their length."""
    low = 2 ** (value.bit_length() - 1) if value else 0
    return f"{low}-{2 * low - 1}" if low > 1 else str(low)


def without_captions(row: Row, unwanted: Container[str]) -> Row | None:
    """Returns a row without its unwanted captions; None if none is left."""
    pairs = zip(row.text, row.language, strict=True)
    kept = [(text, tag) for text, tag in pairs if filters.caption_key(text) not in unwanted]
    if not kept:
        return None
    text, language = zip(*kept, strict=True)
    return replace(row, text=text, language=language)
