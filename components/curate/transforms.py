"""Beam transforms that choose records of a split, and write which as a selection."""

import json
import posixpath
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import apache_beam as beam
import numpy as np
from apache_beam.pvalue import AsDict, AsSingleton

from sigline.components.curate import choice_transforms, rules
from sigline.components.curate.rules import Candidate, Embedded
from sigline.components.shared import files, served_model
from sigline.schemas import digests, examples, record, signatures
from sigline.schemas.selection import (
    KEYS_FOLDER,
    SELECTION_FILE,
    Selection,
    ShardSelection,
    bits_of,
)

_BATCH = 64


class Curate(beam.PTransform):
    """Chooses records of a split as the configuration says and writes the selection."""

    def __init__(
        self,
        examples_dir: str,
        output_dir: str,
        config: rules.CurateConfig,
        *,
        model_dir: str | None = None,
        entries: tuple[str, ...] = (),
        labels: tuple[str, ...] = (),
        target_dir: str | None = None,
        split: str = record.TRAIN_SPLIT,
    ):
        """Reads the manifest.

        Args:
            examples_dir: Folder of the splits and their manifest.
            output_dir: Folder to write `Split-NAME` to.
            config: What to choose.
            model_dir: A SavedModel of the model contract, if pairs are embedded.
            entries: Entries to match captions with, for `entry_limit`.
            labels: Texts that name the latent classes, for `covariance_fraction`.
            target_dir: Folder of the examples whose images are the target, for `target_limit`; all
                of its splits.
            split: Which split.

        Raises:
            ValueError: If the configuration needs a model or entries that are missing, or the
                manifest has no such split.
        """
        super().__init__()
        if config.embeds and model_dir is None:
            raise ValueError(
                "A choice by similarity or clusters needs a model to embed pairs. "
                f"Received: model_dir={model_dir}"
            )
        if config.entry_limit is not None and not entries:
            raise ValueError(
                "entry_limit needs entries to match captions with. Received: "
                f"entry_limit={config.entry_limit}, entries={entries!r}"
            )
        if (config.covariance_fraction is not None) != bool(labels):
            raise ValueError(
                "covariance_fraction and labels must be given together. Received: "
                f"covariance_fraction={config.covariance_fraction}, labels={labels!r}"
            )
        if (config.target_limit is not None) != (target_dir is not None):
            raise ValueError(
                "target_limit and a target must be given together. Received: "
                f"target_limit={config.target_limit}, target_dir={target_dir}"
            )
        splits = _splits(examples_dir)
        if split not in splits:
            raise ValueError(f"The manifest has no such split. Received: split={split}")
        self._shards = splits[split]["shards"]
        self._labels = labels
        self._target = None if target_dir is None else _paths(target_dir)
        self._split_dir = posixpath.join(examples_dir, f"Split-{split}")
        self._output_dir = posixpath.join(output_dir, f"Split-{split}")
        self._config = config
        self._model_dir = model_dir if config.embeds else None
        self._entries = rules.Entries(entries) if config.entry_limit is not None else None

    def expand(self, pbegin):
        """Returns what was chosen, a collection of one `Selection`."""
        read = (
            pbegin
            | "Shards"
            >> beam.Create(sorted(posixpath.join(self._split_dir, name) for name in self._shards))
            # A choice by images alone needs neither captions nor a model of texts.
            | "Embed" >> Embed(self._model_dir, with_texts=self._config.embeds_texts)
        )
        chosen = self._similar(self._captioned(read))
        chosen = self._nearest(pbegin, chosen)
        candidates = self._balanced(self._covarying(pbegin, chosen))
        written = (
            candidates
            | "ByShard" >> beam.Map(lambda item: (item.shard, (item.position, item.key)))
            | "GroupByShard" >> beam.GroupByKey()
            | "SelectOfShard" >> beam.Map(_select, self._shards, self._output_dir)
        )
        return (
            pbegin
            | "Once" >> beam.Create([None])
            | "WriteSelection"
            >> beam.Map(
                _write_selection, AsDict(written), self._shards, self._split_dir, self._output_dir
            )
        )

    def _captioned(self, read):
        """Leaves out records without captions where a choice reads captions."""
        if not self._config.of_captions:
            return read
        counts = (
            read
            | "IsCaptioned" >> beam.Map(lambda item: bool(item[0].texts))
            | "CountCaptioned" >> beam.combiners.Count.PerElement()
            | "CaptionCounts" >> beam.combiners.ToDict()
            | "CheckCaptions" >> beam.Map(_check_captions, ", ".join(self._config.of_captions))
        )
        return read | "WithCaptions" >> beam.Filter(_has_captions, AsSingleton(counts))

    def _similar(self, chosen):
        """Keeps the pairs whose image and captions are similar enough, or most similar."""
        config = self._config
        if config.min_similarity is not None:
            limit = config.min_similarity
            chosen = chosen | "SimilarEnough" >> beam.Filter(
                lambda item: item[1].similarity >= limit
            )
        if config.similarity_fraction is not None:
            chosen = chosen | "MostSimilar" >> choice_transforms.TopFraction(
                config.similarity_fraction, score=lambda item: item[1].similarity
            )
        return chosen

    def _nearest(self, pbegin, chosen):
        """Keeps the pairs whose images are nearest to the target's."""
        if self._target is None:
            return chosen
        paths, records = self._target
        target = (
            pbegin
            | "Target" >> beam.Create(paths)
            | "EmbedTarget" >> Embed(self._model_dir, with_texts=False)
        )
        clusters = min(self._config.target_clusters, records)
        return {
            "items": chosen,
            "target": target,
        } | "Nearest" >> choice_transforms.NearestToTarget(self._config, clusters)

    def _covarying(self, pbegin, chosen):
        """Keeps the pairs that preserve the covariance of images and captions."""
        fraction = self._config.covariance_fraction
        if fraction is None:
            return chosen
        assert self._model_dir is not None
        labels = (
            pbegin
            | "Labels" >> beam.Create([self._labels])
            | "EmbedLabels" >> beam.Map(_embed_labels, self._model_dir)
        )
        return chosen | "KeepCovariance" >> choice_transforms.KeepCovariance(
            fraction, AsSingleton(labels)
        )

    def _balanced(self, chosen):
        """Returns the candidates, with no more than its share of any cluster or entry."""
        if self._config.clusters is not None:
            chosen = chosen | "BalanceClusters" >> choice_transforms.BalanceClusters(self._config)
        candidates = chosen | "Candidates" >> beam.Keys()
        if self._entries is None:
            return candidates
        return candidates | "BalanceEntries" >> choice_transforms.BalanceEntries(
            self._entries, self._config
        )


def _check_captions(counts: dict[bool, int], options: str) -> int:
    captionless = rules.check_captions(counts, options)
    if captionless:
        total = sum(counts.values())
        print(
            f"{captionless} of {total} records have no caption, which {options} needs: they are "
            "left out.",
            file=sys.stderr,
        )
    return captionless


def _has_captions(item: tuple[Candidate, Embedded], captionless: int) -> bool:
    # The side input delays the filter until captions have been checked and counted.
    return not captionless or bool(item[0].texts)


def _splits(examples_dir: str) -> dict[str, Any]:
    text = files.read_text(posixpath.join(examples_dir, record.MANIFEST_FILE))
    return json.loads(text)[record.MANIFEST_SPLITS]


def _paths(examples_dir: str) -> tuple[list[str], int]:
    """Returns the paths of all shards of examples, and how many records they hold."""
    shards = [
        (posixpath.join(examples_dir, f"Split-{split}", name), shard["records"])
        for split, content in _splits(examples_dir).items()
        for name, shard in content["shards"].items()
    ]
    records = sum(count for _, count in shards)
    if not records:
        raise ValueError(f"The target must hold images. Received: {examples_dir}")
    return sorted(path for path, _ in shards), records


def _embed_labels(labels: Sequence[str], model_dir: str) -> np.ndarray:
    model = served_model.load(model_dir)
    return served_model.embed(model, signatures.EMBED_TEXT, list(labels)).astype(np.float64)


class Embed(beam.PTransform):
    """From paths of shards to `(Candidate, Embedded)`."""

    def __init__(self, model_dir: str | None, *, with_texts: bool = True):
        """Takes the model.

        Args:
            model_dir: A SavedModel; None for pairs that are only read.
            with_texts: Whether captions are embedded, too.
        """
        super().__init__()
        self._model_dir = model_dir
        self._with_texts = with_texts

    def expand(self, paths):
        """Returns the pairs of all shards."""
        return (
            paths
            | "SpreadShards" >> beam.Reshuffle()
            | "Read" >> beam.ParDo(_ReadShard(self._model_dir, with_texts=self._with_texts))
        )


class _ReadShard(beam.DoFn):
    """Reads the records of a shard, and what the model says of them."""

    def __init__(self, model_dir: str | None, *, with_texts: bool):
        self._model_dir = model_dir
        self._with_texts = with_texts

    def setup(self):
        if self._model_dir is not None:
            self._model = served_model.load(self._model_dir)

    def process(self, path: str) -> Iterator[tuple[Candidate, Embedded]]:
        from sigline.schemas import tf_example

        batch: list[tuple[Candidate, bytes]] = []
        shard = posixpath.basename(path)
        for position, serialized in enumerate(tf_example.read_shard(path)):
            item = tf_example.decode(serialized)
            candidate = Candidate(shard, position, item.key, item.text)
            if self._model_dir is None:
                yield candidate, Embedded()
                continue
            batch.append((candidate, item.image))
            if len(batch) == _BATCH:
                yield from self._embedded(batch)
                batch = []
        if batch:
            yield from self._embedded(batch)

    def _embedded(self, batch: list[tuple[Candidate, bytes]]):
        texts_of = [candidate.texts if self._with_texts else () for candidate, _ in batch]
        texts = [text for own in texts_of for text in own]
        embedded_images = served_model.embed(
            self._model, signatures.EMBED_IMAGE, [image for _, image in batch]
        )
        embedded_texts = np.empty((0, embedded_images.shape[1]), np.float32)
        if texts:
            embedded_texts = served_model.embed(self._model, signatures.EMBED_TEXT, texts)
        start = 0
        for (candidate, _), image, own_texts in zip(batch, embedded_images, texts_of, strict=True):
            own = embedded_texts[start : start + len(own_texts)]
            start += len(own)
            if not (np.isfinite(image).all() and np.isfinite(own).all()):
                raise RuntimeError(
                    f"The model's embeddings must be numbers. Received: key={candidate.key!r}"
                )
            if not len(own):
                yield candidate, Embedded(image=image)
                continue
            similarity = float(np.mean(own.astype(np.float64) @ image.astype(np.float64)))
            total = own.astype(np.float64).sum(axis=0)
            text = rules.centre(total, own[0]).astype(np.float32)
            yield candidate, Embedded(similarity, image, text)


def _select(
    item: tuple[str, Iterable[tuple[int, str]]], shards: dict[str, dict], output_dir: str
) -> tuple[str, ShardSelection]:
    """Writes the keys of one shard's records, in their order."""
    shard, positioned = item
    chosen = sorted(positioned)
    lines = "".join(json.dumps(key) + "\n" for _, key in chosen)
    name = shard.removesuffix(".gz") + ".jsonl"
    files.write_file(posixpath.join(output_dir, KEYS_FOLDER, name), lines.encode())
    records = shards[shard]["records"]
    positions = {position for position, _ in chosen}
    return shard, ShardSelection(records, len(chosen), bits_of(positions, records))


def _write_selection(
    _, written: dict[str, ShardSelection], shards: dict[str, dict], split_dir: str, output_dir: str
) -> Selection:
    selected = {
        name: written.get(name)
        or ShardSelection(shard["records"], 0, bits_of(set(), shard["records"]))
        for name, shard in shards.items()
    }
    selection = Selection(split_dir, digests.json_digest(examples.identity(shards)), selected)
    files.write_file(posixpath.join(output_dir, SELECTION_FILE), selection.to_json().encode())
    return selection
