"""An index of images: names of its signatures, tensors and files.

An index holds the digest of the model that embedded it, and works with that model only.
"""

from dataclasses import dataclass

RETRIEVE = "retrieve"
RETRIEVE_TEXT = "retrieve_text"
RETRIEVE_IMAGE = "retrieve_image"

EMBEDDING = "embedding"
MODEL_DIGEST = "model_digest"
KEY = "key"
SOURCE = "source"
SCORE = "score"
ROW = "row"
# Temperature and bias of the sigmoid that turns a cosine into a probability.
TEMPERATURE, BIAS = "temperature", "bias"

# Kinds of index.
EXACT = "exact"
FAISS = "faiss"
KINDS = (EXACT, FAISS)

# Files below `assets.extra`: the description of the index, and its images in the order of rows.
INDEX_FILE = "sigline_index.json"
GALLERY_FILE = "gallery.parquet"
# The index of the kind `faiss`, which has this file instead of a SavedModel.
FAISS_FILE = "index.faiss"

# Name that an index is served under, unless another one is given.
DEFAULT_NAME = "sigline-index"


@dataclass(frozen=True)
class Match:
    """An image that matches a query.

    Attributes:
        key: The record's key.
        source: The record's source.
        score: Cosine of its embedding and the query's.
        row: Its row in the index.
        text: Its captions, where they are known.
    """

    key: str
    source: str
    score: float
    row: int
    text: tuple[str, ...] = ()
