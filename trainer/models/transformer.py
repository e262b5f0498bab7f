"""Transformer blocks that both towers share, and the attention pool (arXiv 2010.11929, 2106.04560).

Initialisers, epsilons and the tanh form of GELU are those of big_vision, not Keras's defaults.
What papers vary in a block is an option of `BlockConfig`.

Layers that drop something at random take a `seed`, two integers as a tensor; without one they drop
nothing. So what is dropped is a function of the seed, and no layer has a state of its own.
"""

import functools
from collections.abc import Hashable, Sequence
from typing import Any

import keras
import tensorflow as tf

from sigline.trainer.config import BlockConfig, ImageTowerConfig, TextTowerConfig
from sigline.trainer.models import attention_statistics
from sigline.trainer.models.xla_regions import fusible

# Biases of the MLPs start at N(0, 1e-6), as in the reference.
MLP_BIAS_STDDEV = 1e-6

# Dtype policies of the projections by `TrainConfig.precision`.
_POLICIES = {"float32": "float32", "bfloat16": "mixed_bfloat16"}

_ACTIVATIONS = {
    "gelu_tanh": fusible(lambda x: tf.nn.gelu(x, approximate=True), recompute=True),
    "gelu": fusible(lambda x: tf.nn.gelu(x, approximate=False), recompute=True),
    "quick_gelu": fusible(lambda x: x * tf.sigmoid(1.702 * x), recompute=True),
}

_PLAIN = BlockConfig()

ALL = slice(None)


class Container(keras.layers.Layer):
    """A layer of layers, which leaves precision to them.

    Keras would cast what comes in, and every variable below, to the container's own dtype.

    Attributes:
        variants: Of an image tower, what a step of training may be one of, such as numbers of
            patches; each is compiled for itself, and given to `call` as `variant`.
        variant_name: What a variant is the number of, for logs.
    """

    variants: Sequence[Hashable] = (None,)
    variant_name = "variant"

    def __init__(self, **kwargs):
        super().__init__(autocast=False, **kwargs)


def dense(units: int, *, precision: str, **kwargs) -> keras.layers.Dense:
    """Returns a projection that computes in `precision` from float32 variables."""
    return keras.layers.Dense(units, dtype=_POLICIES[precision], **kwargs)


def rematerialized(
    layer: keras.layers.Layer, x: tf.Tensor, *rest: Any, **options: Any
) -> tf.Tensor:
    """Applies a layer, and recomputes its activations in the backward pass instead of keeping them.

    `tf.recompute_grad` passes gradients to arguments only, so the variables become such.

    Args:
        layer: The layer.
        x: Its first argument, which gets a gradient.
        *rest: The others, which get none.
        **options: Arguments that are no tensors.
    """
    variables = layer.trainable_variables

    # `stateless_call` takes the values of variables as arguments, which `tf.recompute_grad`
    # differentiates.
    def apply(x, *values):
        return layer.stateless_call(list(values), [], x, *rest, **options)[0]

    return tf.recompute_grad(apply)(x, *[tf.convert_to_tensor(v) for v in variables])


def fold(seed: tf.Tensor | None, number: int | tf.Tensor) -> tf.Tensor | None:
    """Returns another seed for every number; none for none."""
    return None if seed is None else tf.random.experimental.stateless_fold_in(seed, number)


def drop(x: tf.Tensor, rate: float, seed: tf.Tensor | None, *, examples: bool = False) -> tf.Tensor:
    """Zeroes a share of the entries, or of whole examples, and scales the others up.

    Args:
        x: Shape `(batch, ...)`.
        rate: Share to drop, in [0, 1).
        seed: Decides what is dropped; nothing is without one.
        examples: Whether an example is dropped as a whole (stochastic depth, arXiv 1603.09382).
    """
    if seed is None or not rate:
        return x
    shape = tf.shape(x)
    if examples:
        # One number for each example, broadcast over all of its entries.
        shape = tf.concat([shape[:1], tf.ones_like(shape[1:])], 0)
    kept = tf.random.stateless_uniform(shape, seed) >= rate
    return tf.where(kept, x / (1.0 - rate), tf.zeros([], x.dtype))


def layer_norm(name: str, options: BlockConfig = _PLAIN) -> keras.layers.Layer:
    """Returns a layer norm, or an RMS norm, in float32, whatever comes in."""
    if options.norm == "rms":
        return keras.layers.RMSNormalization(
            epsilon=options.norm_epsilon, dtype="float32", name=name
        )
    return keras.layers.LayerNormalization(
        epsilon=options.norm_epsilon, center=options.norm_bias, dtype="float32", name=name
    )


def _mix_values(q, k, v, mask=None):
    """Attends with queries, keys and values `(batch, tokens, heads, head_dim)`.

    Transposed products, since `tf.einsum` takes twice their time on a CPU.

    Args:
        q: Queries.
        k: Keys.
        v: Values, as many.
        mask: Shape `(queries, tokens)`: which tokens a query sees; all without one.

    Returns:
        A mixture of values for every query.
    """
    q, k, v = (tf.transpose(x, (0, 2, 1, 3)) for x in (q, k, v))
    scores = _scores(q, k)
    if mask is not None:
        scores = tf.where(mask, scores, attention_statistics.UNSEEN)
    weights = tf.cast(tf.nn.softmax(scores), q.dtype)
    return tf.transpose(tf.matmul(weights, v), (0, 2, 1, 3))


def _scores(q, k):
    """Returns the logits of attention in float32, of `(batch, heads, tokens, head_dim)`."""
    head_dim: Any = q.shape[-1]
    # Scaling the queries is a pass over fewer numbers than the scores.
    scores = tf.matmul(q * (head_dim**-0.5), k, transpose_b=True)
    # A softmax in bfloat16 would lose digits of its sum.
    return tf.cast(scores, tf.float32)


_attend = fusible(_mix_values)


class Attention(Container):
    """Multi-head attention with separate query, key, value and output projections."""

    def __init__(
        self,
        width: int,
        num_heads: int,
        *,
        options: BlockConfig = _PLAIN,
        causal: bool = False,
        precision: str = "float32",
        rematerialize: bool = False,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.num_heads = num_heads
        self.head_dim = width // num_heads
        self.causal = causal
        self.rematerialize = rematerialize
        self.query, self.key, self.value, self.out = (
            dense(
                width,
                precision=precision,
                use_bias=options.mlp_bias if name == "out" else options.qkv_bias,
                kernel_initializer="glorot_uniform",
                name=name,
            )
            for name in ("query", "key", "value", "out")
        )
        self.norms = (
            [layer_norm(name, options) for name in ("query_norm", "key_norm")]
            if options.qk_norm
            else []
        )

    def build(self, query_shape, source_shape):
        """Creates the projections' variables."""
        self.query.build(query_shape)
        self.key.build(source_shape)
        self.value.build(source_shape)
        self.out.build(query_shape)
        for norm in self.norms:
            norm.build((None, None, self.num_heads, self.head_dim))

    def call(self, query, source, tokens: slice = ALL):
        """Attends from `query` to `source`.

        Args:
            query: Shape `(batch, queries, width)`.
            source: Shape `(batch, tokens, width)`.
            tokens: Where the queries are among the tokens, for causal attention.

        Returns:
            Shape `(batch, queries, width)`.
        """
        q, k = self._split(self.query(query)), self._split(self.key(source))
        if self.norms:
            # The norms return float32; the cast lets the products compute in the precision of the
            # projections.
            q, k = (tf.cast(norm(x), x.dtype) for norm, x in zip(self.norms, (q, k), strict=True))
        attend, mask = _attend, None
        if self.causal:
            square = tf.ones((source.shape[1], source.shape[1]), tf.bool)
            mask = tf.linalg.band_part(square, -1, 0)[tokens]
            # Bind the mask: `tf.recompute_grad` would ask for the gradient of an argument.
            attend = functools.partial(_attend, mask=mask)
        # Recompute attention apart within a block that is recomputed. Otherwise the attention
        # weights of all heads stay in memory until the backward pass of the MLP is done; on a TPU
        # their short rows are padded, too.
        attend = tf.recompute_grad(attend) if self.rematerialize else attend
        if attention_statistics.is_recording():
            by_heads = (tf.transpose(x, (0, 2, 1, 3)) for x in (q, k))
            attention_statistics.record(str(self.path), _scores(*by_heads), mask)
        mixed = attend(q, k, self._split(self.value(source)))
        return self.out(tf.reshape(mixed, (tf.shape(query)[0], query.shape[1], self.out.units)))

    def _split(self, x):
        return tf.reshape(x, (tf.shape(x)[0], x.shape[1], self.num_heads, self.head_dim))


def _mlp_dense(units: int, name: str, precision: str, use_bias: bool) -> keras.layers.Dense:
    bias: Any = keras.initializers.RandomNormal(stddev=MLP_BIAS_STDDEV)
    return dense(units, precision=precision, use_bias=use_bias, bias_initializer=bias, name=name)


class Mlp(Container):
    """Dense, activation, Dense."""

    def __init__(
        self,
        width: int,
        mlp_dim: int,
        *,
        options: BlockConfig = _PLAIN,
        precision: str = "float32",
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.options = options
        self.up = _mlp_dense(mlp_dim, "up", precision, options.mlp_bias)
        self.down = _mlp_dense(width, "down", precision, options.mlp_bias)

    def build(self, shape):
        """Creates the variables."""
        self.up.build(shape)
        self.down.build((*shape[:-1], self.up.units))

    def call(self, x, seed=None):
        """Maps `(batch, tokens, width)` to the same shape."""
        x = _ACTIVATIONS[self.options.activation](self.up(x))
        return self.down(drop(x, self.options.dropout, seed))


class Block(Container):
    """A pre-norm transformer block: attention, then MLP, each on its own residual.

    In parallel form both read the same norm of the input (arXiv 2302.05442, section 2).
    """

    def __init__(
        self,
        width: int,
        mlp_dim: int,
        num_heads: int,
        *,
        options: BlockConfig = _PLAIN,
        stochastic_depth: float = 0.0,
        causal: bool = False,
        precision: str = "float32",
        rematerialize: bool = False,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.options = options
        self.stochastic_depth = stochastic_depth
        self.attention_norm = layer_norm("attention_norm", options)
        self.attention = Attention(
            width,
            num_heads,
            options=options,
            causal=causal,
            precision=precision,
            rematerialize=rematerialize,
            name="attention",
        )
        self.mlp_norm = None if options.parallel else layer_norm("mlp_norm", options)
        self.mlp = Mlp(width, mlp_dim, options=options, precision=precision, name="mlp")

    def build(self, shape):
        """Creates the variables."""
        self.attention_norm.build(shape)
        self.attention.build(shape, shape)
        if self.mlp_norm is not None:
            self.mlp_norm.build(shape)
        self.mlp.build(shape)

    def call(self, x, seed=None, tokens: slice = ALL):
        """Maps `(batch, tokens, width)` to the same shape, or to some of the tokens.

        Tokens that are not returned contribute keys and values only.
        """
        y = self.attention_norm(x)
        source = y
        if tokens != ALL:
            x, y = x[:, tokens], y[:, tokens]
        # Numbers that are folded into the seed: 0 and 1 for the two residuals, 2 for the inside of
        # the MLP.
        attended = self._residual(self.attention(y, source, tokens=tokens), x.dtype, fold(seed, 0))
        if self.mlp_norm is None:
            return x + attended + self._residual(self.mlp(y, fold(seed, 2)), x.dtype, fold(seed, 1))
        x += attended
        mapped = self.mlp(self.mlp_norm(x), fold(seed, 2))
        return x + self._residual(mapped, x.dtype, fold(seed, 1))

    def _residual(self, x, dtype, seed):
        x = drop(tf.cast(x, dtype), self.options.dropout, fold(seed, 0))
        return drop(x, self.stochastic_depth, fold(seed, 1), examples=True)


class Encoder(Container):
    """A stack of blocks and a final layer norm."""

    def __init__(
        self,
        width: int,
        depth: int,
        mlp_dim: int,
        num_heads: int,
        *,
        options: BlockConfig = _PLAIN,
        causal: bool = False,
        precision: str = "float32",
        rematerialize: bool = False,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.rematerialize = rematerialize
        self.blocks = [
            Block(
                width,
                mlp_dim,
                num_heads,
                options=options,
                # The rate grows linearly, from 0 at the first block to all of it at the last.
                stochastic_depth=options.stochastic_depth * i / max(depth - 1, 1),
                causal=causal,
                precision=precision,
                rematerialize=rematerialize,
                name=f"block_{i}",
            )
            for i in range(depth)
        ]
        self.norm = layer_norm("norm", options)

    def build(self, shape):
        """Creates the variables."""
        for block in self.blocks:
            block.build(shape)
        self.norm.build(shape)

    def call(self, x, seed=None, tokens: slice = ALL):
        """Maps `(batch, tokens, width)` to the same shape, or to some of the tokens.

        Args:
            x: Shape `(batch, tokens, width)`.
            seed: Decides what is dropped; nothing is without one.
            tokens: Those to return. The last block and norm are spared the others.
        """
        for i, block in enumerate(self.blocks):
            # A block is the unit of recomputation: only its input is kept. Its seed depends on its
            # number alone, so that it drops the same entries when it is computed again.
            apply = functools.partial(rematerialized, block) if self.rematerialize else block
            # Blocks before the last one need all tokens, as keys and values of the next.
            x = apply(x, fold(seed, i), tokens=tokens if i + 1 == len(self.blocks) else ALL)
        return self.norm(x)


class AttentionPool(Container):
    """The MAP head: one learned probe attends to all tokens (arXiv 2106.04560, section 3.2)."""

    def __init__(
        self,
        width: int,
        mlp_dim: int,
        num_heads: int,
        *,
        options: BlockConfig = _PLAIN,
        precision: str = "float32",
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.width = width
        self.attention = Attention(
            width, num_heads, options=options, precision=precision, name="attention"
        )
        self.norm = layer_norm("norm", options)
        self.mlp = Mlp(width, mlp_dim, options=options, precision=precision, name="mlp")

    def build(self, shape):
        """Creates the variables."""
        self.probe = self.add_weight(
            name="probe", shape=(1, 1, self.width), initializer="glorot_uniform"
        )
        probe_shape = (shape[0], 1, self.width)
        self.attention.build(probe_shape, shape)
        self.norm.build(probe_shape)
        self.mlp.build(probe_shape)

    def call(self, x):
        """Pools `(batch, tokens, width)` to `(batch, width)`."""
        probe = tf.repeat(tf.cast(self.probe, x.dtype), tf.shape(x)[0], axis=0)
        pooled = self.attention(probe, x)
        pooled += tf.cast(self.mlp(self.norm(pooled)), pooled.dtype)
        return pooled[:, 0]


def encoder_of(tower: ImageTowerConfig | TextTowerConfig, **options: Any) -> Encoder:
    """Returns the encoder of a tower; `options` are the others of `Encoder`."""
    sizes = tower.width, tower.depth, tower.mlp_dim, tower.num_heads
    return Encoder(*sizes, options=tower.block, name="encoder", **options)


def attention_pool_of(
    tower: ImageTowerConfig | TextTowerConfig, *, precision: str
) -> AttentionPool | None:
    """Returns the attention pool of a tower, or None if it pools otherwise."""
    if tower.pool != "map":
        return None
    sizes = tower.width, tower.mlp_dim, tower.num_heads
    return AttentionPool(*sizes, options=tower.block, precision=precision, name="pool")
