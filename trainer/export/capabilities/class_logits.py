"""The logits of all classes of the head; an image that does not decode gets zeros."""

from typing import Any

import tensorflow as tf

from sigline.schemas import signatures
from sigline.trainer.export.served import IMAGES, Served
from sigline.trainer.models import two_tower

NAME = signatures.CLASS_LOGITS


def make(served: Served, grid: int | None = None) -> Any:
    """Returns the signature, of the default grid or of another; None for one without a head."""
    if served.config.image.classes is None:
        return None

    @tf.function(input_signature=[IMAGES], autograph=False)
    def class_logits(image_bytes):
        pixels, valid = served.load_valid(image_bytes)
        logits = served.look(pixels, grid)[two_tower.CLASSES]
        logits = tf.where(valid[:, None], logits, 0.0)
        return {signatures.LOGITS: logits, signatures.VALID: valid}

    return class_logits
