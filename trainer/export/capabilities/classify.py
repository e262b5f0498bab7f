"""Classifies images: the best class names and their probabilities.

By the head, if the model has one; else against the label set, whose prompts are embedded at export.
If the head learnt a tree of classes, a probability is that among the classes of one level, so that
classes of several levels may each be near 1.
"""

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from sigline.schemas import signatures
from sigline.trainer.config.objectives import check_tree
from sigline.trainer.export.served import IMAGES, Served
from sigline.trainer.losses import semantic_softmax
from sigline.trainer.models import two_tower

NAME = signatures.CLASSIFY
_TOP_CLASSES = 5


def make(served: Served, grid: int | None = None) -> Any:
    """Returns the signature, of the default grid or of another.

    It is None for a model without a head and a label set.

    Raises:
        ValueError: If the label set has not as many classes as the head, or no tree of them for a
            head that learnt one.
    """
    if served.config.image.classes is not None:
        names, probabilities = _names(served), _by_head(served, grid)
    elif served.labels is not None and served.tokenizer is not None:
        names, probabilities = served.labels.names, _by_texts(served, grid)
    else:
        return None
    # Names and embeddings of the classes are those of all grids, and stored once.
    if served.class_names is None:
        served.class_names = tf.constant(names)
    count = min(_TOP_CLASSES, len(names))

    @tf.function(input_signature=[IMAGES], autograph=False)
    def classify(image_bytes):
        scores, ids = tf.math.top_k(probabilities(image_bytes), k=count)
        return {
            signatures.CLASSES: tf.gather(served.class_names, ids),
            signatures.SCORES: scores,
        }

    return classify


def _names(served: Served) -> tuple[str, ...]:
    """Returns the names of a head's classes: those of the label set, else their numbers."""
    count, labels = served.config.image.classes, served.labels
    names = labels.names if labels else tuple(str(i) for i in range(count or 0))
    if len(names) != count:
        raise ValueError(
            "The label set must have as many classes as the model's head. "
            f"Received: classes={len(names)}, image.classes={count}"
        )
    return names


def _by_head(served: Served, grid: int | None) -> Callable[[tf.Tensor], tf.Tensor]:
    scale = _scale(served)
    return lambda images: scale(served.look(served.load(images), grid)[two_tower.CLASSES])


def _scale(served: Served) -> Callable[[tf.Tensor], tf.Tensor]:
    """Returns what makes probabilities of a head's logits."""
    loss = served.config.class_loss
    if loss == "semantic":
        check_tree(served.config.objectives, served.labels)
        assert served.labels is not None
        levels = semantic_softmax.levels_of(served.labels.parents)
        return lambda logits: semantic_softmax.semantic_probabilities(logits, levels=levels)
    return tf.sigmoid if loss == "sigmoid" else tf.nn.softmax


def _by_texts(served: Served, grid: int | None) -> Callable[[tf.Tensor], tf.Tensor]:
    assert served.labels is not None
    classes = served.class_embeddings
    if classes is None:
        embeddings = two_tower.embed_classes(served.embed_texts, served.labels)
        served.class_embeddings = classes = tf.Variable(embeddings, trainable=False)

    def probabilities(images: tf.Tensor) -> tf.Tensor:
        image = served.embed_images(served.load(images), grid)
        logits = served.logits(image, tf.convert_to_tensor(classes))
        return served.probabilities(logits)

    return probabilities
