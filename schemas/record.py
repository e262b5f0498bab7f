"""The image-text record: feature names, the value type and its validity rules."""

from dataclasses import dataclass, field

KEY = "key"
IMAGE = "image"
TEXT = "text"
LANGUAGE = "language"
SOURCE = "source"
WIDTH = "width"
HEIGHT = "height"
IMAGE_SHA256 = "image_sha256"
IMAGE_PHASH = "image_phash"
LABEL = "label"
TAG = "tag"
META = "meta"
# The feature in place of `image` where a frozen tower has embedded it.
IMAGE_EMBEDDING = "image_embedding"

TRAIN_SPLIT = "train"
EVAL_SPLIT = "eval"
SPLITS = (TRAIN_SPLIT, EVAL_SPLIT)

UNKNOWN_LANGUAGE = "und"

# Files that ingest writes beside the splits of the examples artifact.
MANIFEST_FILE = "manifest.json"
CLASSES_FILE = "classes.json"
TAGS_FILE = "tags.json"
# Keys of the manifest: shards by split, and the tower that embedded the images, if one did.
MANIFEST_SPLITS = "splits"
MANIFEST_EMBEDDINGS = "embeddings"
# Key of a shard's size in the manifest; manifests of earlier versions have none.
SHARD_BYTES = "bytes"
# Default number of lanes in which training reads a split. Ingest writes as many shards, or a
# multiple or divisor of it, so that lanes share as few shards as possible.
LANES = 16
# Where captions are optional: among the counts of ingest, how many records have none.
WITHOUT_CAPTIONS = "without_captions"


@dataclass(frozen=True)
class ImageTextRecord:
    """One image with its captions, if it has any.

    Attributes:
        key: Stable id: the source's key, else the SHA-256 of the image bytes in hex.
        image: JPEG or PNG bytes.
        text: Captions, normalised to NFC; empty for a picture without one. One that reads the same
            in several languages is there once for each of them.
        language: BCP-47 tag of each caption, `und` where unknown; as long as `text`.
        source: Data set or shard family that the pair came from.
        width: Width of the stored image in pixels.
        height: Height of the stored image in pixels.
        image_sha256: SHA-256 of `image`, 32 bytes.
        image_phash: Perceptual hash of the image, a signed 64-bit integer.
        label: Class ids where the source is labelled; empty otherwise.
        tag: Things that the captions name, if ingest was configured to find them; else empty.
        meta: JSON text of the source's other fields.
    """

    key: str
    image: bytes
    text: tuple[str, ...]
    language: tuple[str, ...]
    source: str
    width: int
    height: int
    image_sha256: bytes
    image_phash: int
    label: tuple[int, ...] = ()
    tag: tuple[str, ...] = ()
    meta: str = field(default="{}")

    def __post_init__(self) -> None:
        if len(self.language) != len(self.text):
            raise ValueError(
                "language must hold one tag per caption. Received: "
                f"len(language)={len(self.language)}, len(text)={len(self.text)}, key={self.key!r}"
            )
