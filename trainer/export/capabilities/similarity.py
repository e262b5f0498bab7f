"""Compares every image with every text: logits and probabilities `(images, texts)`."""

from typing import Any

import tensorflow as tf

from sigline.schemas import signatures
from sigline.trainer.export.served import IMAGES, TEXTS, Served

NAME = signatures.SIMILARITY


def make(served: Served, grid: int | None = None) -> Any:
    """Returns the signature, of the default grid or of another; None for one of images alone."""
    if served.tokenizer is None:
        return None

    @tf.function(input_signature=[IMAGES, TEXTS], autograph=False)
    def similarity(image_bytes, text):
        image = served.embed_images(served.load(image_bytes), grid)
        logits = served.logits(image, served.embed_texts(text))
        probabilities = served.probabilities(logits)
        return {signatures.LOGITS: logits, signatures.PROBABILITIES: probabilities}

    return similarity
