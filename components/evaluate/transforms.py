"""Asks an exported SavedModel about the records of a split, in parallel over shards."""

import posixpath
from collections.abc import Iterator, Sequence

import apache_beam as beam
import numpy as np

from sigline.components.evaluate import corruptions, predictions
from sigline.components.shared import served_model
from sigline.components.shared.files import BeamFiles, tree_digest, write_file
from sigline.schemas import digests, record, signatures
from sigline.schemas.labels import LabelSet

_BATCH = 64
# Signatures that a model must have to be judged.
_SIGNATURES = (signatures.EMBED_IMAGE, signatures.EMBED_IMAGE_SAFE)


class EmbedSplit(beam.PTransform):
    """Embeds the shards of a split, each into a file of a cache, and returns the files' paths.

    A file is named after all that decides what is in it: the model's bytes, the shard's bytes and
    the corruption. What is there already is not embedded again, so a run that was stopped goes on,
    and a model that comes again as the baseline costs nothing.
    """

    def __init__(
        self,
        split_dir: str,
        model_dir: str,
        cache_dir: str,
        corruption: corruptions.Corruption | None = None,
        grid: int | None = None,
    ):
        """Takes folders on any file system that Beam reaches.

        Args:
            split_dir: Folder of TFRecord shards.
            model_dir: SavedModel of the model's contract.
            cache_dir: Folder of embeddings.
            corruption: What is done to every image before; nothing by default.
            grid: Patches along a side, of a model of several grids; None for its default. Of
                another grid images alone are embedded, since texts do not depend on it.

        Raises:
            ValueError: If the split or the model's folder is empty.
        """
        super().__init__()
        self._shards = shards(split_dir)
        if not self._shards:
            raise ValueError(f"There are no TFRecord shards (*.gz). Received: {split_dir}")
        self._embed = _EmbedShard(model_dir, model_digest(model_dir), cache_dir, corruption, grid)

    def expand(self, pbegin):
        """Returns the paths of the embeddings, in no particular order."""
        return (
            pbegin
            | "Shards" >> beam.Create(self._shards)
            | "SpreadShards" >> beam.Reshuffle()
            | "Embed" >> beam.ParDo(self._embed)
        )


def shards(folder: str) -> list[str]:
    """Returns the paths of the TFRecord shards of a split."""
    return [path for path in BeamFiles().find(folder) if path.endswith(".gz")]


def model_digest(model_dir: str) -> str:
    """Returns the digest of all files of a SavedModel.

    Raises:
        ValueError: If there are none.
    """
    try:
        return tree_digest(model_dir)
    except ValueError:
        raise ValueError(f"There is no SavedModel. Received: {model_dir}") from None


def load_split(paths: Sequence[str]) -> predictions.Predictions:
    """Reads the files that `EmbedSplit` returned."""
    parts = []
    for path in paths:
        with BeamFiles().open(path) as handle:
            parts.append(predictions.decode(handle.read()))
    return predictions.merge(parts)


class _EmbedShard(beam.DoFn):
    """Reads a shard and embeds it batch by batch; images do not leave the worker."""

    def __init__(
        self,
        model_dir: str,
        digest: str,
        cache_dir: str,
        corruption: corruptions.Corruption | None,
        grid: int | None,
    ):
        self._model_dir = model_dir
        self._digest = digest
        self._cache_dir = cache_dir
        self._corruption = corruption
        self._grid = grid
        self._model = None

    def process(self, path: str) -> Iterator[str]:
        with BeamFiles().open(path) as handle:
            shard = digests.stream_digest(handle)
        corruption = corruptions.identity(self._corruption) if self._corruption else None
        content = [predictions.FORMAT, self._digest, shard, corruption]
        name = digests.json_digest(content if self._grid is None else [*content, self._grid])
        cached = posixpath.join(self._cache_dir, f"{name}.safetensors")
        if not _is_whole(cached):
            if self._model is None:
                self._model = served_model.load(self._model_dir)
                served_model.check(self._model_dir, _SIGNATURES)
            write_file(cached, predictions.encode(self._shard(path)))
        yield cached

    def _shard(self, path: str) -> predictions.Predictions:
        from sigline.schemas import tf_example

        batches = tf_example.read_batches(path, _BATCH)
        parts = [self._embed([tf_example.decode(x) for x in batch]) for batch in batches]
        # Embedding an empty batch gives arrays of the right shapes.
        parts = parts or [self._embed([])]
        return predictions.Predictions(
            tuple(item for part in parts for item in part.records),
            np.concatenate([part.image for part in parts]),
            predictions.joined([part.text for part in parts]),
            predictions.joined([part.negative for part in parts]),
            tuple(unit for part in parts for unit in part.unreadable),
            predictions.joined([part.class_logits for part in parts]),
        )

    def _embed(self, batch: list[record.ImageTextRecord]) -> predictions.Predictions:
        images = [item.image for item in batch]
        if self._corruption is not None:
            images = [
                corruptions.corrupt(item.image, self._corruption, key=item.key) for item in batch
            ]
        embeddings, valid = served_model.embed_images(self._model, images, self._grid)
        known = [predictions.EvalRecord.of(item) for item in batch]
        kept = [item for item, good in zip(known, valid, strict=True) if good]
        return predictions.Predictions(
            tuple(kept),
            embeddings[valid],
            self._texts([caption for item in kept for caption in item.text]),
            self._texts([caption for item in kept for caption in item.negative]),
            tuple(item.unit for item, good in zip(known, valid, strict=True) if not good),
            self._classes([image for image, good in zip(images, valid, strict=True) if good]),
        )

    def _classes(self, images: list[bytes]) -> np.ndarray | None:
        signature = signatures.at_grid(signatures.CLASS_LOGITS, self._grid)
        if not served_model.has(self._model, signature):
            return None
        return served_model.call(self._model, signature, images)[signatures.LOGITS]

    def _texts(self, texts: list[str]) -> np.ndarray | None:
        if self._grid is not None or not served_model.has(self._model, signatures.EMBED_TEXT):
            return None
        return served_model.embed(self._model, signatures.EMBED_TEXT, texts)


def _is_whole(path: str) -> bool:
    """Returns whether a file of embeddings is there and can be read."""
    try:
        with BeamFiles().open(path) as handle:
            predictions.decode(handle.read())
    except (OSError, ValueError):
        return False
    return True


def embed_classes(model_dir: str, labels: LabelSet) -> np.ndarray:
    """Returns one unit vector a class: the normalised mean of its prompts' unit embeddings.

    Computed with the exported text encoder; shape `(classes, dim)`.
    """
    model = served_model.load(model_dir)
    prompts = labels.prompts()
    flat = [prompt for of_class in prompts for prompt in of_class]
    embeddings = np.concatenate(
        [
            served_model.embed(model, signatures.EMBED_TEXT, flat[start : start + _BATCH])
            for start in range(0, len(flat), _BATCH)
        ]
    )
    means = embeddings.reshape(len(prompts), -1, embeddings.shape[1]).mean(axis=1)
    return means / np.linalg.norm(means, axis=1, keepdims=True)
