"""Compares every image with every text: logits and probabilities `(images, texts)`."""

from typing import Any

import tensorflow as tf

from sigline.schemas import signatures
from sigline.trainer.export.served import IMAGES, TEXTS, Served

NAME = signatures.SIMILARITY


def make(served: Served) -> Any:
    """Returns the signature; None for a model of images alone."""
    if served.tokenizer is None:
        return None

    @tf.function(input_signature=[IMAGES, TEXTS], autograph=False)
    def similarity(image_bytes, text):
        image = served.image_encoder(served.load(image_bytes))
        logits = served.logits(image, served.embed_texts(text))
        probabilities = served.probabilities(logits)
        return {signatures.LOGITS: logits, signatures.PROBABILITIES: probabilities}

    return similarity
