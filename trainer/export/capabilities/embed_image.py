"""Embeds encoded images; one that does not decode fails the request."""

from typing import Any

import tensorflow as tf

from sigline.schemas import signatures
from sigline.trainer.export.served import IMAGES, Served

NAME = signatures.EMBED_IMAGE


def make(served: Served, grid: int | None = None) -> Any:
    """Returns the signature, of the default grid or of another; every model has it."""

    @tf.function(input_signature=[IMAGES], autograph=False)
    def embed_image(image_bytes):
        return {signatures.EMBEDDING: served.embed_images(served.load(image_bytes), grid)}

    return embed_image
