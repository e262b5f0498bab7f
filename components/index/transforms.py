"""Embeds the images of a corpus with an exported SavedModel, in parallel over shards."""

import io
import json
import posixpath
from collections.abc import Iterator

import apache_beam as beam
import pyarrow as pa
from apache_beam.io.filesystems import FileSystems
from apache_beam.pvalue import AsDict

from sigline.components.index import corpus
from sigline.components.shared import files, served_model
from sigline.schemas import digests, examples, record

_BATCH = 64


class EmbedCorpus(beam.PTransform):
    """Writes a Parquet file of embeddings for each shard of examples, then their manifest.

    A file is named after the model's and the shard's bytes. What is there already is not embedded
    again, so that a run that was stopped goes on, and a model that changed embeds all.
    """

    def __init__(
        self,
        examples_dir: str,
        model_dir: str,
        output_dir: str,
        *,
        splits: tuple[str, ...] = record.SPLITS,
        thumbnails: bool = True,
    ):
        """Reads the manifest of the examples and what the model says of itself.

        Args:
            examples_dir: Folder of the splits and their manifest.
            model_dir: A SavedModel of the model contract.
            output_dir: Folder to write to.
            splits: Which ones to embed.
            thumbnails: Whether small pictures are kept, for a page that shows what is found.

        Raises:
            ValueError: If there is no such split, or the model does not say what it is.
        """
        super().__init__()
        self._dirs = examples_dir, model_dir, output_dir
        of_examples = files.read_text(posixpath.join(examples_dir, record.MANIFEST_FILE))
        self._shards = examples.shards(of_examples, splits)
        self._of_model = corpus.describe(served_model.metadata(model_dir))
        self._thumbnails = thumbnails

    def expand(self, pbegin):
        """Returns the manifest, a collection of one text."""
        examples_dir, model_dir, output_dir = self._dirs
        decides = [corpus.FORMAT, files.tree_digest(model_dir), self._thumbnails]
        embed = _EmbedShard(examples_dir, model_dir, output_dir, self._of_model[1], decides)
        written = (
            pbegin
            | "Shards" >> beam.Create(self._shards)
            | "SpreadShards" >> beam.Reshuffle()
            | "Embed" >> beam.ParDo(embed)
        )
        return (
            pbegin
            | "Once" >> beam.Create([None])
            | "WriteManifest"
            >> beam.Map(_write_manifest, AsDict(written), self._shards, self._of_model, output_dir)
        )


class _EmbedShard(beam.DoFn):
    """Embeds one shard; images do not leave the worker."""

    def __init__(
        self,
        examples_dir: str,
        model_dir: str,
        output_dir: str,
        dim: int,
        decides: list,
    ):
        self._examples_dir = examples_dir
        self._model_dir = model_dir
        self._output_dir = output_dir
        self._dim = dim
        # Together with the shard's bytes, this determines the content of a file.
        self._decides = decides
        self._thumbnails = decides[-1]
        self._model = None

    def process(self, shard: tuple[str, str, int]):
        split, name, _ = shard
        source = posixpath.join(self._examples_dir, f"Split-{split}", name)
        with files.BeamFiles().open(source) as handle:
            of_shard = digests.stream_digest(handle)
        identity = digests.json_digest([*self._decides, of_shard])
        stem = posixpath.join(self._output_dir, f"{split}-{name.removesuffix('.gz')}")
        target, note = (f"{stem}-{identity[:16]}.{end}" for end in ("parquet", "json"))
        if not _is_whole(target, note):
            if self._model is None:
                self._model = served_model.load(self._model_dir)
            rows, unreadable = self._rows(source)
            content = corpus.encode(rows, self._dim)
            files.write_file(target, content)
            about = {
                "records": len(rows),
                "unreadable": unreadable,
                "sha256": digests.stream_digest(io.BytesIO(content)),
            }
            files.write_file(note, json.dumps(about, sort_keys=True).encode())
        yield (split, name), (posixpath.basename(target), json.loads(files.read_text(note)))

    def _rows(self, source: str) -> tuple[list[corpus.Row], list[str]]:
        from sigline.schemas import tf_example

        rows, unreadable = [], []
        for serialized in tf_example.read_batches(source, _BATCH):
            batch = [tf_example.decode(x) for x in serialized]
            vectors, valid = served_model.embed_images(self._model, [item.image for item in batch])
            for item, vector, good in zip(batch, vectors, valid, strict=True):
                if not good:
                    unreadable.append(f"{item.source}/{item.key}")
                    continue
                small = corpus.thumbnail(item.image) if self._thumbnails else None
                # A caption that is listed for several languages is shown once.
                texts = tuple(dict.fromkeys(item.text))
                rows.append(corpus.Row(item.key, item.source, texts, vector, small))
        return rows, unreadable


def _is_whole(target: str, note: str) -> bool:
    """Returns whether a file is there as its note, which comes last, says."""
    if not (FileSystems.exists(note) and FileSystems.exists(target)):
        return False
    try:
        digest = json.loads(files.read_text(note))["sha256"]
    except (ValueError, KeyError):
        return False
    with files.BeamFiles().open(target) as handle:
        return digests.stream_digest(handle) == digest


def _write_manifest(_, written, shards, of_model: tuple[str, int], output_dir: str) -> str:
    corpus_files = {}
    for split, name, records in shards:
        file, about = written[split, name]
        if about["records"] + len(about["unreadable"]) != records:
            raise RuntimeError(
                "Embedding lost or doubled records; its output must not be used. Received: "
                f"{split}/{name} with {about['records']} embedded and {len(about['unreadable'])} "
                f"unreadable of {records}"
            )
        corpus_files[file] = about
    content = corpus.Corpus(*of_model, corpus_files).to_json()
    files.write_file(posixpath.join(output_dir, corpus.MANIFEST_FILE), content.encode())
    return content


def load(folder: str) -> corpus.Corpus:
    """Reads the manifest of an embedded corpus.

    Raises:
        ValueError: If there is none, or it is of another version.
    """
    return corpus.parse(files.read_text(posixpath.join(folder, corpus.MANIFEST_FILE)))


def tables(folder: str, of: corpus.Corpus) -> Iterator[pa.Table]:
    """Yields the rows of an embedded corpus, file by file, in order.

    Raises:
        ValueError: If a file is not the one that the manifest names.
    """
    for name, shard in of.shards.items():
        with files.BeamFiles().open(posixpath.join(folder, name)) as handle:
            yield corpus.table(handle.read(), name, shard)
