"""Replaces the images of records by their embeddings, in parallel over shards."""

import json
import posixpath
import uuid
from collections.abc import Iterator

import apache_beam as beam
import numpy as np
from apache_beam.io.filesystems import FileSystems
from apache_beam.pvalue import AsDict

from sigline.components.embed import manifest
from sigline.components.shared import files, served_model
from sigline.schemas import digests, examples, progress, record, signatures

_BATCH = 64


class EmbedImages(beam.PTransform):
    """Writes examples with embeddings beside the texts, shard for shard, then their manifest.

    A shard that is there already is kept, so that an interrupted run goes on where it was; see
    `manifest.claim` for what must be the same then.
    """

    def __init__(
        self,
        examples_dir: str,
        model_dir: str,
        output_dir: str,
        splits: tuple[str, ...] = (record.TRAIN_SPLIT,),
    ):
        """Reads the manifest of the examples and what the model says of itself.

        Args:
            examples_dir: Folder of the splits and their manifest.
            model_dir: A SavedModel with the signature `embed_image_safe`.
            output_dir: Folder to write to.
            splits: Which ones to embed.
        """
        super().__init__()
        self._dirs = examples_dir, model_dir, output_dir
        self._splits = splits
        self._manifest = files.read_text(posixpath.join(examples_dir, record.MANIFEST_FILE))
        metadata = posixpath.join(model_dir, signatures.ASSETS_DIR, signatures.METADATA_FILE)
        self._tower = manifest.tower(json.loads(files.read_text(metadata)))

    @property
    def image_digest(self) -> str:
        """The digest of the image tower."""
        return self._tower["image_digest"]

    @property
    def claim(self) -> str:
        """A digest that identifies the examples and the tower."""
        return manifest.claim(self._manifest, self._tower)

    def expand(self, pbegin):
        """Returns the manifest, a collection of one text."""
        examples_dir, model_dir, output_dir = self._dirs
        written = (
            pbegin
            | "Shards" >> beam.Create(examples.shards(self._manifest, self._splits))
            | "SpreadShards" >> beam.Reshuffle()
            | "Embed" >> beam.ParDo(_EmbedShard(examples_dir, model_dir, output_dir))
        )
        return (
            pbegin
            | "Once" >> beam.Create([None])
            | "WriteManifest"
            >> beam.Map(
                _write_manifest,
                AsDict(written),
                self._manifest,
                self._splits,
                self._tower,
                examples_dir,
                output_dir,
            )
        )


class _EmbedShard(beam.DoFn):
    """Embeds the images of one shard, batch by batch."""

    def __init__(self, examples_dir: str, model_dir: str, output_dir: str):
        self._examples_dir = examples_dir
        self._model_dir = model_dir
        self._output_dir = output_dir

    def setup(self):
        self._model = served_model.load(self._model_dir)

    def process(self, shard: tuple[str, str, int]):
        from sigline.schemas import tf_example

        split, name, _ = shard
        folder = f"Split-{split}"
        target = posixpath.join(self._output_dir, folder, name)
        if not FileSystems.exists(target):
            # Outside of the split's folder, because every file in that counts as a shard.
            # The name is unique, since a runner may process a shard twice at a time.
            scratch = posixpath.join(self._output_dir, f"tmp-{uuid.uuid4().hex}-{split}-{name}")
            source = posixpath.join(self._examples_dir, folder, name)
            files.make_folder(self._output_dir)
            tf_example.write_shard(scratch, self._embedded(source))
            files.rename(scratch, target)
        records = sum(1 for _ in tf_example.read_shard(target))
        with FileSystems.open(target, compression_type="uncompressed") as handle:
            digest = digests.stream_digest(handle)
            size = handle.tell()
        yield (split, name), {"records": records, record.SHARD_BYTES: size, "sha256": digest}

    def _embedded(self, source: str) -> Iterator[bytes]:
        from sigline.schemas import tf_example

        for batch in tf_example.read_batches(source, _BATCH):
            yield from self._embed(batch, source)

    def _embed(self, batch: list[bytes], source: str) -> Iterator[bytes]:
        from sigline.schemas import tf_example

        records = [tf_example.decode(serialized) for serialized in batch]
        images = [item.image for item in records]
        outputs = served_model.call(self._model, signatures.EMBED_IMAGE_SAFE, images)
        progress.advance(len(images), "images")
        valid = outputs[signatures.VALID]
        if not valid.all():
            keys = [item.key for item, good in zip(records, valid, strict=True) if not good]
            raise RuntimeError(
                f"{len(keys)} images do not decode, though they did at ingest; the shard is "
                f"damaged. Received: {source}, keys {keys[:10]}"
            )
        vectors = outputs[signatures.EMBEDDING].astype(np.float32)
        for serialized, vector in zip(batch, vectors, strict=True):
            yield tf_example.with_embedding(serialized, vector)


def _write_manifest(
    _, written, of_examples: str, splits, tower, examples_dir: str, output_dir: str
) -> str:
    content = manifest.embedded(of_examples, written, splits, tower)
    # Interrupted or duplicate attempts leave scratch files behind.
    left = FileSystems.match([posixpath.join(output_dir, "tmp-*")])[0].metadata_list
    if left:
        FileSystems.delete([item.path for item in left])
    classes = posixpath.join(examples_dir, record.CLASSES_FILE)
    if FileSystems.exists(classes):
        files.write_file(
            posixpath.join(output_dir, record.CLASSES_FILE), files.read_text(classes).encode()
        )
    files.write_file(posixpath.join(output_dir, record.MANIFEST_FILE), content.encode())
    return content
