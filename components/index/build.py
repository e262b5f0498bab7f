"""Builds an index of an embedded corpus, and measures what it finds before anybody relies on it."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import sigline
from sigline.components.index import corpus as corpora
from sigline.components.index import faiss_index, transforms
from sigline.components.index.corpus import Corpus
from sigline.components.index.options import RECALL_AT, IndexConfig
from sigline.components.shared import served_model
from sigline.schemas import atomic, digests, record, retrieval, signatures

# Number of captions that an index is checked with.
_QUERIES = 256
# Tolerance between exact scores in float32 and in float64.
_SCORE_TOLERANCE = 1e-5
_TEXT_BATCH = 64
# Rows compared at a time.
_BLOCK = 65_536


class IndexRefused(RuntimeError):
    """The index is not fit to be used; the message says why."""


def build(
    corpus_dirs: Sequence[str], model_dir: str, output: str | Path, config: IndexConfig
) -> dict[str, Any]:
    """Writes the index of an embedded corpus; its folder appears whole or not at all.

    Args:
        corpus_dirs: What `EmbedCorpus` wrote, at least one; rows are in their order.
        model_dir: The model that embedded it.
        output: Where the index goes; must not exist.
        config: What it is to be.

    Returns:
        What the index says of itself.

    Raises:
        ValueError: If the corpus is damaged or empty, another model embedded it, or none of its
            images has a caption to measure the index with.
        IndexRefused: If it does not find what it should.
    """
    output = Path(output)
    if output.exists():
        raise ValueError(f"output must not exist yet. Received: output={output}")
    parts = {folder: transforms.load(folder) for folder in corpus_dirs}
    digest, dim = corpora.describe(served_model.metadata(model_dir))
    for part in parts.values():
        if part.model_digest != digest or part.dim != dim:
            raise ValueError(
                "The corpus was embedded by another model; embed it again. Received: model "
                f"{digest[:12]}, corpus of model {part.model_digest[:12]}"
            )
    corpus = corpora.joined(digest, dim, list(parts.values()))
    served_model.check(model_dir, {signatures.EMBED_TEXT, signatures.EMBED_IMAGE})
    if config.kind == retrieval.FAISS:
        faiss_index.module()
    if not corpus.records:
        raise ValueError(
            f"The corpus holds no image that can be read. Received: {list(corpus_dirs)}"
        )
    with atomic.new_folder(output) as scratch:
        return _write(scratch, parts, corpus, model_dir, config)


def _write(
    scratch: Path,
    parts: Mapping[str, Corpus],
    corpus: Corpus,
    model_dir: str,
    config: IndexConfig,
) -> dict[str, Any]:
    assets = scratch / signatures.ASSETS_DIR
    assets.mkdir()
    vectors, keys, sources, captions = _gallery(
        assets / retrieval.GALLERY_FILE,
        corpus,
        (table for folder, part in parts.items() for table in transforms.tables(folder, part)),
    )
    _check_unit(vectors, keys, sources)
    queries = _queries(captions)
    if not queries:
        raise ValueError(
            "The corpus must hold at least one caption, since captions measure its index. "
            f"Received: {len(keys)} images, all without captions"
        )
    asked = _embed_texts(model_dir, queries)
    top = min(RECALL_AT, len(vectors))
    exact = _exact_scores(vectors, asked, top)

    def recall_of(rows: np.ndarray) -> float:
        return _recall(rows, vectors, asked, exact)

    if config.kind == retrieval.EXACT:
        from sigline.components.index import saved_index

        saved_index.save(
            str(scratch),
            model_dir,
            vectors,
            keys,
            sources,
            model_digest=corpus.model_digest,
            top=config.top,
        )
        recall = recall_of(_ask_saved(scratch, queries, top))
    else:
        index = faiss_index.build(vectors)
        recall = faiss_index.tune(
            index,
            lambda: recall_of(faiss_index.search(index, asked, top)[1]),
            config.min_recall,
        )
        faiss_index.write(index, str(scratch / retrieval.FAISS_FILE))
    if recall < config.min_recall:
        raise IndexRefused(
            f"The index finds {recall:.4f} of the {top} best images for {len(queries)} captions, "
            f"of at least {config.min_recall}."
        )
    about = _about(scratch, corpus, config) | {"queries": len(queries), "recall": recall}
    if captionless := len(keys) - len(captions):
        about[record.WITHOUT_CAPTIONS] = captionless
    about |= _sigmoid(model_dir)
    (assets / retrieval.INDEX_FILE).write_text(json.dumps(about, indent=1, sort_keys=True))
    return about


def _about(scratch: Path, corpus: Corpus, config: IndexConfig) -> dict[str, Any]:
    about = {
        **asdict(config),
        retrieval.MODEL_DIGEST: corpus.model_digest,
        "corpus_digest": corpus.digest,
        "dim": corpus.dim,
        "records": corpus.records,
        "unreadable": len(corpus.unreadable),
        "sigline_version": sigline.__version__,
    }
    if config.kind == retrieval.FAISS:
        about["faiss_sha256"] = digests.file_digest(scratch / retrieval.FAISS_FILE)
    return about


def _sigmoid(model_dir: str) -> dict[str, float]:
    """Returns what makes a probability of a cosine; nothing for a model of another loss."""
    metadata = served_model.metadata(model_dir)
    if served_model.pair_loss(model_dir) != "sigmoid":
        return {}
    return {
        name: metadata[name] for name in (retrieval.TEMPERATURE, retrieval.BIAS) if name in metadata
    }


def _check_unit(vectors: np.ndarray, keys: Sequence[str], sources: Sequence[str]) -> None:
    norms = np.linalg.norm(vectors, axis=1)
    if not np.allclose(norms, 1.0, atol=1e-3):
        row = int(np.abs(norms - 1).argmax())
        raise ValueError(
            "Embeddings must be unit vectors. Received: length "
            f"{norms[row]:.4g} of {sources[row]}/{keys[row]}"
        )


def _gallery(
    path: Path, corpus: Corpus, tables: Iterator[pa.Table]
) -> tuple[np.ndarray, list[str], list[str], list[str]]:
    """Writes keys, captions and pictures in the order of rows; returns what the index is made of.

    Returns:
        Vectors, keys and sources of the rows, and the first captions of those that have some.
    """
    vectors = np.empty((corpus.records, corpus.dim), np.float32)
    keys, sources, captions = [], [], []
    writer = None
    try:
        for table in tables:
            vectors[len(keys) : len(keys) + table.num_rows] = corpora.vectors(table)
            captions += [texts[0] for texts in table.column(corpora.TEXT).to_pylist() if texts]
            keys += table.column(retrieval.KEY).to_pylist()
            sources += table.column(retrieval.SOURCE).to_pylist()
            shown = table.drop_columns([retrieval.EMBEDDING])
            writer = writer or pq.ParquetWriter(path, shown.schema, compression="zstd")
            writer.write_table(shown, row_group_size=corpora.ROW_GROUP)
    finally:
        if writer is not None:
            writer.close()
    return vectors, keys, sources, captions


def _queries(captions: Sequence[str]) -> list[str]:
    """Returns distinct captions from all over the corpus."""
    distinct = list(dict.fromkeys(captions))
    places = np.linspace(0, len(distinct) - 1, min(_QUERIES, len(distinct))).round()
    return [distinct[int(place)] for place in places]


def _embed_texts(model_dir: str, texts: Sequence[str]) -> np.ndarray:
    model = served_model.load(model_dir)
    parts = [
        served_model.embed(model, signatures.EMBED_TEXT, texts[start : start + _TEXT_BATCH])
        for start in range(0, len(texts), _TEXT_BATCH)
    ]
    return np.concatenate(parts)


def _exact_scores(vectors: np.ndarray, queries: np.ndarray, top: int) -> np.ndarray:
    """Returns the score of the last of the best rows of each query, in 64 bits, `(queries,)`."""
    best = np.full((len(queries), top), -np.inf)
    for start in range(0, len(vectors), _BLOCK):
        scores = queries.astype(np.float64) @ vectors[start : start + _BLOCK].astype(np.float64).T
        best = -np.sort(-np.concatenate([best, scores], axis=1), axis=1)[:, :top]
    return best[:, -1]


def _recall(rows: np.ndarray, vectors: np.ndarray, queries: np.ndarray, least: np.ndarray) -> float:
    """Returns which share of the retrieved rows is among the best; rows that tie all count."""
    hits = 0
    for of_query, query, bar in zip(rows, queries, least, strict=True):
        distinct = np.unique(of_query[of_query >= 0])
        scores = vectors[distinct].astype(np.float64) @ query.astype(np.float64)
        hits += int(np.count_nonzero(scores >= bar - _SCORE_TOLERANCE))
    return hits / rows.size


def _ask_saved(directory: Path, texts: Sequence[str], top: int) -> np.ndarray:
    """Returns the rows that a SavedModel finds for texts, `(texts, top)`."""
    # Loaded past the cache of models, since the index is as large as the corpus.
    model = served_model.load_anew(str(directory))
    parts = [
        served_model.call(model, retrieval.RETRIEVE_TEXT, texts[start : start + _TEXT_BATCH])
        for start in range(0, len(texts), _TEXT_BATCH)
    ]
    return np.concatenate([part[retrieval.ROW][:, :top] for part in parts])
