"""The distinct captions of a split."""

from dataclasses import dataclass

import numpy as np

from sigline.components.evaluate import slices
from sigline.components.evaluate.predictions import Predictions


@dataclass(frozen=True)
class Texts:
    """The distinct captions of a split, and which images they belong to.

    Attributes:
        text: The captions.
        embedding: Their embeddings, shape `(texts, dim)`.
        pairs: Positions of images and texts that belong together, shape `(pairs, 2)`.
        first: The first image of each, shape `(texts,)`.
        slices: The slice of each, by dimension: that of the first record that has it.
    """

    text: tuple[str, ...]
    embedding: np.ndarray
    pairs: np.ndarray
    first: np.ndarray
    slices: dict[str, list[slices.Value]]


def distinct_texts(split: Predictions) -> Texts:
    """Returns the captions; those that read the same are one, which all their images match.

    Args:
        split: Records with the embeddings of their captions.
    """
    assert split.text is not None
    position: dict[str, int] = {}
    rows, pairs, first, by = [], set(), [], []
    starts = split.text_starts
    for image, record in enumerate(split.records):
        for number, text in enumerate(record.text):
            if text not in position:
                position[text] = len(rows)
                rows.append(starts[image] + number)
                first.append(image)
                by.append(slices.of_caption(record, number))
            pairs.add((image, position[text]))
    return Texts(
        tuple(position),
        split.text[rows],
        np.array(sorted(pairs), np.int64).reshape(-1, 2),
        np.array(first),
        slices.transposed(by),
    )
