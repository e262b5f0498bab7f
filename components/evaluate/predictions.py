"""A model's predictions for the records of a split: embeddings, logits, and the records."""

import itertools
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors import numpy as safetensors

from sigline.schemas.record import ImageTextRecord

# Increases whenever the format changes, so that older files are rejected.
FORMAT = "predictions-1"
# Optional keys of a record's metadata.
_NEGATIVES, _GROUP = "negatives", "group"
_ARRAYS = ("image", "text", "negative", "class_logits")
_SHOWN = 5


@dataclass(frozen=True)
class EvalRecord:
    """The part of a record that evaluation needs; fields are as in the record.

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
class Predictions:
    """A model's predictions for records, as far as the model can make them.

    Attributes:
        records: The records.
        image: Their image embeddings, shape `(records, dim)`, float32.
        text: The embeddings of their captions, one after another, shape `(captions, dim)`, float32;
            None of a model that reads no texts.
        negative: As `text`, of their captions that do not fit.
        unreadable: Units whose image could not be decoded, and that are left out of the above.
        class_logits: Logits of the model's head, shape `(records, classes)`, float32; None of a
            model without one.
    """

    records: tuple[EvalRecord, ...]
    image: np.ndarray
    text: np.ndarray | None
    negative: np.ndarray | None
    unreadable: tuple[str, ...] = ()
    class_logits: np.ndarray | None = None

    def __post_init__(self) -> None:
        counts = {
            "image": len(self.records),
            "text": int(self.text_starts[-1]),
            "negative": int(self.negative_starts[-1]),
            "class_logits": len(self.records),
        }
        for name, count in counts.items():
            rows = getattr(self, name)
            if rows is not None and len(rows) != count:
                raise ValueError(
                    "There must be a prediction for each image, caption and caption that does not "
                    f"fit. Received: {len(rows)} rows of {name}, for {count}"
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
        """As `text_starts`, for negative captions."""
        return np.cumsum([0, *(len(record.negative) for record in self.records)])

    def only(self, positions: Sequence[int] | np.ndarray) -> "Predictions":
        """Returns some of the records, in the order of their positions."""

        def rows(starts: np.ndarray) -> np.ndarray:
            ranges = [np.arange(starts[i], starts[i + 1]) for i in positions]
            return np.concatenate([np.empty(0, np.int64), *ranges])

        return Predictions(
            tuple(self.records[i] for i in positions),
            self.image[np.asarray(positions, np.int64)],
            None if self.text is None else self.text[rows(self.text_starts)],
            None if self.negative is None else self.negative[rows(self.negative_starts)],
            self.unreadable,
            None
            if self.class_logits is None
            else self.class_logits[np.asarray(positions, np.int64)],
        )

    def captioned(self) -> "Predictions":
        """Returns the records that have a caption; all of them, if all have."""
        positions = [i for i, record in enumerate(self.records) if record.text]
        return self if len(positions) == len(self.records) else self.only(positions)

    def problems(self) -> list[str]:
        """Returns a sentence for each thing that makes metrics of these embeddings worthless."""
        starts = self.text_starts
        broken: dict[str, Any] = {"image embeddings": ~np.isfinite(self.image).all(axis=1)}
        if self.text is not None:
            text: Any = ~np.isfinite(self.text).all(axis=1)
            rows = [text[a:b].any() for a, b in itertools.pairwise(starts)]
            broken["text embeddings"] = np.array(rows, bool)
        if self.class_logits is not None:
            broken["class logits"] = ~np.isfinite(self.class_logits).all(axis=1)
        sentences = [
            f"{np.count_nonzero(rows)} of {len(rows)} records have {name} that are not "
            f"finite: {_shown([self.records[i].unit for i in np.flatnonzero(rows)])}"
            for name, rows in broken.items()
            if rows.any()
        ]
        if self.unreadable:
            sentences.append(
                f"{len(self.unreadable)} images could not be decoded by the model: "
                f"{_shown(self.unreadable)}"
            )
        return sentences


def _metadata(text: str) -> dict[str, Any]:
    try:
        metadata = json.loads(text)
    except ValueError:
        # Sources may write anything here; the record then only lacks negatives and a group.
        return {}
    return metadata if isinstance(metadata, dict) else {}


def _shown(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def merge(parts: Iterable[Predictions]) -> Predictions:
    """Returns the parts as one, sorted by unit, whatever the order of the parts.

    Raises:
        ValueError: If there is no record, readable or not, or two have the same name.
    """
    parts = list(parts)
    records = [record for part in parts for record in part.records]
    if not records and not any(part.unreadable for part in parts):
        raise ValueError(
            "The eval split holds no records: there is nothing to judge the model by. "
            f"Received: {len(parts)} parts without records"
        )
    whole = Predictions(
        tuple(records),
        np.concatenate([part.image for part in parts]),
        joined([part.text for part in parts]),
        joined([part.negative for part in parts]),
        tuple(sorted(unit for part in parts for unit in part.unreadable)),
        joined([part.class_logits for part in parts]),
    )
    order = sorted(range(len(records)), key=lambda i: records[i].unit)
    for one, other in itertools.pairwise(records[i].unit for i in order):
        if one == other:
            raise ValueError(f"Two records have the same key. Received: {one}")
    return whole.only(order)


def joined(parts: Sequence[np.ndarray | None]) -> np.ndarray | None:
    """Returns rows of one model as one array; None where the model has none."""
    there = [part for part in parts if part is not None]
    return np.concatenate(there) if there else None


def encode(split: Predictions) -> bytes:
    """Serializes a split, byte for byte the same for equal splits."""
    about = {
        "format": FORMAT,
        "records": json.dumps([asdict(record) for record in split.records]),
        "unreadable": json.dumps(split.unreadable),
    }
    rows = {name: getattr(split, name) for name in _ARRAYS}
    arrays = {
        **{n: np.ascontiguousarray(x, np.float32) for n, x in rows.items() if x is not None},
        # A tensor instead of safetensors' metadata, whose order varies between runs.
        "about": np.frombuffer(json.dumps(about, sort_keys=True).encode(), np.uint8),
    }
    return safetensors.save(arrays)


def decode(content: bytes) -> Predictions:
    """Reads what `encode` wrote.

    Raises:
        ValueError: If it is something else, or damaged.
    """
    try:
        arrays = safetensors.load(content)
        about = json.loads(arrays["about"].tobytes())
        records = json.loads(about["records"])
        if about["format"] != FORMAT:
            raise ValueError(f"format must be {FORMAT!r}. Received: format={about['format']!r}")
        return Predictions(
            tuple(_record(item) for item in records),
            arrays["image"],
            arrays.get("text"),
            arrays.get("negative"),
            tuple(json.loads(about["unreadable"])),
            arrays.get("class_logits"),
        )
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"These are no predictions of this version: {error}") from None


def _record(item: dict[str, Any]) -> EvalRecord:
    values: Any = {
        name: tuple(value) if isinstance(value, list) else value for name, value in item.items()
    }
    return EvalRecord(**values)
