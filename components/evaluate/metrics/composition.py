"""Compositional pairs: the same words or things, put together otherwise."""

import numpy as np

from sigline.components.evaluate.metrics.retrieval import TIE


def winoground(scores: np.ndarray) -> dict[str, np.ndarray]:
    """Scores groups of two images and two texts (Winoground, arXiv 2204.03162, section 3).

    A tie is a mistake.

    Args:
        scores: Shape `(groups, 2, 2)`, the similarity of image i and text j; i and j belong
            together where they are equal.

    Returns:
        Whether each group is right, shape `(groups,)`: `text_acc`, every image picks its text;
        `image_acc`, every text picks its image; `acc`, both.
    """
    first, second = scores[:, 0, 0] - TIE, scores[:, 1, 1] - TIE
    text = (first > scores[:, 0, 1]) & (second > scores[:, 1, 0])
    image = (first > scores[:, 1, 0]) & (second > scores[:, 0, 1])
    return {"text_acc": text, "image_acc": image, "acc": text & image}


def sugar_crepe(right: np.ndarray, wrong: np.ndarray) -> np.ndarray:
    """Whether each image prefers its caption to the altered one (arXiv 2306.14610), `(images,)`.

    Args:
        right: Similarity to the caption, shape `(images,)`.
        wrong: Similarity to the altered one, shape `(images,)`.
    """
    return right - TIE > wrong
