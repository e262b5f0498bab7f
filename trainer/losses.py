"""Losses over pairs of image and text embeddings."""

from typing import NamedTuple

import tensorflow as tf

from sigline.trainer import collectives


class SigmoidLoss(NamedTuple):
    """The loss of one replica and what is logged beside it.

    Attributes:
        loss: Scalar; the sum over replicas is the loss of the global batch.
        positive_logit_mean: Scalar; the mean over replicas is that of the global batch.
        negative_logit_mean: As `positive_logit_mean`; zero for a batch of one pair.
    """

    loss: tf.Tensor
    positive_logit_mean: tf.Tensor
    negative_logit_mean: tf.Tensor


def sigmoid_loss(
    image: tf.Tensor, text: tf.Tensor, *, temperature: tf.Tensor, bias: tf.Tensor
) -> SigmoidLoss:
    """Pairwise sigmoid loss of SigLIP over all pairs of the global batch.

    With logits `l_ij = temperature * image_i . text_j + bias` it is

        1/B * (sum_ij softplus(l_ij) - sum_i l_ii),

    that is, every pair is a binary classification, summed over pairs and divided by the global
    batch size B. Under a `tf.distribute` strategy the texts of all replicas are gathered, so a
    replica's images meet every text.

    Args:
        image: Unit-norm embeddings of this replica, shape `(batch, dim)`, float32.
        text: As `image`; row i belongs to image i.
        temperature: Scalar, positive.
        bias: Scalar.

    Returns:
        The replica's share of the loss and the mean logits.

    Source: arXiv 2303.15343, section 3.2 and algorithm 1.
    """
    texts = collectives.all_gather(text)
    global_batch = tf.cast(tf.shape(texts)[0], tf.float32)
    local_batch = tf.cast(tf.shape(image)[0], tf.float32)
    logits = temperature * tf.matmul(image, texts, transpose_b=True) + bias
    positives = temperature * tf.reduce_sum(image * text, axis=-1) + bias
    # Rows first, then the batch: as one fused reduction the value is wrong by up to 6 % under
    # XLA:CPU of TF 2.21 at large batches, while the gradients are right.
    rows = tf.reduce_sum(tf.nn.softplus(logits), axis=-1) - positives
    negatives = tf.reduce_sum(tf.reduce_sum(logits, axis=-1) - positives)
    num_negatives = tf.maximum(local_batch * (global_batch - 1.0), 1.0)
    return SigmoidLoss(
        loss=tf.reduce_sum(rows) / global_batch,
        positive_logit_mean=tf.reduce_mean(positives),
        negative_logit_mean=negatives / num_negatives,
    )
