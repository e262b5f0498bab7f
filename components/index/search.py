"""Searches an index that lies in a folder."""

import json
import math
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from sigline.components.index import corpus, faiss_index
from sigline.components.shared import served_model
from sigline.schemas import digests, retrieval, signatures
from sigline.schemas.retrieval import Match


class Gallery:
    """Keys, captions and small pictures of an index, by row."""

    def __init__(self, path: str | Path):
        """Opens the file; nothing but its directory is read."""
        self._file = pq.ParquetFile(path)
        # Parquet readers are not thread-safe; pages are requested by several threads.
        self._turn = threading.Lock()

    def texts(self, row: int) -> tuple[str, ...]:
        """Returns the captions of a row; none for an image without any."""
        return tuple(self._value(row, corpus.TEXT))

    def names(self, row: int) -> tuple[str, str]:
        """Returns the key and the source of a row."""
        return self._value(row, retrieval.KEY), self._value(row, retrieval.SOURCE)

    def thumbnail(self, row: int) -> bytes | None:
        """Returns a small JPEG of a row; None if the index keeps none.

        Raises:
            IndexError: If there is no such row.
        """
        return self._value(row, corpus.THUMBNAIL)

    def column(self, name: str) -> list[str]:
        """Returns a column of text, of all rows."""
        return self._file.read([name]).column(name).to_pylist()

    def _value(self, row: int, column: str) -> Any:
        start = 0
        for group in range(self._file.num_row_groups):
            rows = self._file.metadata.row_group(group).num_rows
            if 0 <= row - start < rows:
                with self._turn:
                    values = self._file.read_row_group(group, [column]).column(column)
                return values[row - start].as_py()
            start += rows
        raise IndexError(f"row must be below {start}. Received: row={row}")


class LocalIndex:
    """An index in a folder, and the model that asks it."""

    def __init__(self, directory: str | Path, model_dir: str | Path | None = None):
        """Opens an index.

        Args:
            directory: What `build` wrote.
            model_dir: The model, which an index of the kind `faiss` needs; an exact one has its
                own, and is compared with this one if it is given.

        Raises:
            ValueError: If there is no index, it is damaged, or the model is another one.
        """
        directory = Path(directory)
        assets = directory / signatures.ASSETS_DIR
        if not (assets / retrieval.INDEX_FILE).is_file():
            raise ValueError(f"There is no index. Received: {directory}")
        self.about = json.loads((assets / retrieval.INDEX_FILE).read_text())
        self.gallery = Gallery(assets / retrieval.GALLERY_FILE)
        if model_dir is not None:
            digest, _ = corpus.describe(served_model.metadata(str(model_dir)))
            if digest != self.about[retrieval.MODEL_DIGEST]:
                raise ValueError(
                    "The index was made with another model; build it again. Received: model "
                    f"{digest[:12]}, index of model {self.about[retrieval.MODEL_DIGEST][:12]}"
                )
        self._faiss: Any = None
        if self.about["kind"] == retrieval.FAISS:
            if model_dir is None:
                raise ValueError(
                    "An index of the kind faiss needs the model that made it. "
                    f"Received: model_dir={model_dir}"
                )
            path = directory / retrieval.FAISS_FILE
            if digests.file_digest(path) != self.about["faiss_sha256"]:
                raise ValueError(f"The index is damaged; build it again. Received: {path}")
            self._faiss = faiss_index.read(str(path))
            self._keys = self.gallery.column(retrieval.KEY)
            self._sources = self.gallery.column(retrieval.SOURCE)
        self._model = served_model.load(str(model_dir if self._faiss else directory))

    @property
    def most(self) -> int:
        """The most matches that a query is answered with."""
        records = self.about["records"]
        return records if self._faiss else min(self.about["top"], records)

    def by_text(self, text: str, *, top: int) -> list[Match]:
        """Returns the images that a text describes best, the best first.

        Raises:
            ValueError: If `top` is less than 1 or more than the index answers with.
        """
        return self._find(text, signatures.EMBED_TEXT, retrieval.RETRIEVE_TEXT, top)

    def by_image(self, encoded: bytes, *, top: int) -> list[Match]:
        """Returns the images that are nearest to another one, a JPEG or PNG, the nearest first.

        Raises:
            ValueError: If it is no image that the model reads, or as `by_text`.
        """
        return self._find(encoded, signatures.EMBED_IMAGE, retrieval.RETRIEVE_IMAGE, top)

    def probability(self, score: float) -> float | None:
        """Returns the probability that a picture fits a text, of the cosine of the two.

        Args:
            score: The cosine.

        Returns:
            What the sigmoid loss gives the pair; None for a model of another loss, whose
            probabilities depend on what else is compared, and for an index of before.
        """
        scale = self.about.get(retrieval.TEMPERATURE), self.about.get(retrieval.BIAS)
        if scale[0] is None or scale[1] is None:
            return None
        return 1 / (1 + math.exp(-min(max(scale[0] * score + scale[1], -500.0), 500.0)))

    def examples(self, count: int) -> list[Match]:
        """Returns pictures from all over the index, at most `count`; their score is 1."""
        records = self.about["records"]
        rows = [number * records // min(count, records) for number in range(min(count, records))]
        return [Match(*self.gallery.names(row), 1.0, row, self.gallery.texts(row)) for row in rows]

    def _find(self, query: Any, embed: str, retrieve: str, top: int) -> list[Match]:
        import tensorflow as tf

        if not 1 <= top <= self.most:
            raise ValueError(f"top must be 1 to {self.most}. Received: top={top}")
        try:
            if self._faiss is None:
                outputs = served_model.call(self._model, retrieve, [query])
                rows, scores = outputs[retrieval.ROW][0][:top], outputs[retrieval.SCORE][0][:top]
                keys, sources = (
                    [name.decode() for name in outputs[field][0][:top]]
                    for field in (retrieval.KEY, retrieval.SOURCE)
                )
            else:
                vector = served_model.embed(self._model, embed, [query])
                scores, rows = (x[0] for x in faiss_index.search(self._faiss, vector, top))
                # An inverted file returns -1 where the cells it visits hold too few.
                scores, rows = scores[rows >= 0], rows[rows >= 0]
                keys, sources = ([x[row] for row in rows] for x in (self._keys, self._sources))
        except tf.errors.InvalidArgumentError:
            raise ValueError(
                "The image must be a JPEG or PNG that the model reads. "
                f"Received: {len(query)} bytes"
            ) from None
        return self._matches(keys, sources, scores, rows)

    def _matches(
        self, keys: list[str], sources: list[str], scores: np.ndarray, rows: np.ndarray
    ) -> list[Match]:
        fields = zip(keys, sources, scores.tolist(), rows.tolist(), strict=True)
        return [Match(*values, self.gallery.texts(values[3])) for values in fields]
