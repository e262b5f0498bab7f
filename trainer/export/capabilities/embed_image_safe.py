"""Embeds encoded images; one that does not decode gets zeros, and is marked as invalid."""

from typing import Any

import tensorflow as tf

from sigline.schemas import signatures
from sigline.trainer.export.served import IMAGES, Served

NAME = signatures.EMBED_IMAGE_SAFE


def make(served: Served, grid: int | None = None) -> Any:
    """Returns the signature, of the default grid or of another; every model has it."""

    @tf.function(input_signature=[IMAGES], autograph=False)
    def embed_image_safe(image_bytes):
        pixels, valid = served.load_valid(image_bytes)
        embedding = tf.where(valid[:, None], served.embed_images(pixels, grid), 0.0)
        return {signatures.EMBEDDING: embedding, signatures.VALID: valid}

    return embed_image_safe
