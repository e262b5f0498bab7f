"""Chooses pairs that keep how images and captions vary together, after ClipCov.

Joshi et al., "Data-Efficient Contrastive Language-Image Pretraining" (arXiv 2403.12267): within
latent classes, the subset is grown greedily by a score of which every part is a similarity.
"""

import numpy as np


def nearest_label(image: np.ndarray, labels: np.ndarray) -> int:
    """Returns the latent class of an image, `(dim,)`: the place of the most similar label."""
    return int(np.argmax(labels @ image.astype(np.float64)))


def greedy_subset(
    images: np.ndarray,
    texts: np.ndarray,
    size: int,
    *,
    label: np.ndarray,
    other_images: np.ndarray,
    other_texts: np.ndarray,
) -> list[int]:
    """Returns which pairs of a latent class are chosen, in the order in which they are.

    With `s(i, j) = images[i] @ texts[j] + images[j] @ texts[i]`, each step takes the pair `j` with
    the largest sum of

    - the mean of `s(i, j)` over the class, less that over what is chosen, as a share of the class:
      it must stand for many, and not for those that are stood for;
    - twice its own similarity, `2 images[j] @ texts[j]`: its caption must be its own;
    - the similarity of both to the class's label;
    - less the mean similarity of each to the centres of the other classes' captions and images.

    Args:
        images: Embeddings of unit length, `(pairs, dim)`.
        texts: Likewise, of the captions.
        size: How many to choose, at most all.
        label: Embedding of the label, `(dim,)`.
        other_images: Mean image embeddings of the other classes, `(classes, dim)`, maybe none.
        other_texts: Likewise, of the captions.

    Returns:
        Places; of equal scores the first is taken.
    """
    images, texts = images.astype(np.float64), texts.astype(np.float64)
    number = len(images)
    gains = (texts @ images.sum(axis=0) + images @ texts.sum(axis=0)) / number
    gains += 2 * np.einsum("pd,pd->p", images, texts)
    gains += (images + texts) @ label.astype(np.float64)
    if len(other_images):
        gains -= images @ other_texts.mean(axis=0) + texts @ other_images.mean(axis=0)
    chosen: list[int] = []
    for _ in range(min(size, number)):
        best = int(np.argmax(gains))
        chosen.append(best)
        gains -= (texts @ images[best] + images @ texts[best]) / number
        gains[best] = -np.inf
    return chosen
