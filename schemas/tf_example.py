"""Encodes and parses the image-text record as `tf.Example`; reads and writes TFRecord shards.

The one module of `schemas` that needs TensorFlow.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import tensorflow as tf
from google.protobuf.message import DecodeError

from sigline.schemas import record

COMPRESSION = "GZIP"
# Images are compressed already: compressing them again saves next to nothing, and undoing it would
# take a fifth of the time of reading a photo.
_LEVEL = 0


def encode(value: record.ImageTextRecord) -> bytes:
    """Serializes a record as a `tf.Example`, byte for byte the same for equal records.

    Every feature is present; one without values, such as missing captions, is an empty list.
    """

    def _bytes(*items: bytes | str) -> tf.train.Feature:
        encoded = [item.encode() if isinstance(item, str) else item for item in items]
        return tf.train.Feature(bytes_list=tf.train.BytesList(value=encoded))

    def _int64(*items: int) -> tf.train.Feature:
        return tf.train.Feature(int64_list=tf.train.Int64List(value=items))

    features = {
        record.KEY: _bytes(value.key),
        record.IMAGE: _bytes(value.image),
        record.TEXT: _bytes(*value.text),
        record.LANGUAGE: _bytes(*value.language),
        record.SOURCE: _bytes(value.source),
        record.WIDTH: _int64(value.width),
        record.HEIGHT: _int64(value.height),
        record.IMAGE_SHA256: _bytes(value.image_sha256),
        record.IMAGE_PHASH: _int64(value.image_phash),
        record.LABEL: _int64(*value.label),
        record.TAG: _bytes(*value.tag),
        record.META: _bytes(value.meta),
    }
    example = tf.train.Example(features=tf.train.Features(feature=features))
    return example.SerializeToString(deterministic=True)


def with_embedding(serialized: bytes, embedding: Iterable[float]) -> bytes:
    """Returns a serialized record with an embedding in place of its image."""
    example = tf.train.Example.FromString(serialized)
    del example.features.feature[record.IMAGE]
    value = tf.train.FloatList(value=embedding)
    example.features.feature[record.IMAGE_EMBEDDING].CopyFrom(tf.train.Feature(float_list=value))
    return example.SerializeToString(deterministic=True)


def decode(serialized: bytes) -> record.ImageTextRecord:
    """Parses one serialized record outside a graph; the inverse of `encode`.

    Captions, languages, labels and tags may be absent, which is read as an empty list.
    """
    feature = tf.train.Example.FromString(serialized).features.feature

    def _one(name: str) -> bytes:
        return feature[name].bytes_list.value[0]

    return record.ImageTextRecord(
        key=_one(record.KEY).decode(),
        image=_one(record.IMAGE),
        text=tuple(item.decode() for item in feature[record.TEXT].bytes_list.value),
        language=tuple(item.decode() for item in feature[record.LANGUAGE].bytes_list.value),
        source=_one(record.SOURCE).decode(),
        width=feature[record.WIDTH].int64_list.value[0],
        height=feature[record.HEIGHT].int64_list.value[0],
        image_sha256=_one(record.IMAGE_SHA256),
        image_phash=feature[record.IMAGE_PHASH].int64_list.value[0],
        label=tuple(feature[record.LABEL].int64_list.value),
        tag=tuple(item.decode() for item in feature[record.TAG].bytes_list.value),
        meta=_one(record.META).decode(),
    )


def features(serialized: bytes) -> dict[str, list]:
    """Returns the values of any serialized `tf.Example` by the names of its features.

    Raises:
        ValueError: If the bytes are not a `tf.Example`.
    """
    try:
        message = tf.train.Example.FromString(serialized)
    except DecodeError as error:
        raise ValueError(f"The bytes must be a tf.Example. Received: {error}") from None
    return {
        name: list(getattr(feature, kind).value) if (kind := feature.WhichOneof("kind")) else []
        for name, feature in message.features.feature.items()
    }


def key(serialized: bytes) -> str:
    """Returns the key of a serialized record."""
    feature = tf.train.Example.FromString(serialized).features.feature
    return feature[record.KEY].bytes_list.value[0].decode()


def parse(serialized: tf.Tensor, *, embedding_dim: int | None = None) -> dict[str, tf.Tensor]:
    """Parses the features of a record that training reads, inside a graph.

    Args:
        serialized: A scalar string tensor.
        embedding_dim: Width of the embedding that replaces the image; None for an image.

    Returns:
        `text`, the captions, a string tensor of shape `(captions,)`, which is `(0,)` without any;
        `label`, class ids, int64 of shape `(labels,)`; and `image`, a scalar string, or
        `image_embedding`, float32 of shape `(embedding_dim,)`.
    """
    spec: dict[str, Any] = {
        record.TEXT: tf.io.RaggedFeature(tf.string),
        record.LABEL: tf.io.RaggedFeature(tf.int64),
    }
    if embedding_dim is None:
        spec[record.IMAGE] = tf.io.FixedLenFeature([], tf.string)
    else:
        spec[record.IMAGE_EMBEDDING] = tf.io.FixedLenFeature([embedding_dim], tf.float32)
    return tf.io.parse_single_example(serialized, spec)


def write_shard(path: str, serialized: Iterable[bytes]) -> int:
    """Writes a compressed TFRecord file and returns the number of records.

    The file is not written atomically: use a temporary name and rename it if others may read it.
    """
    count = 0
    options = tf.io.TFRecordOptions(compression_type=COMPRESSION, compression_level=_LEVEL)
    with tf.io.TFRecordWriter(path, options) as writer:
        for item in serialized:
            writer.write(item)
            count += 1
    return count


def read_batches(path: str, size: int) -> Iterator[list[bytes]]:
    """Yields the serialized records of one shard in lists of `size`; the last may be shorter.

    Raises:
        RuntimeError: If the shard is damaged.
    """
    batch = []
    try:
        for item in read_shard(path):
            batch.append(item)
            if len(batch) == size:
                yield batch
                batch = []
    except tf.errors.DataLossError as error:
        raise RuntimeError(
            f"{path} cannot be read; write it again: {str(error.message).splitlines()[0]}"
        ) from None
    if batch:
        yield batch


def read_shard(path: str) -> Iterator[bytes]:
    """Yields the serialized records of one shard; raises `tf.errors.DataLossError` on damage."""
    for item in tf.data.TFRecordDataset(path, compression_type=COMPRESSION).as_numpy_iterator():
        yield bytes(item)
