"""An index of images: names of its signatures, tensors and files.

An index holds the digest of the model that embedded it, and is of use with no other.
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
# Temperature and bias of the sigmoid that makes a probability of a cosine.
TEMPERATURE, BIAS = "temperature", "bias"

# Kinds of index.
EXACT = "exact"
FAISS = "faiss"
KINDS = (EXACT, FAISS)

# Files below `assets.extra`: what the index says of itself, and its images in the order of rows.
INDEX_FILE = "sigline_index.json"
GALLERY_FILE = "gallery.parquet"
# Beside them, in place of a SavedModel.
FAISS_FILE = "index.faiss"

# Name that an index is served under, unless another one is given.
DEFAULT_NAME = "sigline-index"


@dataclass(frozen=True)
class Match:
    """An image that was found.

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
