"""The exact index: a SavedModel that any TF Serving serves, with the model's own encoders in it.

Texts and images are embedded by the model that embedded the corpus, since it is inside; whoever
brings vectors of their own says which model made them, and is refused if it is another one.
"""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_text  # noqa: F401  # Registers the tokenizer's operations.

from sigline.schemas import retrieval, signatures

# Rows compared at a time. The scores of a batch of queries with all rows of a large corpus would
# take more memory than the rows themselves.
_BLOCK = 65_536
_MAX_QUERIES = 256


class _SavedIndex(tf.Module):
    """The object that is saved: raw variables, and the encoders of a SavedModel."""

    def __init__(
        self,
        model: Any,
        vectors: np.ndarray,
        keys: Sequence[str],
        sources: Sequence[str],
        model_digest: str,
        top: int,
    ):
        super().__init__()
        self.model = model
        self.blocks: list[Any] = [
            tf.Variable(tf.constant(vectors[start : start + _BLOCK]), trainable=False)
            for start in range(0, len(vectors), _BLOCK)
        ]
        self.keys = tf.Variable(tf.constant(list(keys), tf.string), trainable=False)
        self.sources = tf.Variable(tf.constant(list(sources), tf.string), trainable=False)
        self._digest = model_digest
        self._top = min(top, len(vectors))
        self._dim = vectors.shape[1]

    def functions(self) -> dict[str, Any]:
        """Returns the signatures by name."""
        dim = self._dim
        inputs = {
            retrieval.EMBEDDING: tf.TensorSpec((None, dim), tf.float32, retrieval.EMBEDDING),
            retrieval.MODEL_DIGEST: tf.TensorSpec((None,), tf.string, retrieval.MODEL_DIGEST),
        }
        text = tf.TensorSpec((None,), tf.string, signatures.TEXT)
        image = tf.TensorSpec((None,), tf.string, signatures.IMAGE_BYTES)
        return {
            retrieval.RETRIEVE: tf.function(self._retrieve, autograph=False).get_concrete_function(
                **inputs
            ),
            retrieval.RETRIEVE_TEXT: tf.function(
                self._retrieve_text, autograph=False
            ).get_concrete_function(text),
            retrieval.RETRIEVE_IMAGE: tf.function(
                self._retrieve_image, autograph=False
            ).get_concrete_function(image),
        }

    def _retrieve(self, embedding, model_digest):
        rows = tf.shape(embedding)[0]
        message = f"model_digest must be that of this index, {self._digest}. Received:"
        checks = [
            tf.debugging.Assert(
                tf.reduce_all(model_digest == self._digest),
                [message, model_digest],
            ),
            tf.debugging.assert_equal(
                tf.shape(model_digest)[0], rows, "model_digest must have a row for each embedding"
            ),
            _at_most(rows, retrieval.EMBEDDING),
        ]
        with tf.control_dependencies(checks):
            # In float64, where the square of a float32 cannot overflow.
            query = tf.cast(embedding, tf.float64)
        norm = tf.norm(query, axis=-1, keepdims=True)
        usable = tf.debugging.Assert(
            tf.reduce_all(tf.math.is_finite(norm) & (norm > 0)),
            ["embedding must be finite and not zero"],
        )
        with tf.control_dependencies([usable]):
            return self._find(tf.cast(query / norm, tf.float32))

    def _retrieve_text(self, text):
        encoder = self.model.signatures[signatures.EMBED_TEXT]
        with tf.control_dependencies([_at_most(tf.shape(text)[0], signatures.TEXT)]):
            outputs = encoder(**{signatures.TEXT: tf.identity(text)})
        return self._find(outputs[signatures.EMBEDDING])

    def _retrieve_image(self, image_bytes):
        encoder = self.model.signatures[signatures.EMBED_IMAGE]
        checked = _at_most(tf.shape(image_bytes)[0], signatures.IMAGE_BYTES)
        with tf.control_dependencies([checked]):
            outputs = encoder(**{signatures.IMAGE_BYTES: tf.identity(image_bytes)})
        return self._find(outputs[signatures.EMBEDDING])

    def _find(self, query):
        """Returns the best rows of each query, shape `(queries, top)`, the best first."""
        best: Any = None
        held = 0
        for block in self.blocks:
            of_block = block.get_shape()[0]
            scored = tf.matmul(query, block, transpose_b=True)
            score, row = tf.math.top_k(scored, k=min(self._top, of_block))
            best_of_block = score, row + held
            held += of_block
            best = best_of_block if best is None else self._merged(best, best_of_block, held)
        scores, rows = best
        return {
            retrieval.KEY: tf.gather(self.keys, rows),
            retrieval.SOURCE: tf.gather(self.sources, rows),
            retrieval.SCORE: scores,
            retrieval.ROW: tf.cast(rows, tf.int64),
        }

    def _merged(self, earlier, later, held: int):
        """Returns the best of two blocks; of equal scores the one of the lower row comes first."""
        scores = tf.concat([earlier[0], later[0]], axis=1)
        score, order = tf.math.top_k(scores, k=min(self._top, held))
        return score, tf.gather(tf.concat([earlier[1], later[1]], axis=1), order, batch_dims=1)


def _at_most(rows, name: str):
    """Bounds what a request computes: each query is compared with a whole block at a time."""
    return tf.debugging.assert_less_equal(
        rows, _MAX_QUERIES, f"{name} may have {_MAX_QUERIES} rows"
    )


def save(
    directory: str,
    model_dir: str,
    vectors: np.ndarray,
    keys: Sequence[str],
    sources: Sequence[str],
    *,
    model_digest: str,
    top: int,
) -> None:
    """Writes the SavedModel of an exact index.

    Args:
        directory: Where it goes.
        model_dir: The SavedModel that embedded the corpus.
        vectors: Unit vectors, shape `(rows, dim)`, float32.
        keys: Key of each row.
        sources: Source of each row.
        model_digest: Digest of the model.
        top: Most rows that a query is answered with.
    """
    model: Any = tf.saved_model.load(os.fspath(model_dir))
    index = _SavedIndex(model, vectors, keys, sources, model_digest, top)
    tf.saved_model.save(index, os.fspath(directory), signatures=index.functions())
