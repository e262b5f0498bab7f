"""An exported SavedModel as Beam workers use it: by its signatures' names."""

from collections.abc import Sequence

import numpy as np

from sigline.schemas import signatures


def load(directory: str):
    """Loads a SavedModel of the model contract."""
    import tensorflow as tf
    import tensorflow_text  # noqa: F401  # Registers the tokenizer's operations.

    return tf.saved_model.load(directory)


def call(model, signature: str, values: Sequence[bytes] | Sequence[str]) -> dict[str, np.ndarray]:
    """Returns the outputs of a signature for encoded images or texts."""
    import tensorflow as tf

    name = signatures.TEXT if signature == signatures.EMBED_TEXT else signatures.IMAGE_BYTES
    inputs = {name: tf.constant(values, tf.string)}
    return {key: value.numpy() for key, value in model.signatures[signature](**inputs).items()}


def embed(model, signature: str, values: Sequence[bytes] | Sequence[str]) -> np.ndarray:
    """Returns the embeddings of encoded images or texts, shape `(values, dim)`."""
    return call(model, signature, values)[signatures.EMBEDDING]
