"""Losses over all pairs of the global batch, exact and without the matrix of pairs.

Each loss walks the pairs in blocks (a chunk of texts, its own or a visitor's, times the replica's
images), and computes its gradients in closed form in the same walk, so that nothing of a block is
kept: the memory beyond the embeddings is a few times that of one block, and the gradients.

Products of embeddings are float32 whatever the inputs; a GPU may use TF32 and a TPU bfloat16 passes
for them, as everywhere. All else, sums included, is float32. Second derivatives are not defined.
"""

from typing import Any, NamedTuple

import tensorflow as tf

from sigline.trainer import blocks, collectives
from sigline.trainer.collectives import Exchange
from sigline.trainer.negatives import Negatives
from sigline.trainer.pair_labels import PairLabels

# Stands for the logit of a pair that does not count; finite, so that no inf - inf is NaN.
_NO_LOGIT = -1e30


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
        walk = _SigmoidWalk(image, text, temperature, bias, labels, chunk_size)
        text_slopes, state = exchange.sweep(
            walk.visit, walk.rows, walk.initial_state(), merge=tf.add
        )
        global_batch = exchange.sum(tf.cast(tf.shape(image)[0], tf.float32))
        outcome = PairLoss(
            blocks.sum_all(state.loss) / global_batch,
            *tf.unstack(walk.logit_means(state, global_batch)),
        )
        scale = temperature / global_batch
        partials = (
            scale * state.image_slopes,
            scale * (text_slopes + walk.own_text_slopes()),
            _sum_of_products(walk.image, state.image_slopes) / global_batch,
            blocks.sum_all(state.slopes) / global_batch,
        )
        return outcome, lambda upstream, *_: _scaled(partials, upstream, inputs)

    return _as_pair_loss(compute(image, text, temperature, bias))


class _SigmoidState(NamedTuple):
    """Sums over the texts that were met.

    Attributes:
        loss: Per image.
        slopes: Derivatives of the loss by the logits, per image.
        image_slopes: Slopes times texts, per image.
        statistics: By label, sums per image of weight * logit and of weight. For the identity,
            which has closed forms for them, the sum of all texts.
    """

    loss: tf.Tensor
    slopes: tf.Tensor
    image_slopes: tf.Tensor
    statistics: tuple[tf.Tensor, ...]


class _SigmoidWalk:
    """The mathematics of one block of the sigmoid loss.

    With the identity as labels, blocks hold negatives only, and the positives, one an image, are
    added apart. So neither has to be told from the other away from home, each has its own sign, and
    neither softplus(l) - l nor sigmoid(l) - 1 loses digits where l is large.
    """

    def __init__(self, image, text, temperature, bias, labels: PairLabels | None, chunk_size: int):
        self.image = tf.cast(image, tf.float32)
        self.text = tf.cast(text, tf.float32)
        self.temperature, self.bias = temperature, bias
        self.labels = labels
        self.chunk_size = chunk_size
        self.rows = (text, () if labels is None else labels.text)
        self.found = tf.TensorSpec((text.shape[1],), tf.float32)
        if labels is None:
            self._own = _identity_positives(self.image, self.text, temperature, bias)

    def initial_state(self) -> _SigmoidState:
        zeros = tf.zeros_like(self.image[:, 0])
        if self.labels is not None:
            nothing = tf.zeros_like(self.image)
            return _SigmoidState(zeros, zeros, nothing, (zeros, zeros, zeros, zeros))
        losses, slopes = self._own
        statistics = (tf.zeros_like(self.text[0]),)
        return _SigmoidState(losses, slopes, slopes[:, tf.newaxis] * self.text, statistics)

    def own_text_slopes(self):
        """Returns what the positives add to the slopes times images of this replica's texts."""
        return 0.0 if self.labels is not None else self._own[1][:, tf.newaxis] * self.image

    def visit(self, rows, state, home: bool):
        """Meets the texts of one replica; see `collectives.Visit`."""

        def visit_chunk(chunk, start, state):
            return self._visit_chunk(chunk, start, state, home)

        return blocks.over_chunks(
            visit_chunk, rows, state, found=self.found, chunk_size=self.chunk_size
        )

    def _visit_chunk(self, chunk, start, state: _SigmoidState, home: bool):
        text, features = chunk
        text = tf.cast(text, tf.float32)
        logits = tf.matmul(text * self.temperature, self.image, transpose_b=True)
        if self.labels is None:
            # Text i of the chunk belongs to image start + i; a visitor's to none of them.
            slopes, sums = _negatives_block(logits, self.bias, start if home else None)
            statistics = (state.statistics[0] + tf.reduce_sum(text, 0),)
        else:
            targets, weights = self.labels.checked_block(features, logits.shape)
            slopes, sums, found = _labelled_block(logits, self.bias, targets, weights)
            statistics = tuple(a + b for a, b in zip(state.statistics, found, strict=True))
        state = _SigmoidState(
            state.loss + sums[0],
            state.slopes + sums[1],
            state.image_slopes + tf.matmul(slopes, text, transpose_a=True),
            statistics,
        )
        return tf.matmul(slopes, self.image), state

    def logit_means(self, state: _SigmoidState, global_batch):
        """Returns the mean logits of positives and of negatives, shape `(2,)`."""
        if self.labels is None:
            (text_sum,) = state.statistics
            return _identity_logit_means(
                self.image, self.text, text_sum, self.temperature, self.bias, global_batch
            )
        sums = tf.stack([tf.reduce_sum(x) for x in state.statistics])
        return sums[::2] / tf.maximum(sums[1::2], 1e-30)


def _identity_logit_means(image, text, text_sum, temperature, bias, global_batch):
    """Returns the mean logits of positives and negatives from the sum of all texts, `(2,)`."""
    batch = tf.cast(tf.shape(image)[0], tf.float32)
    positive = tf.reduce_sum(image * text)
    negative = tf.reduce_sum(tf.reduce_sum(image, 0) * text_sum) - positive
    others = batch * (global_batch - 1.0)
    # Without negatives the mean is zero, not the bias.
    mean = temperature * negative / tf.maximum(others, 1.0) + bias * tf.minimum(others, 1.0)
    return tf.stack([temperature * positive / batch + bias, mean])


@tf.function(jit_compile=True, autograph=False)
def _negatives_block(logits, bias, diagonal):
    """Returns the slopes of a block of negatives, and sums of losses and slopes per image.

    Compiled by XLA on every device: few passes over the block instead of a dozen.

    Args:
        logits: Without the bias, shape `(texts, images)`.
        bias: Scalar.
        diagonal: If not None, pairs (i, diagonal + i) are positives and do not count.
    """
    logits += bias
    if diagonal is not None:
        logits = tf.where(blocks.positives(logits, diagonal), _NO_LOGIT, logits)
    losses, slopes = _softplus_and_sigmoid(logits)
    return slopes, [blocks.sum_rows(x) for x in (losses, slopes)]


@tf.function(jit_compile=True, autograph=False)
def _identity_positives(image, text, temperature, bias):
    """Returns loss and slope of each image with its own text."""
    logits = temperature * tf.reduce_sum(image * text, -1) + bias
    losses, sigmoids = _softplus_and_sigmoid(-logits)
    return losses, -sigmoids


@tf.function(jit_compile=True, autograph=False)
def _labelled_block(logits, bias, targets, weights):
    """As `_negatives_block` for any labels; sums up the logits by label, too."""
    logits += bias
    positive_weights, negative_weights = weights * targets, weights * (1.0 - targets)
    losses, sigmoids = _softplus_and_sigmoid(-logits)
    positives = positive_weights * losses, -positive_weights * sigmoids
    losses, sigmoids = _softplus_and_sigmoid(logits)
    negatives = negative_weights * losses, negative_weights * sigmoids
    # Summed apart, since the ones are few and large and the others many and small.
    sums = [
        blocks.sum_rows(x) + blocks.sum_rows(y) for x, y in zip(positives, negatives, strict=True)
    ]
    statistics = [
        blocks.sum_rows(x)
        for weights in (positive_weights, negative_weights)
        for x in (weights * logits, weights)
    ]
    return positives[1] + negatives[1], sums, statistics


@tf.function(jit_compile=True, autograph=False)
def _sum_of_products(x, y):
    """Returns the sum of x * y over all entries."""
    return blocks.sum_rows(blocks.sum_rows(tf.transpose(x * y)))


def _softplus_and_sigmoid(x):
    """Returns both from one exponential, without overflow."""
    small = tf.exp(-tf.abs(x))
    larger = 1.0 / (1.0 + small)
    return tf.maximum(x, 0.0) + tf.math.log1p(small), tf.where(x >= 0, larger, small * larger)


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
        walk = _SoftmaxWalk(image, text, temperature, chunk_size)
        text_others, image_others = exchange.sweep(
            walk.visit_for_sums, text, walk.no_others(), merge=_logaddexp
        )
        shares, text_sums, state = walk.finish_sums(image_others, text_others)
        text_slopes, state = exchange.sweep(
            walk.visit_for_gradients, (text, text_sums), state, merge=tf.add
        )
        global_batch = exchange.sum(tf.cast(tf.shape(image)[0], tf.float32))
        outcome = PairLoss(
            blocks.sum_all(shares) / global_batch,
            *tf.unstack(
                _identity_logit_means(
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


class _SoftmaxState(NamedTuple):
    """Sums over the texts that were met."""

    image_slopes: tf.Tensor
    text_sum: tf.Tensor


class _SoftmaxWalk:
    """The mathematics of one block of the softmax loss.

    With the logsumexp m_i over the others of a row, its loss is softplus(m_i - l_ii), and the slope
    of its positive -sigmoid(m_i - l_ii): both keep their digits where they are small.
    """

    def __init__(self, image, text, temperature, chunk_size: int):
        self.image = tf.cast(image, tf.float32)
        self.text = tf.cast(text, tf.float32)
        self.temperature = temperature
        self.chunk_size = chunk_size

    def no_others(self):
        """Returns the logsumexp over no texts, one an image."""
        return tf.fill(tf.shape(self.image)[:1], _NO_LOGIT)

    def visit_for_sums(self, text, image_others, home: bool):
        """Finds the texts' logsumexp over the other images; adds to that of the images."""

        def visit_chunk(text, start, image_others):
            text_others, met = _logsumexps(self._logits(text), self._diagonal(start, home))
            return text_others, _logaddexp(image_others, met)

        return blocks.over_chunks(
            visit_chunk,
            text,
            image_others,
            found=tf.TensorSpec((), tf.float32),
            chunk_size=self.chunk_size,
        )

    def finish_sums(self, image_others, text_others):
        """Returns each pair's share of the loss, the texts' logsumexp, and the state to go on."""
        shares, self.own_slopes, self.image_sums, text_sums = _softmax_positives(
            self.image, self.text, self.temperature, image_others, text_others
        )
        state = _SoftmaxState(tf.zeros_like(self.image), tf.zeros_like(self.text[0]))
        return shares, text_sums, state

    def visit_for_gradients(self, rows, state, home: bool):
        """Meets the texts of one replica once the sums over all pairs are known."""

        def visit_chunk(chunk, start, state: _SoftmaxState):
            text, text_sums = chunk
            text = tf.cast(text, tf.float32)
            slopes = _softmax_block(
                self._logits(text),
                self.image_sums,
                text_sums,
                self.own_slopes,
                self._diagonal(start, home),
            )
            state = _SoftmaxState(
                state.image_slopes + tf.matmul(slopes, text, transpose_a=True),
                state.text_sum + tf.reduce_sum(text, 0),
            )
            return tf.matmul(slopes, self.image), state

        found = tf.TensorSpec((self.text.shape[1],), tf.float32)
        return blocks.over_chunks(visit_chunk, rows, state, found=found, chunk_size=self.chunk_size)

    def _diagonal(self, start, home: bool):
        return start if home else tf.shape(self.image)[0]

    def _logits(self, text):
        text = tf.cast(text, tf.float32) * self.temperature
        return tf.matmul(text, self.image, transpose_b=True)


@tf.function(jit_compile=True, autograph=False)
def _logsumexps(logits, diagonal):
    """Returns the logsumexp of each row and of each column, without the positives."""
    positive = blocks.positives(logits, diagonal)
    logits = tf.where(positive, _NO_LOGIT, logits)

    def over_rows(x):
        largest = tf.reduce_max(x, 0)
        return tf.math.log(blocks.sum_rows(tf.exp(x - largest))) + largest

    return over_rows(tf.transpose(logits)), over_rows(logits)


@tf.function(jit_compile=True, autograph=False)
def _softmax_positives(image, text, temperature, image_others, text_others):
    """Returns each pair's loss and slope, and the logsumexp of its image and of its text."""
    positives = temperature * tf.reduce_sum(image * text, -1)
    image_losses, image_sigmoids = _softplus_and_sigmoid(image_others - positives)
    text_losses, text_sigmoids = _softplus_and_sigmoid(text_others - positives)
    return (
        0.5 * (image_losses + text_losses),
        -0.5 * (image_sigmoids + text_sigmoids),
        positives + image_losses,
        positives + text_losses,
    )


@tf.function(jit_compile=True, autograph=False)
def _softmax_block(logits, image_sums, text_sums, own_slopes, diagonal):
    """Returns the slopes of a block."""
    positive = blocks.positives(logits, diagonal)
    slopes = 0.5 * (tf.exp(logits - image_sums) + tf.exp(logits - text_sums[:, tf.newaxis]))
    return tf.where(positive, own_slopes, slopes)


def _logaddexp(x, y):
    larger, smaller = tf.maximum(x, y), tf.minimum(x, y)
    return larger + tf.math.log1p(tf.exp(smaller - larger))


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
        return blocks.default_chunk_size(image.shape[0])
    if chunk_size < 1:
        raise ValueError(f"chunk_size must be positive. Received: chunk_size={chunk_size}")
    return chunk_size
