"""What an index is to be."""

import json
from dataclasses import asdict, dataclass

from sigline.schemas import record, retrieval

# Number of results per query that recall is measured over.
RECALL_AT = 10


@dataclass(frozen=True)
class IndexConfig:
    """What an index is.

    Attributes:
        kind: `exact`, a SavedModel for any TF Serving; or `faiss`, for millions of images, which
            sigline alone reads.
        top: Most rows that a query of an exact index is answered with.
        min_recall: Least share of the ten best images for a text, by exact comparison, that the
            index must find; else it is not built.
        splits: Splits of the examples that are in it.
        thumbnails: Whether it keeps small pictures of the images.
    """

    kind: str = retrieval.EXACT
    top: int = 100
    min_recall: float = 0.95
    splits: tuple[str, ...] = record.SPLITS
    thumbnails: bool = True

    def __post_init__(self) -> None:
        if self.kind not in retrieval.KINDS:
            raise ValueError(
                f"kind must be one of {', '.join(retrieval.KINDS)}. Received: kind={self.kind!r}"
            )
        if self.top < RECALL_AT:
            raise ValueError(f"top must be at least {RECALL_AT}. Received: top={self.top}")
        if not 0 < self.min_recall <= 1:
            raise ValueError(
                f"min_recall must be above 0 and at most 1. Received: min_recall={self.min_recall}"
            )
        if not self.splits:
            raise ValueError(f"splits must name at least one. Received: splits={self.splits}")

    def to_json(self) -> str:
        """Returns the configuration as JSON."""
        return json.dumps(asdict(self), sort_keys=True)
