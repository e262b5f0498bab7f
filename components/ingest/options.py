"""The settings of ingest, and how they are read from JSON."""

import json
from dataclasses import dataclass, field

from sigline.components.ingest import images
from sigline.components.ingest.filters import FilterConfig
from sigline.components.ingest.sources import SourceConfig
from sigline.components.ingest.tags import TagConfig
from sigline.schemas import strict

# Whether a record must have a caption.
REQUIRED, OPTIONAL = "required", "optional"


@dataclass(frozen=True)
class DuplicateConfig:
    """What is the same picture, and what becomes of its copies.

    Attributes:
        keep: `all` keeps every pair, in one split; `best` keeps the pair with the most pixels, of
            those the one with the most captions, then with the longest, and rejects the others.
        mirrored: Whether a mirrored copy is the same picture. Not where captions tell left from
            right.
        captions: Whether a pair is rejected too whose caption is one of the evaluation's. Not where
            captions are made of few words.
    """

    keep: str = "all"
    mirrored: bool = False
    captions: bool = False

    def __post_init__(self) -> None:
        if self.keep not in ("all", "best"):
            raise ValueError(f"duplicates.keep must be all or best. Received: {self.keep!r}")


@dataclass(frozen=True)
class IngestConfig:
    """What ingest does with its input.

    Attributes:
        eval_share: Share of the groups of duplicates that goes to the eval split.
        eval_sources: Sources that go to the eval split whole, such as held-out data. Pairs of other
            sources with one of their pictures are rejected.
        eval_sets: Further inputs, in any format, that are evaluated on: no pair with one of their
            pictures is written.
        earlier: Folders of examples that were written before, such as of earlier spans: what shows
            one of their pictures goes to the split that picture is in.
        shard_records: Aim for the number of records per output shard; it becomes less where the
            number of shards is rounded up to suit the lanes of training.
        split_seed: Changes the split and the order of records.
        captions: Whether a record must have a caption: `required`; or `optional`, for models of
            images alone. A picture whose captions are all refused is rejected either way.
        source: How the files are read.
        limits: Bounds on images.
        storage: How images are stored.
        duplicates: What is the same picture, and what becomes of its copies.
        filters: Which captions and pairs are left out.
        tags: Which tags records get.
    """

    eval_share: float = 0.1
    eval_sources: tuple[str, ...] = ()
    eval_sets: tuple[str, ...] = ()
    earlier: tuple[str, ...] = ()
    shard_records: int = 512
    split_seed: int = 0
    captions: str = REQUIRED
    source: SourceConfig = field(default_factory=SourceConfig)
    limits: images.ImageLimits = field(default_factory=images.ImageLimits)
    storage: images.ImageStorage = field(default_factory=images.ImageStorage)
    duplicates: DuplicateConfig = field(default_factory=DuplicateConfig)
    filters: FilterConfig = field(default_factory=FilterConfig)
    tags: TagConfig = field(default_factory=TagConfig)

    def __post_init__(self) -> None:
        if not 0 < self.eval_share < 1:
            raise ValueError(
                f"eval_share must be between 0 and 1. Received: eval_share={self.eval_share}"
            )
        if self.shard_records < 1:
            raise ValueError(
                f"shard_records must be at least 1. Received: shard_records={self.shard_records}"
            )
        if self.captions not in (REQUIRED, OPTIONAL):
            raise ValueError(
                f"captions must be {REQUIRED}, or {OPTIONAL} to keep pictures without one. "
                f"Received: captions={self.captions!r}"
            )


def config_from_json(text: str) -> IngestConfig:
    """Reads an `IngestConfig` from the JSON of its fields; a list of texts may be one text.

    Raises:
        ValueError: If a field is unknown or a value is of a wrong type or out of range.
    """
    return strict.build(IngestConfig, json.loads(text), "ingest.", text_as_list=True)
