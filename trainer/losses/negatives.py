"""Which negatives of an image count: studies of the ratio of negatives to positives.

SigLIP's ablation of the batch's composition: all positives stay, and of the negatives only some,
random, the hardest or the easiest (arXiv 2303.15343).
"""

from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from sigline.trainer.losses import pair_labels, tiling
from sigline.trainer.losses.collectives import Exchange
from sigline.trainer.losses.pair_labels import PairLabels

KINDS = ("random", "hard", "easy")
# Bound on the rounding of a cosine, whose sum may be taken in another order.
_ROUNDING = 1e-6


@dataclass(frozen=True)
class Negatives:
    """A choice of negatives for each image, among all texts of the global batch.

    Costs one more walk over all pairs and memory for `per_image` numbers an image. Pairs whose
    target is not zero, or whose weight is, are no negatives. If scores tie, up to rounding, all
    that tie count. All replicas must hold equally many pairs.

    Attributes:
        kind: `random`; `hard`, those with the largest logits; or `easy`, with the smallest.
        per_image: How many stay; all of them if there are not more.
        seed: Of the random choice, an int or an int32 scalar; change it from step to step.
    """

    kind: str
    per_image: int
    seed: Any = 0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(
                f"kind must be one of {', '.join(KINDS)}. Received: kind={self.kind!r}"
            )
        if self.per_image < 1:
            raise ValueError(f"per_image must be at least 1. Received: per_image={self.per_image}")

    def select(
        self,
        image: tf.Tensor,
        text: tf.Tensor,
        *,
        labels: PairLabels | None,
        chunk_size: int,
        exchange: Exchange,
    ) -> PairLabels:
        """Returns labels with weight zero for the negatives that do not count.

        Args:
            image: Embeddings of this replica, shape `(batch, dim)`; no gradient flows into them.
            text: As `image`.
            labels: What the pairs should be; None for the identity.
            chunk_size: Texts per block.
            exchange: How replicas meet.
        """
        batch = tiling.num_rows(image)
        replica_id = exchange.replica_id()
        if labels is None:
            labels = pair_labels.identity(batch, replica_id)
        positions = replica_id * batch + tf.range(batch)
        # Random scores depend on the positions of a pair in the global batch only, so that neither
        # chunks nor replicas change the choice.
        image_key, text_key = (positions, positions) if self.kind == "random" else (image, text)
        images, texts = (labels.image, image_key), (labels.text, text_key)

        def visit(rows, best, home):
            del home

            def visit_chunk(chunk, start, best):
                del start
                scores = self._scores(labels, images, chunk)
                candidates = tf.concat([best, tf.transpose(scores)], axis=1)
                return [], tf.math.top_k(candidates, k=self.per_image).values

            return tiling.over_chunks(visit_chunk, rows, best, row_specs=[], chunk_size=chunk_size)

        # The first walk keeps the best scores of each image, from the texts of all replicas; texts
        # collect nothing. The last of the best is the threshold in the walk of the loss, which
        # computes the scores again: memory grows by image, never by pair.
        best = tf.fill((batch, self.per_image), tf.constant(float("-inf")))
        _, best = exchange.sweep(visit, texts, best, merge=tf.add)

        def block(image, text):
            *images, threshold = image
            targets, weights = labels.block(images[0], text[0])
            kept = tf.cast(self._scores(labels, images, text) >= threshold, tf.float32)
            kept = tf.where(targets > 0.0, 1.0, kept)
            return targets, kept if weights is None else weights * kept

        threshold = best[:, -1]
        if self.kind != "random":
            # The same product may come out otherwise in the next walk, where its block is another.
            threshold -= _ROUNDING
        return PairLabels((*images, threshold), texts, block)

    def _scores(self, labels: PairLabels, images, texts) -> tf.Tensor:
        """Returns what negatives are ranked by, `(texts, images)`; minus infinity for others."""
        targets, weights = labels.block(images[0], texts[0])
        if self.kind == "random":
            scores = _hash(images[1], texts[1][:, tf.newaxis], self.seed)
        else:
            text, image = (tf.cast(x, tf.float32) for x in (texts[1], images[1]))
            products = tf.matmul(text, image, transpose_b=True)
            scores = products if self.kind == "hard" else -products
        negative = targets <= 0.0
        if weights is not None:
            negative &= weights > 0.0
        return tf.where(negative, scores, float("-inf"))


def _hash(image: tf.Tensor, text: tf.Tensor, seed: Any) -> tf.Tensor:
    """Returns a number in [0, 1) for each pair of positions: MurmurHash3's finaliser, chained."""
    value = tf.cast(tf.convert_to_tensor(seed), tf.uint32)
    for part in (image, text):
        # The added constant keeps position 0 under seed 0 from 0, the fixed point of the mixing.
        value = _mix(tf.bitwise.bitwise_xor(value, tf.cast(part, tf.uint32) + _uint32(0x9E3779B9)))
    # A float32 holds 24 bits exactly.
    return tf.cast(tf.bitwise.right_shift(value, _uint32(8)), tf.float32) * 2.0**-24


def _mix(value: tf.Tensor) -> tf.Tensor:
    # Shifts and factors of MurmurHash3's fmix32; its last shift follows the loop.
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        value = tf.bitwise.bitwise_xor(value, tf.bitwise.right_shift(value, _uint32(shift)))
        value *= _uint32(factor)
    return tf.bitwise.bitwise_xor(value, tf.bitwise.right_shift(value, _uint32(16)))


def _uint32(value: int) -> tf.Tensor:
    return tf.constant(value, tf.uint32)
