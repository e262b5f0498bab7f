"""The mathematics of one block of pairs, for each loss: sums and closed-form gradients.

A walk meets the texts of one replica after the other (`collectives.Exchange.sweep`), each in chunks
(`tiling.over_chunks`), and keeps nothing of a block but sums. All of it is float32.
"""

from typing import NamedTuple

import tensorflow as tf

from sigline.trainer.losses import tiling
from sigline.trainer.losses.pair_labels import PairLabels

# Stands for the logit of a pair that does not count; finite, so that no inf - inf is NaN.
_NO_LOGIT = -1e30


class SigmoidState(NamedTuple):
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


class SigmoidWalk:
    """The mathematics of one block of the sigmoid loss.

    With the identity as labels, blocks hold negatives only, and the positives, one an image, are
    added apart. So blocks away from home need no mask, each kind has its own sign, and neither
    softplus(l) - l nor sigmoid(l) - 1 loses digits where l is large.
    """

    def __init__(self, image, text, temperature, bias, labels: PairLabels | None, chunk_size: int):
        self.image = tf.cast(image, tf.float32)
        self.text = tf.cast(text, tf.float32)
        self.temperature, self.bias = temperature, bias
        self.labels = labels
        self.chunk_size = chunk_size
        self.rows = (text, () if labels is None else labels.text)
        self.row_spec = tf.TensorSpec((text.shape[1],), tf.float32)
        if labels is None:
            self._own = _identity_positives(self.image, self.text, temperature, bias)

    def initial_state(self) -> SigmoidState:
        """Returns the sums before any text was met; they hold the identity's positives."""
        zeros = tf.zeros_like(self.image[:, 0])
        if self.labels is not None:
            nothing = tf.zeros_like(self.image)
            return SigmoidState(zeros, zeros, nothing, (zeros, zeros, zeros, zeros))
        # The positives are summed before any text is met, and blocks at home leave them out.
        losses, slopes = self._own
        statistics = (tf.zeros_like(self.text[0]),)
        return SigmoidState(losses, slopes, slopes[:, tf.newaxis] * self.text, statistics)

    def own_text_slopes(self):
        """Returns what the positives add to the slopes times images of this replica's texts."""
        return 0.0 if self.labels is not None else self._own[1][:, tf.newaxis] * self.image

    def visit(self, rows, state, home: bool):
        """Meets the texts of one replica; see `collectives.Visit`."""

        def visit_chunk(chunk, start, state):
            return self._visit_chunk(chunk, start, state, home)

        return tiling.over_chunks(
            visit_chunk, rows, state, row_specs=self.row_spec, chunk_size=self.chunk_size
        )

    def _visit_chunk(self, chunk, start, state: SigmoidState, home: bool):
        text, features = chunk
        text = tf.cast(text, tf.float32)
        # Scaling the texts is a pass over `(texts, dim)`, not over all logits `(texts, images)`.
        logits = tf.matmul(text * self.temperature, self.image, transpose_b=True)
        if self.labels is None:
            # Text i of the chunk belongs to image start + i; a visitor's to none of them.
            slopes, sums = _negatives_block(logits, self.bias, start if home else None)
            statistics = (state.statistics[0] + tf.reduce_sum(text, 0),)
        else:
            targets, weights = self.labels.checked_block(features, logits.shape)
            slopes, sums, block_statistics = _labelled_block(logits, self.bias, targets, weights)
            statistics = tuple(
                a + b for a, b in zip(state.statistics, block_statistics, strict=True)
            )
        state = SigmoidState(
            state.loss + sums[0],
            state.slopes + sums[1],
            state.image_slopes + tf.matmul(slopes, text, transpose_a=True),
            statistics,
        )
        return tf.matmul(slopes, self.image), state

    def logit_means(self, state: SigmoidState, global_batch):
        """Returns the mean logits of positives and of negatives, shape `(2,)`."""
        if self.labels is None:
            (text_sum,) = state.statistics
            return identity_logit_means(
                self.image, self.text, text_sum, self.temperature, self.bias, global_batch
            )
        # Sums of weighted logits and of weights alternate, the positives first.
        sums = tf.stack([tf.reduce_sum(x) for x in state.statistics])
        return sums[::2] / tf.maximum(sums[1::2], 1e-30)


def identity_logit_means(image, text, text_sum, temperature, bias, global_batch):
    """Returns the mean logits of positives and negatives from the sum of all texts, `(2,)`."""
    batch = tf.cast(tf.shape(image)[0], tf.float32)
    positive = tf.reduce_sum(image * text)
    # The sum of all dot products is the dot product of the sums, so the mean needs no block.
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
        logits = tf.where(tiling.positives(logits, diagonal), _NO_LOGIT, logits)
    losses, slopes = _softplus_and_sigmoid(logits)
    return slopes, [tiling.sum_rows(x) for x in (losses, slopes)]


@tf.function(jit_compile=True, autograph=False)
def _identity_positives(image, text, temperature, bias):
    """Returns loss and slope of each image with its own text."""
    logits = temperature * tf.reduce_sum(image * text, -1) + bias
    losses, sigmoids = _softplus_and_sigmoid(-logits)
    return losses, -sigmoids


@tf.function(jit_compile=True, autograph=False)
def _labelled_block(logits, bias, targets, weights):
    """Does the work of `_negatives_block` for any labels, and sums the logits by label."""
    logits += bias
    positive_weights, negative_weights = weights * targets, weights * (1.0 - targets)
    # A positive costs softplus(-logit), a negative softplus(logit). Both forms keep their digits
    # where they are small, which 1 - sigmoid would not.
    losses, sigmoids = _softplus_and_sigmoid(-logits)
    positives = positive_weights * losses, -positive_weights * sigmoids
    losses, sigmoids = _softplus_and_sigmoid(logits)
    negatives = negative_weights * losses, negative_weights * sigmoids
    # Sum positives and negatives apart: the former are few and large, the latter many and small.
    sums = [
        tiling.sum_rows(x) + tiling.sum_rows(y) for x, y in zip(positives, negatives, strict=True)
    ]
    statistics = [
        tiling.sum_rows(x)
        for weights in (positive_weights, negative_weights)
        for x in (weights * logits, weights)
    ]
    return positives[1] + negatives[1], sums, statistics


class SoftmaxState(NamedTuple):
    """Sums over the texts that were met."""

    image_slopes: tf.Tensor
    text_sum: tf.Tensor


class SoftmaxWalk:
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
            return text_others, logaddexp(image_others, met)

        return tiling.over_chunks(
            visit_chunk,
            text,
            image_others,
            row_specs=tf.TensorSpec((), tf.float32),
            chunk_size=self.chunk_size,
        )

    def finish_sums(self, image_others, text_others):
        """Returns each pair's share of the loss, the texts' logsumexp, and the state to go on."""
        shares, self.own_slopes, self.image_sums, text_sums = _softmax_positives(
            self.image, self.text, self.temperature, image_others, text_others
        )
        state = SoftmaxState(tf.zeros_like(self.image), tf.zeros_like(self.text[0]))
        return shares, text_sums, state

    def visit_for_gradients(self, rows, state, home: bool):
        """Meets the texts of one replica once the sums over all pairs are known."""

        def visit_chunk(chunk, start, state: SoftmaxState):
            text, text_sums = chunk
            text = tf.cast(text, tf.float32)
            slopes = _softmax_block(
                self._logits(text),
                self.image_sums,
                text_sums,
                self.own_slopes,
                self._diagonal(start, home),
            )
            state = SoftmaxState(
                state.image_slopes + tf.matmul(slopes, text, transpose_a=True),
                state.text_sum + tf.reduce_sum(text, 0),
            )
            return tf.matmul(slopes, self.image), state

        row_spec = tf.TensorSpec((self.text.shape[1],), tf.float32)
        return tiling.over_chunks(
            visit_chunk, rows, state, row_specs=row_spec, chunk_size=self.chunk_size
        )

    def _diagonal(self, start, home: bool):
        # A diagonal behind the last image lies outside of a block: a visitor has no positives here.
        return start if home else tf.shape(self.image)[0]

    def _logits(self, text):
        text = tf.cast(text, tf.float32) * self.temperature
        return tf.matmul(text, self.image, transpose_b=True)


@tf.function(jit_compile=True, autograph=False)
def _logsumexps(logits, diagonal):
    """Returns the logsumexp of each row and of each column, without the positives."""
    positive = tiling.positives(logits, diagonal)
    logits = tf.where(positive, _NO_LOGIT, logits)

    def over_rows(x):
        # Subtracting the largest logit keeps every exponential at most 1.
        largest = tf.reduce_max(x, 0)
        return tf.math.log(tiling.sum_rows(tf.exp(x - largest))) + largest

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
        # logsumexp(all) = positive + softplus(logsumexp(others) - positive).
        positives + image_losses,
        positives + text_losses,
    )


@tf.function(jit_compile=True, autograph=False)
def _softmax_block(logits, image_sums, text_sums, own_slopes, diagonal):
    """Returns the slopes of a block."""
    positive = tiling.positives(logits, diagonal)
    # Half the softmax over texts and half that over images. The positives get the slopes of
    # `_softmax_positives`, which lose no digits to a difference from 1.
    slopes = 0.5 * (tf.exp(logits - image_sums) + tf.exp(logits - text_sums[:, tf.newaxis]))
    return tf.where(positive, own_slopes, slopes)


def logaddexp(x, y):
    """Returns log(exp(x) + exp(y)), without overflow."""
    larger, smaller = tf.maximum(x, y), tf.minimum(x, y)
    return larger + tf.math.log1p(tf.exp(smaller - larger))


def _softplus_and_sigmoid(x):
    """Returns both from one exponential, without overflow."""
    # The exponential is at most 1, and serves both: softplus(x) = max(x, 0) + log1p(exp(-|x|)).
    small = tf.exp(-tf.abs(x))
    larger = 1.0 / (1.0 + small)
    return tf.maximum(x, 0.0) + tf.math.log1p(small), tf.where(x >= 0, larger, small * larger)
