"""Embeds texts."""

from typing import Any

import tensorflow as tf

from sigline.schemas import signatures
from sigline.trainer.export.served import TEXTS, Served

NAME = signatures.EMBED_TEXT


def make(served: Served) -> Any:
    """Returns the signature; None for a model of images alone."""
    if served.tokenizer is None:
        return None

    @tf.function(input_signature=[TEXTS], autograph=False)
    def embed_text(text):
        return {signatures.EMBEDDING: served.embed_texts(text)}

    return embed_text
