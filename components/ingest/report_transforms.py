"""Beam transforms of the report: what the pairs are like, and some of them to look at."""

import base64
import hashlib
import io
from collections.abc import Iterable
from typing import Any

import apache_beam as beam

from sigline.components.ingest import images, rules
from sigline.components.ingest.sources import Place, is_no_file, unicode_text
from sigline.components.shared.files import BeamFiles
from sigline.components.shared.upright import upright

# Sample pairs in the report, per split and per reason of rejection.
_SAMPLES = 12
# Number of the most frequent values of a feature that are counted.
_FREQUENT = 200
_SIDE = 112
_QUALITY = 80


class Profile(beam.PTransform):
    """From `(split, row)` to numbers of pairs by split, feature and its most frequent values."""

    def expand(self, rows):
        """Returns a collection of one dictionary: `{split: {feature: {value: number}}}`."""
        return (
            rows
            | "Values" >> beam.FlatMapTuple(_values)
            | "CountValues" >> beam.combiners.Count.PerElement()
            | "OfFeature" >> beam.MapTuple(lambda name, number: (name[:2], (number, name[2])))
            | "Frequent" >> beam.combiners.Top.PerKey(_FREQUENT)
            | "AllValues" >> beam.combiners.ToList()
            | "Nest" >> beam.Map(_nested)
        )


def _values(split: str, row: rules.Row):
    for feature, value in rules.profile(row):
        yield split, feature, unicode_text(value)


def _nested(items: Iterable[tuple[tuple[str, str], list[tuple[int, str]]]]) -> dict[str, Any]:
    by_split: dict[str, dict[str, dict[str, int]]] = {}
    for (split, feature), numbers in sorted(items):
        by_split.setdefault(split, {})[feature] = {value: number for number, value in numbers}
    return by_split


class Samples(beam.PTransform):
    """From kept pairs and rejections to some of each, with small pictures.

    Takes `{"kept": (split, row), "rejected": (number, rejection)}`. Which are taken is a function
    of the pairs alone.
    """

    def expand(self, collections):
        """Returns a collection of one dictionary: lists by split or reason."""
        kept = collections["kept"] | "KeptSample" >> beam.MapTuple(_of_row)
        rejected = collections["rejected"] | "RejectedSample" >> beam.MapTuple(_of_rejection)
        return (
            (kept, rejected)
            | "BothSamples" >> beam.Flatten()
            | "FewSamples"
            >> beam.combiners.Top.SmallestPerKey(_SAMPLES, key=lambda sample: sample[0])
            | "DrawSamples" >> beam.MapTuple(_drawn)
            | "AllSamples" >> beam.combiners.ToDict()
        )


def _of_row(split: str, row: rules.Row):
    content = {
        "key": unicode_text(row.key),
        "source": unicode_text(row.source),
        "text": list(dict.fromkeys(row.text)),
    }
    return split, (_order(row.shard, row.position), content, row.place, None)


def _of_rejection(_: tuple[int, int], rejection: rules.Rejection):
    content = {
        "key": unicode_text(rejection.key),
        "shard": unicode_text(rejection.shard),
        "position": rejection.position,
        "detail": unicode_text(rejection.detail),
    }
    order = _order(rejection.shard, rejection.position)
    return rejection.reason, (order, content, rejection.place, rejection.other)


def _order(shard: str, position: Any) -> bytes:
    name = f"{shard}\0{position!r}".encode("utf-8", "surrogateescape")
    return hashlib.sha256(name).digest()


def _drawn(name: str, samples: list) -> tuple[str, list[dict[str, Any]]]:
    return name, [
        content | {"image": _picture(place), "other": _picture(other)}
        for _, content, place, other in samples
    ]


def _picture(place: Place | None) -> str | None:
    """Returns a small JPEG in base 64; None where there is no picture to show."""
    from PIL import Image

    limits = images.ImageLimits()
    if place is None or place.size > limits.max_bytes:
        return None
    try:
        with BeamFiles().open(place.path) as handle:
            handle.seek(place.offset)
            content = io.BytesIO(handle.read(place.size))
        image = Image.open(content, formats=images.ACCEPTED_FORMATS)
        # A small preview does not justify decoding a very large picture.
        if image.width * image.height > limits.max_pixels:
            return None
        image.draft("RGB", (_SIDE, _SIDE))
        image = upright(image)
        image = images.compose_on_white(image) if image.has_transparency_data else image
        image = image.convert("RGB")
        image.thumbnail((_SIDE, _SIDE))
    except OSError as error:
        if is_no_file(error) or not error.errno:
            return None
        raise
    except Exception:  # Rejected images may be hostile, and a decoder may raise anything.
        return None
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=_QUALITY)
    return base64.b64encode(buffer.getvalue()).decode()
