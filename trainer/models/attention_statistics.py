"""Statistics of attention: largest logit and entropy, of each layer that is called in a block.

Layers compute them only where `recording` asks for them, while a function is traced, so that
nothing of them is in any other program.
"""

import contextlib
import contextvars
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import tensorflow as tf

# Logits of tokens that a query does not see: finite, so that no product of theirs is NaN.
UNSEEN = -1e9


class AttentionStatistics(NamedTuple):
    """What one layer's attention was like on some examples: scalars, float32.

    Attributes:
        max_logit: Largest absolute value of a logit that a softmax saw.
        entropy: Mean over examples, heads and queries of the weights' entropy, in nats.
        entropy_share: The entropy over the largest there may be, that of equal weights: the
            logarithm of the number of tokens that a query sees.
    """

    max_logit: Any
    entropy: Any
    entropy_share: Any


_RECORDED: contextvars.ContextVar[dict[str, AttentionStatistics] | None] = contextvars.ContextVar(
    "recorded", default=None
)


@contextlib.contextmanager
def recording() -> Iterator[dict[str, AttentionStatistics]]:
    """Yields the statistics of each layer that is called in its block, by the layer's path."""
    recorded: dict[str, AttentionStatistics] = {}
    token = _RECORDED.set(recorded)
    try:
        yield recorded
    finally:
        _RECORDED.reset(token)


def is_recording() -> bool:
    """Whether layers should call `record`."""
    return _RECORDED.get() is not None


def record(path: str, logits: tf.Tensor, mask: tf.Tensor | None) -> None:
    """Adds the statistics of a layer; see `of_logits`.

    Args:
        path: Path of the layer.
        logits: Its logits.
        mask: Which tokens a query sees.
    """
    recorded = _RECORDED.get()
    assert recorded is not None
    recorded[path] = of_logits(logits, mask)


def of_logits(logits: tf.Tensor, mask: tf.Tensor | None = None) -> AttentionStatistics:
    """Returns the statistics of attention.

    Args:
        logits: What the softmax gets, shape `(batch, heads, queries, tokens)`, float32.
        mask: Shape `(queries, tokens)`: which tokens a query sees, at least one; all without one.
    """
    if mask is None:
        num_tokens: Any = logits.shape[-1]
        visible, most = logits, tf.constant(math.log(num_tokens), tf.float32)
    else:
        visible = tf.where(mask, logits, 0.0)
        logits = tf.where(mask, logits, UNSEEN)
        counts = tf.reduce_sum(tf.cast(mask, tf.float32), axis=-1)
        most = tf.reduce_mean(tf.math.log(counts))
    log_weights = tf.nn.log_softmax(logits)
    entropy = -tf.reduce_mean(tf.reduce_sum(tf.exp(log_weights) * log_weights, axis=-1))
    # Attention to the only token there is has all the entropy it can have.
    share = tf.where(most > 0.0, entropy / tf.where(most > 0.0, most, 1.0), 1.0)
    return AttentionStatistics(tf.reduce_max(tf.abs(visible)), entropy, share)
