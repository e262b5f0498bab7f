"""Embeds the records of a split with an exported SavedModel, in parallel over shards."""

import json
import posixpath
from collections.abc import Iterator

import apache_beam as beam
import numpy as np
from apache_beam.io.filesystems import FileSystems

from sigline.components import served_model
from sigline.components.evaluate import evaluation
from sigline.schemas import record, signatures
from sigline.schemas.labels import LabelSet

_BATCH = 64


class EmbedSplit(beam.PTransform):
    """Turns the shards of a split into `EmbeddedPair`s."""

    def __init__(self, split_dir: str, model_dir: str):
        super().__init__()
        self._split_dir = split_dir
        self._model_dir = model_dir

    def expand(self, pbegin):
        """Returns the embedded pairs, in no particular order."""
        pattern = posixpath.join(self._split_dir, "*")
        shards = sorted(item.path for item in FileSystems.match([pattern])[0].metadata_list)
        return (
            pbegin
            | "Shards" >> beam.Create(shards)
            | "SpreadShards" >> beam.Reshuffle()
            | "Embed" >> beam.ParDo(_EmbedShard(self._model_dir))
        )


class EvaluateSplit(beam.PTransform):
    """Embeds a split with a model, computes all metrics and writes them as JSON."""

    def __init__(self, split_dir: str, model_dir: str, metrics_path: str):
        super().__init__()
        self._split_dir = split_dir
        self._model_dir = model_dir
        self._metrics_path = metrics_path

    def expand(self, pbegin):
        """Returns the metrics, a collection of one dictionary."""
        return (
            pbegin
            | "EmbedSplit" >> EmbedSplit(self._split_dir, self._model_dir)
            | "AllPairs" >> beam.combiners.ToList()
            | "Metrics" >> beam.Map(_write_metrics, self._model_dir, self._metrics_path)
        )


def _write_metrics(
    pairs: list[evaluation.EmbeddedPair], model_dir: str, path: str
) -> dict[str, float]:
    found = evaluation.evaluate(pairs, class_embeddings(model_dir))
    with FileSystems.create(path) as handle:
        handle.write(json.dumps(found, sort_keys=True, indent=1).encode())
    return found


class _EmbedShard(beam.DoFn):
    """Reads a shard and embeds it batch by batch; images do not leave the worker."""

    def __init__(self, model_dir: str):
        self._model_dir = model_dir

    def setup(self):
        self._model = served_model.load(self._model_dir)

    def process(self, path: str) -> Iterator[evaluation.EmbeddedPair]:
        from sigline.schemas import tf_example

        batch = []
        for serialized in tf_example.read_shard(path):
            batch.append(tf_example.decode(serialized))
            if len(batch) == _BATCH:
                yield from self._embed(batch)
                batch = []
        if batch:
            yield from self._embed(batch)

    def _embed(self, batch: list[record.ImageTextRecord]) -> Iterator[evaluation.EmbeddedPair]:
        encoded, captions = [item.image for item in batch], [t for item in batch for t in item.text]
        images = served_model.embed(self._model, signatures.EMBED_IMAGE, encoded)
        texts = served_model.embed(self._model, signatures.EMBED_TEXT, captions)
        start = 0
        for item, image in zip(batch, images, strict=True):
            yield evaluation.EmbeddedPair(
                key=item.key,
                source=item.source,
                label=item.label,
                text=item.text,
                image_embedding=image,
                text_embedding=texts[start : start + len(item.text)],
            )
            start += len(item.text)


def class_embeddings(directory: str) -> np.ndarray | None:
    """Returns one unit vector a class for the model's own label set, or None without one.

    A class is the normalised mean of its prompts' embeddings, computed with the exported text
    encoder.
    """
    path = posixpath.join(directory, signatures.ASSETS_DIR, signatures.LABELS_FILE)
    if not FileSystems.exists(path):
        return None
    with FileSystems.open(path) as handle:
        labels = LabelSet.from_json(handle.read().decode())
    model = served_model.load(directory)
    means = np.stack(
        [
            served_model.embed(model, signatures.EMBED_TEXT, prompts).mean(axis=0)
            for prompts in labels.prompts()
        ]
    )
    return means / np.linalg.norm(means, axis=1, keepdims=True)
