"""A split as a model sees it: embeddings, and what is known of the records they belong to."""

import itertools
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors import numpy as safetensors

from sigline.schemas.record import ImageTextRecord

# Changes with what is written below, so that older files are not read.
FORMAT = "embedded-split-1"
# What a source may say of a record besides, in its metadata.
_NEGATIVES, _GROUP = "negatives", "group"
_SHOWN = 5


@dataclass(frozen=True)
class EvalRecord:
    """What evaluation knows of one record besides its embeddings; fields as in the record.

    Attributes:
        negative: Captions that nearly fit, and do not: `negatives` of the metadata.
        group: Two records of the same group have the same words or things, put together otherwise:
            `group` of the metadata; empty where there is none.
    """

    key: str
    source: str
    label: tuple[int, ...]
    text: tuple[str, ...]
    language: tuple[str, ...]
    width: int
    height: int
    image_sha256: str
    negative: tuple[str, ...] = ()
    group: str = ""

    @classmethod
    def of(cls, record: ImageTextRecord) -> "EvalRecord":
        """Returns what is kept of a record."""
        meta = _metadata(record.meta)
        negatives = meta.get(_NEGATIVES)
        return cls(
            key=record.key,
            source=record.source,
            label=tuple(record.label),
            text=tuple(record.text),
            language=tuple(record.language),
            width=record.width,
            height=record.height,
            image_sha256=record.image_sha256.hex(),
            negative=tuple(map(str, negatives)) if isinstance(negatives, list) else (),
            group=str(meta.get(_GROUP, "")),
        )

    @property
    def unit(self) -> str:
        """A name that no other record of the split has."""
        return f"{self.source}/{self.key}"


@dataclass(frozen=True)
class EmbeddedSplit:
    """Records with their embeddings.

    Attributes:
        records: The records.
        image: Their image embeddings, shape `(records, dim)`, float32.
        text: The embeddings of their captions, one after another, shape `(captions, dim)`, float32.
        negative: As `text`, of their captions that do not fit.
        unreadable: Units whose image could not be decoded, and that are left out of the above.
    """

    records: tuple[EvalRecord, ...]
    image: np.ndarray
    text: np.ndarray
    negative: np.ndarray
    unreadable: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        wanted = len(self.records), int(self.text_starts[-1]), int(self.negative_starts[-1])
        given = len(self.image), len(self.text), len(self.negative)
        if wanted != given:
            raise ValueError(
                "There must be embeddings of each image, caption and caption that does not fit. "
                f"Received: {given}, for {wanted}"
            )

    @property
    def units(self) -> tuple[str, ...]:
        """Names of the records."""
        return tuple(record.unit for record in self.records)

    @property
    def text_starts(self) -> np.ndarray:
        """Where the captions of each record start, shape `(records + 1,)`."""
        return np.cumsum([0, *(len(record.text) for record in self.records)])

    @property
    def negative_starts(self) -> np.ndarray:
        """As `text_starts`, of captions that do not fit."""
        return np.cumsum([0, *(len(record.negative) for record in self.records)])

    def only(self, positions: Sequence[int] | np.ndarray) -> "EmbeddedSplit":
        """Returns some of the records, in the order of their positions."""

        def rows(starts: np.ndarray) -> np.ndarray:
            found = [np.arange(starts[i], starts[i + 1]) for i in positions]
            return np.concatenate([np.empty(0, np.int64), *found])

        return EmbeddedSplit(
            tuple(self.records[i] for i in positions),
            self.image[np.asarray(positions, np.int64)],
            self.text[rows(self.text_starts)],
            self.negative[rows(self.negative_starts)],
            self.unreadable,
        )

    def problems(self) -> list[str]:
        """Returns a sentence for each thing that makes metrics of these embeddings worthless."""
        starts = self.text_starts
        text: Any = ~np.isfinite(self.text).all(axis=1)
        broken = {
            "image": ~np.isfinite(self.image).all(axis=1),
            "text": np.array([text[a:b].any() for a, b in itertools.pairwise(starts)], bool),
        }
        found = [
            f"{np.count_nonzero(rows)} of {len(rows)} records have {name} embeddings that are not "
            f"finite: {_shown([self.records[i].unit for i in np.flatnonzero(rows)])}"
            for name, rows in broken.items()
            if rows.any()
        ]
        if self.unreadable:
            found.append(
                f"{len(self.unreadable)} images could not be decoded by the model: "
                f"{_shown(self.unreadable)}"
            )
        return found


def _metadata(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        # It is the source's; without it the record lacks negatives and a group, no more.
        return {}
    return found if isinstance(found, dict) else {}


def _shown(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def merge(parts: Iterable[EmbeddedSplit]) -> EmbeddedSplit:
    """Returns the parts as one, sorted by unit, whatever the order of the parts.

    Raises:
        ValueError: If there is no record, readable or not, or two have the same name.
    """
    parts = list(parts)
    records = [record for part in parts for record in part.records]
    if not records and not any(part.unreadable for part in parts):
        raise ValueError("The eval split holds no records: there is nothing to judge the model by.")
    whole = EmbeddedSplit(
        tuple(records),
        np.concatenate([part.image for part in parts]),
        np.concatenate([part.text for part in parts]),
        np.concatenate([part.negative for part in parts]),
        tuple(sorted(unit for part in parts for unit in part.unreadable)),
    )
    order = sorted(range(len(records)), key=lambda i: records[i].unit)
    for one, other in itertools.pairwise(records[i].unit for i in order):
        if one == other:
            raise ValueError(f"Two records have the same key. Received: {one}")
    return whole.only(order)


def encode(split: EmbeddedSplit) -> bytes:
    """Serializes a split, byte for byte the same for equal splits."""
    about = {
        "format": FORMAT,
        "records": json.dumps([asdict(record) for record in split.records]),
        "unreadable": json.dumps(split.unreadable),
    }
    arrays = {
        "image": np.ascontiguousarray(split.image, np.float32),
        "text": np.ascontiguousarray(split.text, np.float32),
        "negative": np.ascontiguousarray(split.negative, np.float32),
        # safetensors sorts tensors, but keeps its notes in no order.
        "about": np.frombuffer(json.dumps(about, sort_keys=True).encode(), np.uint8),
    }
    return safetensors.save(arrays)


def decode(content: bytes) -> EmbeddedSplit:
    """Reads what `encode` wrote.

    Raises:
        ValueError: If it is something else, or damaged.
    """
    try:
        arrays = safetensors.load(content)
        about = json.loads(arrays["about"].tobytes())
        records = json.loads(about["records"])
        if about["format"] != FORMAT:
            raise ValueError(f"format is {about['format']!r}")
        return EmbeddedSplit(
            tuple(_record(item) for item in records),
            arrays["image"],
            arrays["text"],
            arrays["negative"],
            tuple(json.loads(about["unreadable"])),
        )
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"These are no embeddings of this version: {error}") from None


def _record(item: dict[str, Any]) -> EvalRecord:
    values: Any = {
        name: tuple(value) if isinstance(value, list) else value for name, value in item.items()
    }
    return EvalRecord(**values)
