"""An exported SavedModel as Beam workers use it: by its signatures' names."""

import functools
import json
import os
from collections.abc import Collection, Sequence

import numpy as np

from sigline.schemas import progress, signatures


def load(directory: str):
    """Loads a SavedModel of the model contract, or returns it if it is one of the last two."""
    import tensorflow as tf

    written = tf.io.gfile.stat(os.path.join(directory, "saved_model.pb")).mtime_nsec
    return _load(directory, written)


@functools.lru_cache(maxsize=2)
def _load(directory: str, written: int):
    import tensorflow as tf
    import tensorflow_text  # noqa: F401  # Registers the tokenizer's operations.

    del written
    return tf.saved_model.load(directory)


def load_anew(directory: str):
    """Loads a SavedModel, and keeps it for nobody."""
    return _load.__wrapped__(directory, 0)


def check(directory: str, needed: Collection[str]) -> None:
    """Raises ValueError if a model lacks a signature."""
    if missing := sorted(set(needed) - set(load(directory).signatures)):
        raise ValueError(
            f"The model must have the signatures {', '.join(sorted(needed))}; it lacks "
            f"{', '.join(missing)}. Received: {directory}"
        )


def has(model, signature: str) -> bool:
    """Returns whether a model has a signature."""
    return signature in model.signatures


def call(model, signature: str, values: Sequence[bytes] | Sequence[str]) -> dict[str, np.ndarray]:
    """Returns the outputs of a signature of one input for encoded images or texts."""
    import tensorflow as tf

    function = model.signatures[signature]
    (name,) = function.structured_input_signature[1]
    inputs = {name: tf.constant(values, tf.string, shape=(len(values),))}
    return {key: value.numpy() for key, value in function(**inputs).items()}


def embed(model, signature: str, values: Sequence[bytes] | Sequence[str]) -> np.ndarray:
    """Returns the embeddings of encoded images or texts, shape `(values, dim)`."""
    return call(model, signature, values)[signatures.EMBEDDING]


def embed_images(
    model, encoded: Sequence[bytes], grid: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the embeddings of encoded images, and which of them could be decoded, `(images,)`.

    Args:
        model: The model.
        encoded: The images.
        grid: Patches along a side, of a model of several grids; None for its default.
    """
    outputs = call(model, signatures.at_grid(signatures.EMBED_IMAGE_SAFE, grid), encoded)
    progress.advance(len(encoded), "images")
    return outputs[signatures.EMBEDDING], outputs[signatures.VALID]


def asset(directory: str, name: str) -> str | None:
    """Returns the text of a file that the model carries, or None if it carries none of the name."""
    import tensorflow as tf

    path = os.path.join(directory, signatures.ASSETS_DIR, name)
    return tf.io.gfile.GFile(path).read() if tf.io.gfile.exists(path) else None


def metadata(directory: str) -> dict:
    """Returns what the model says of itself; nothing for one that sigline did not export."""
    return json.loads(asset(directory, signatures.METADATA_FILE) or "{}")


def grids(directory: str) -> tuple[int, ...]:
    """Returns the grids of a model of several, patches along a side; none of any other model."""
    return tuple(sorted(metadata(directory).get(signatures.GRIDS, ())))


def default_grid(directory: str) -> int | None:
    """Returns the grid of signatures without one; None for a model that has no several grids."""
    return metadata(directory).get(signatures.DEFAULT_GRID)


def pair_loss(directory: str) -> str:
    """Returns what trained the logits of pairs, `sigmoid` or `softmax`; empty if not known."""
    model_metadata = metadata(directory)
    if "pair_loss" in model_metadata:
        return model_metadata["pair_loss"]
    # Models of earlier versions name the loss in their configuration only.
    config = json.loads(asset(directory, signatures.CONFIG_FILE) or "{}")
    return config.get("loss", {}).get("name", "")
