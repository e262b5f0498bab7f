"""From embeddings to metrics."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from sigline.trainer import metrics

RECALL_AT = (1, 5, 10)

ZERO_SHOT_ACCURACY = "zero_shot_accuracy"
ZERO_SHOT_CHANCE = "zero_shot_chance"


@dataclass(frozen=True)
class EmbeddedPair:
    """What evaluation needs of one record.

    Attributes:
        key: The record's key.
        source: Its source.
        label: Its class ids; empty where it has none.
        text: Its captions.
        image_embedding: Shape `(dim,)`, float32.
        text_embedding: Shape `(captions, dim)`, float32.
    """

    key: str
    source: str
    label: tuple[int, ...]
    text: tuple[str, ...]
    image_embedding: np.ndarray
    text_embedding: np.ndarray


def evaluate(pairs: Iterable[EmbeddedPair], classes: np.ndarray | None) -> dict[str, float]:
    """Computes all metrics over the eval split.

    `zero_shot_accuracy` is over the records with a label, also by source as
    `zero_shot_accuracy/SOURCE`; `zero_shot_chance` is the accuracy of guessing.
    `image_to_text_recall@k` and `text_to_image_recall@k` are over all records, each with the recall
    of a random order beside it (`..._chance@k`). Captions that read the same are one text, which
    all their images match.

    Args:
        pairs: The embedded records, in any order.
        classes: One unit vector a class, shape `(classes, dim)`, if there is a label set.

    Raises:
        ValueError: If there are no records.
    """
    pairs = sorted(pairs, key=lambda pair: (pair.source, pair.key, pair.text))
    if not pairs:
        raise ValueError("The eval split holds no records: there is nothing to judge the model by.")
    found = {"examples": float(len(pairs))}
    if classes is not None:
        found |= _zero_shot([pair for pair in pairs if pair.label], classes)
    return found | _retrieval(pairs)


def _zero_shot(pairs: list[EmbeddedPair], classes: np.ndarray) -> dict[str, float]:
    if not pairs:
        return {}
    image = np.stack([pair.image_embedding for pair in pairs])
    predicted = metrics.zero_shot_predictions(image, classes)
    # A record with several labels is right if the prediction is one of them.
    hits = np.array([p in pair.label for p, pair in zip(predicted, pairs, strict=True)])
    found = {ZERO_SHOT_ACCURACY: float(hits.mean()), ZERO_SHOT_CHANCE: 1.0 / len(classes)}
    for source in sorted({pair.source for pair in pairs}):
        inside = np.array([pair.source == source for pair in pairs])
        found[f"{ZERO_SHOT_ACCURACY}/{source}"] = float(hits[inside].mean())
    return found


def _retrieval(pairs: list[EmbeddedPair]) -> dict[str, float]:
    position: dict[str, int] = {}
    text_embeddings: list[np.ndarray] = []
    texts_of_image = []
    for pair in pairs:
        for text, embedding in zip(pair.text, pair.text_embedding, strict=True):
            if text not in position:
                position[text] = len(text_embeddings)
                text_embeddings.append(embedding)
        texts_of_image.append(np.array([position[text] for text in pair.text]))
    images_of_text: list[list[int]] = [[] for _ in text_embeddings]
    for image, texts in enumerate(texts_of_image):
        for text in texts:
            images_of_text[text].append(image)
    image = np.stack([pair.image_embedding for pair in pairs])
    text = np.stack(text_embeddings)
    positives = [np.array(images) for images in images_of_text]
    found = {}
    for name, query, gallery, wanted in (
        ("image_to_text", image, text, texts_of_image),
        ("text_to_image", text, image, positives),
    ):
        recall = metrics.recall_at_k(query, gallery, wanted, RECALL_AT)
        chance = metrics.chance_recall_at_k(len(gallery), wanted, RECALL_AT)
        for k in RECALL_AT:
            found[f"{name}_recall@{k}"] = recall[k]
            found[f"{name}_chance@{k}"] = chance[k]
    return found
