"""An embedded corpus: Parquet files of keys, captions and embeddings, and their manifest."""

import io
import json
import posixpath
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from sigline.components.shared.upright import upright
from sigline.schemas import digests, retrieval, signatures

MANIFEST_FILE = "corpus.json"
TEXT = "text"
THUMBNAIL = "thumbnail"
THUMBNAIL_SIZE = 160
# Increases whenever the format changes, so that older files are rejected.
FORMAT = "embedded-corpus-1"
# Small row groups, so that reading one picture does not read many others.
ROW_GROUP = 64


@dataclass(frozen=True)
class Row:
    """An embedded image.

    Attributes:
        key: The record's key.
        source: The record's source.
        text: Its captions, if it has any.
        embedding: Unit vector, shape `(dim,)`.
        thumbnail: A small JPEG of it; None where none was asked for.
    """

    key: str
    source: str
    text: tuple[str, ...]
    embedding: np.ndarray
    thumbnail: bytes | None


@dataclass(frozen=True)
class Corpus:
    """The content of an embedded corpus's manifest.

    Attributes:
        model_digest: Digest of the model that embedded it.
        dim: Size of the embeddings.
        shards: Records, unreadable images' names and digest of each Parquet file, by name, in the
            order of the rows.
    """

    model_digest: str
    dim: int
    shards: Mapping[str, Mapping[str, Any]]

    @property
    def digest(self) -> str:
        """A digest of the whole corpus."""
        return digests.json_digest([self.model_digest, self.dim, dict(self.shards)])

    @property
    def records(self) -> int:
        """How many images it holds."""
        return sum(shard["records"] for shard in self.shards.values())

    @property
    def unreadable(self) -> list[str]:
        """Names of records whose image the model could not decode."""
        return [name for shard in self.shards.values() for name in shard["unreadable"]]

    def to_json(self) -> str:
        """Returns the manifest."""
        content = {
            "format": FORMAT,
            retrieval.MODEL_DIGEST: self.model_digest,
            "dim": self.dim,
            "shards": self.shards,
        }
        return json.dumps(content, indent=1, sort_keys=True)


def parse(manifest: str) -> Corpus:
    """Reads the manifest of an embedded corpus.

    Raises:
        ValueError: If it is of another version, or names files elsewhere.
    """
    content = json.loads(manifest)
    if content.get("format") != FORMAT:
        raise ValueError(
            "The corpus is not of this version; embed it again. "
            f"Received: format={content.get('format')!r}"
        )
    shards = content["shards"]
    # Names in the manifest are not trusted: they must not lead out of the folder.
    for name in shards:
        if posixpath.basename(name) != name:
            raise ValueError(f"The manifest must name files of its folder. Received: {name!r}")
    return Corpus(content[retrieval.MODEL_DIGEST], content["dim"], dict(sorted(shards.items())))


def joined(model_digest: str, dim: int, parts: Sequence[Corpus]) -> Corpus:
    """Returns several corpora of one model as one."""
    shards = {
        f"{number}/{name}": shard
        for number, part in enumerate(parts)
        for name, shard in part.shards.items()
    }
    return Corpus(model_digest, dim, shards)


def table(content: bytes, name: str, shard: Mapping[str, Any]) -> pa.Table:
    """Returns the rows of a file.

    Args:
        content: The file's bytes.
        name: Its name.
        shard: What the manifest says of it.

    Raises:
        ValueError: If it is not the file that the manifest names.
    """
    digest = digests.stream_digest(io.BytesIO(content))
    if digest != shard["sha256"]:
        raise ValueError(
            f"{name} is not the file that the manifest names; embed the corpus again. "
            f"Received: sha256={digest}, expected {shard['sha256']}"
        )
    return pq.read_table(pa.BufferReader(content))


def encode(rows: Sequence[Row], dim: int) -> bytes:
    """Returns rows as a Parquet file, byte for byte the same for equal rows."""
    vectors = np.concatenate([np.empty(0, np.float32), *(row.embedding for row in rows)])
    table = pa.table(
        {
            retrieval.KEY: pa.array([row.key for row in rows], pa.string()),
            retrieval.SOURCE: pa.array([row.source for row in rows], pa.string()),
            TEXT: pa.array([list(row.text) for row in rows], pa.list_(pa.string())),
            retrieval.EMBEDDING: pa.FixedSizeListArray.from_arrays(
                pa.array(vectors, pa.float32()), dim
            ),
            THUMBNAIL: pa.array([row.thumbnail for row in rows], pa.binary()),
        }
    )
    buffer = io.BytesIO()
    pq.write_table(table, buffer, row_group_size=ROW_GROUP, compression="zstd")
    return buffer.getvalue()


def vectors(table: pa.Table) -> np.ndarray:
    """Returns the embeddings of a table, shape `(rows, dim)`, float32."""
    column = table.column(retrieval.EMBEDDING).combine_chunks()
    return column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), -1)


def thumbnail(encoded: bytes) -> bytes:
    """Returns a small JPEG of an image that ingest has let through."""
    with Image.open(io.BytesIO(encoded)) as image:
        # Lets libjpeg decode a JPEG at a reduced scale, which is faster.
        image.draft("RGB", (THUMBNAIL_SIZE, THUMBNAIL_SIZE))
        image = upright(image)
        image.thumbnail((THUMBNAIL_SIZE, THUMBNAIL_SIZE))
        shown = Image.new("RGB", image.size, "white")
        rgba = image.convert("RGBA")
        shown.paste(rgba, mask=rgba.getchannel("A"))
    buffer = io.BytesIO()
    shown.save(buffer, "JPEG", quality=80)
    return buffer.getvalue()


def describe(metadata: Mapping[str, Any]) -> tuple[str, int]:
    """Returns the digest of a model and the size of its embeddings, from its metadata.

    Raises:
        ValueError: If the model does not say them.
    """
    try:
        return metadata[retrieval.MODEL_DIGEST], metadata["embedding_dim"]
    except KeyError as error:
        raise ValueError(
            f"The model's {signatures.METADATA_FILE} has no {error}; export it again. "
            f"Received: {', '.join(sorted(metadata)) or 'nothing'}"
        ) from error
