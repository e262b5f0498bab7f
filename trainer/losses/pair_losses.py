"""Losses over all pairs of the global batch, exact and without the matrix of pairs.

Each loss walks the pairs in blocks (a chunk of texts, its own or a visitor's, times the replica's
images), and computes its gradients in closed form in the same walk, so that nothing of a block is
kept: the memory beyond the embeddings is a few times that of one block, and the gradients.

Products of embeddings are float32 whatever the inputs; a GPU may use TF32 and a TPU bfloat16 passes
for them, as everywhere. All else, sums included, is float32. Second derivatives are not defined.
"""

from typing import Any, NamedTuple

import tensorflow as tf

from sigline.trainer.losses import collectives, pair_sums, tiling
from sigline.trainer.losses.collectives import Exchange
from sigline.trainer.losses.negatives import Negatives
from sigline.trainer.losses.pair_labels import PairLabels


class PairLoss(NamedTuple):
    """The loss of one replica and what is logged beside it.

    Attributes:
        loss: Scalar; the sum over replicas is the loss of the global batch.
        positive_logit_mean: Mean logit of this replica's images with the texts that belong to them;
            with labels, weighted by target and weight. No gradient flows through the means.
        negative_logit_mean: The same for all other texts that count; zero if there are none.
    """

    loss: tf.Tensor
    positive_logit_mean: tf.Tensor
    negative_logit_mean: tf.Tensor


def sigmoid_loss(
    image: tf.Tensor,
    text: tf.Tensor,
    *,
    temperature: tf.Tensor,
    bias: tf.Tensor,
    labels: PairLabels | None = None,
    negatives: Negatives | None = None,
    chunk_size: int | None = None,
    exchange: Exchange | None = None,
) -> PairLoss:
    """Pairwise sigmoid loss of SigLIP over all pairs of the global batch.

    With logits `l_ij = temperature * image_i . text_j + bias` and labels p_ij it is

        1/B * sum_ij w_ij * (p_ij * softplus(-l_ij) + (1 - p_ij) * softplus(l_ij)),

    that is, every pair is a binary classification, summed over pairs and divided by the global
    batch size B. By default p is the identity and w is one. Of the gradient
    `g_ij = w_ij * (sigmoid(l_ij) - p_ij) / B` with respect to the logits all others follow:
    `temperature * g @ text` of the images, `temperature * g^T @ image` of the texts, `sum(g)` of
    the bias and `sum(g * image @ text^T)` of the temperature.

    Args:
        image: Unit-norm embeddings of this replica, shape `(batch, dim)`, of any float type.
        text: As `image`; row i belongs to image i.
        temperature: Scalar, positive.
        bias: Scalar.
        labels: What the pairs should be, if not the identity.
        negatives: Which negatives count, if not all.
        chunk_size: Texts per block; by default such that a block has some four million pairs, but
            at least 512. The result does not depend on it.
        exchange: How replicas meet; by default that of the strategy this is called under.

    Returns:
        The replica's share of the loss and the mean logits.

    Raises:
        ValueError: If the shapes do not fit or `chunk_size` is not positive.
        RuntimeError: If it is called outside of a replica context.

    Source: arXiv 2303.15343, section 3.2 and algorithm 1.
    """
    exchange = exchange or collectives.exchange_for_context()
    chunk_size = _check(image, text, chunk_size)
    temperature, bias = _scalar("temperature", temperature), _scalar("bias", bias)
    if labels is not None:
        labels = labels.without_gradient()
    if negatives is not None:
        labels = negatives.select(
            tf.stop_gradient(image),
            tf.stop_gradient(text),
            labels=labels,
            chunk_size=chunk_size,
            exchange=exchange,
        )

    @tf.custom_gradient
    def compute(*inputs):
        # An eager tape would record the walk itself, and keep every block.
        image, text, temperature, bias = map(tf.stop_gradient, inputs)
        walk = pair_sums.SigmoidWalk(image, text, temperature, bias, labels, chunk_size)
        text_slopes, state = exchange.sweep(
            walk.visit, walk.rows, walk.initial_state(), merge=tf.add
        )
        global_batch = exchange.sum(tf.cast(tf.shape(image)[0], tf.float32))
        outcome = PairLoss(
            tiling.sum_all(state.loss) / global_batch,
            *tf.unstack(walk.logit_means(state, global_batch)),
        )
        scale = temperature / global_batch
        partials = (
            scale * state.image_slopes,
            scale * (text_slopes + walk.own_text_slopes()),
            _sum_of_products(walk.image, state.image_slopes) / global_batch,
            tiling.sum_all(state.slopes) / global_batch,
        )
        return outcome, lambda upstream, *_: _scaled(partials, upstream, inputs)

    return _as_pair_loss(compute(image, text, temperature, bias))


def softmax_loss(
    image: tf.Tensor,
    text: tf.Tensor,
    *,
    temperature: tf.Tensor,
    chunk_size: int | None = None,
    exchange: Exchange | None = None,
) -> PairLoss:
    """Symmetric softmax loss of CLIP over all pairs of the global batch.

    With logits `l_ij = temperature * image_i . text_j` it is

        1/(2B) * sum_i (logsumexp_j(l_ij) - l_ii) + 1/(2B) * sum_j (logsumexp_i(l_ij) - l_jj).

    The blocks are walked twice: for the sums of the exponentials, then for the gradients.

    Args:
        image: Unit-norm embeddings of this replica, shape `(batch, dim)`, of any float type.
        text: As `image`; row i belongs to image i.
        temperature: Scalar, positive.
        chunk_size: As in `sigmoid_loss`.
        exchange: As in `sigmoid_loss`.

    Returns:
        The replica's share of the loss and the mean logits.

    Raises:
        ValueError: If the shapes do not fit or `chunk_size` is not positive.
        RuntimeError: If it is called outside of a replica context.

    Source: arXiv 2103.00020, section 2.3 and figure 3.
    """
    exchange = exchange or collectives.exchange_for_context()
    chunk_size = _check(image, text, chunk_size)
    temperature = _scalar("temperature", temperature)

    @tf.custom_gradient
    def compute(*inputs):
        image, text, temperature = map(tf.stop_gradient, inputs)
        walk = pair_sums.SoftmaxWalk(image, text, temperature, chunk_size)
        text_others, image_others = exchange.sweep(
            walk.visit_for_sums, text, walk.no_others(), merge=pair_sums.logaddexp
        )
        shares, text_sums, state = walk.finish_sums(image_others, text_others)
        text_slopes, state = exchange.sweep(
            walk.visit_for_gradients, (text, text_sums), state, merge=tf.add
        )
        global_batch = exchange.sum(tf.cast(tf.shape(image)[0], tf.float32))
        outcome = PairLoss(
            tiling.sum_all(shares) / global_batch,
            *tf.unstack(
                pair_sums.identity_logit_means(
                    walk.image, walk.text, state.text_sum, temperature, 0.0, global_batch
                )
            ),
        )
        scale = temperature / global_batch
        partials = (
            scale * state.image_slopes,
            scale * text_slopes,
            _sum_of_products(walk.image, state.image_slopes) / global_batch,
        )
        return outcome, lambda upstream, *_: _scaled(partials, upstream, inputs)

    return _as_pair_loss(compute(image, text, temperature))


@tf.function(jit_compile=True, autograph=False)
def _sum_of_products(x, y):
    """Returns the sum of x * y over all entries."""
    return tiling.sum_rows(tiling.sum_rows(tf.transpose(x * y)))


def _as_pair_loss(outputs: Any) -> PairLoss:
    return PairLoss(*outputs)


def _scalar(name: str, x: Any) -> tf.Tensor:
    x = tf.cast(tf.convert_to_tensor(x), tf.float32)
    if x.shape.rank != 0:
        raise ValueError(f"{name} must be a scalar. Received: {name}.shape={x.shape}")
    return x


def _scaled(partials, upstream: tf.Tensor, inputs) -> list[tf.Tensor]:
    """Returns the gradients of the inputs, in their types; until here all is float32."""
    pairs = zip(partials, inputs, strict=True)
    return [tf.cast(partial * upstream, x.dtype) for partial, x in pairs]


def _check(image: Any, text: Any, chunk_size: int | None) -> int:
    """Returns the texts per block; checks what a block could not report clearly."""
    fits = (
        image.shape.rank == 2
        and image.shape[1] is not None
        and text.shape[1:] == image.shape[1:]
        and image.shape.is_compatible_with(text.shape)
    )
    if not fits:
        raise ValueError(
            "image and text must have the same shape (batch, dim) with a known dim. "
            f"Received: image.shape={image.shape}, text.shape={text.shape}"
        )
    if chunk_size is None:
        return tiling.default_chunk_size(image.shape[0])
    if chunk_size < 1:
        raise ValueError(f"chunk_size must be positive. Received: chunk_size={chunk_size}")
    return chunk_size
