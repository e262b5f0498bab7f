"""The image tower: a plain ViT with attention pooling (arXiv 2010.11929, 2106.04560).

Initialisers, epsilons and the tanh form of GELU are those of big_vision, not Keras's defaults.
"""

from typing import Any

import keras
import tensorflow as tf

from sigline.trainer.config import ImageTowerConfig

LAYER_NORM_EPSILON = 1e-6
# Biases of the MLPs start at N(0, 1e-6), as in the reference.
MLP_BIAS_STDDEV = 1e-6


# Dtype policies of the projections by `TrainConfig.precision`.
_POLICIES = {"float32": "float32", "bfloat16": "mixed_bfloat16"}


class Container(keras.layers.Layer):
    """A layer of layers, which leaves precision to them.

    Keras would cast what comes in, and every variable below, to the container's own dtype.
    """

    def __init__(self, **kwargs):
        super().__init__(autocast=False, **kwargs)


def dense(units: int, *, precision: str, **kwargs) -> keras.layers.Dense:
    """Returns a projection that computes in `precision` from float32 variables."""
    return keras.layers.Dense(units, dtype=_POLICIES[precision], **kwargs)


def rematerialized(layer: keras.layers.Layer, x: tf.Tensor) -> tf.Tensor:
    """Applies a layer whose inside the backward pass computes again instead of keeping it.

    `tf.recompute_grad` passes gradients to arguments only, so the variables become such.
    """
    variables = layer.trainable_variables

    def apply(x, *values):
        return layer.stateless_call(list(values), [], x)[0]

    return tf.recompute_grad(apply)(x, *[tf.convert_to_tensor(v) for v in variables])


def _layer_norm(name: str) -> keras.layers.LayerNormalization:
    return keras.layers.LayerNormalization(epsilon=LAYER_NORM_EPSILON, dtype="float32", name=name)


class Attention(Container):
    """Multi-head attention with separate query, key, value and output projections."""

    def __init__(
        self,
        width: int,
        num_heads: int,
        *,
        precision: str = "float32",
        rematerialize: bool = False,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.num_heads = num_heads
        self.head_dim = width // num_heads
        self.rematerialize = rematerialize
        self.query, self.key, self.value, self.out = (
            dense(width, precision=precision, kernel_initializer="glorot_uniform", name=name)
            for name in ("query", "key", "value", "out")
        )

    def build(self, query_shape, source_shape):
        """Creates the projections' variables."""
        self.query.build(query_shape)
        self.key.build(source_shape)
        self.value.build(source_shape)
        self.out.build(query_shape)

    def call(self, query, source):
        """Attends from `query` to `source`.

        Args:
            query: Shape `(batch, queries, width)`.
            source: Shape `(batch, tokens, width)`.

        Returns:
            Shape `(batch, queries, width)`.
        """
        # Within a block that is computed again, this keeps the weights of all heads from waiting
        # for the MLP's backward pass; on a TPU short rows of weights are padded, too.
        mix = tf.recompute_grad(self._mix) if self.rematerialize else self._mix
        return self.out(mix(self.query(query), self.key(source), self.value(source)))

    def _mix(self, query, key, value):
        """Attends with projected queries, keys and values."""
        q = self._split(query) * (self.head_dim**-0.5)
        scores = tf.einsum("bqhd,bkhd->bhqk", q, self._split(key))
        weights = tf.cast(tf.nn.softmax(tf.cast(scores, tf.float32)), scores.dtype)
        mixed = tf.einsum("bhqk,bkhd->bqhd", weights, self._split(value))
        return tf.reshape(mixed, tf.shape(query))

    def _split(self, x):
        return tf.reshape(x, (tf.shape(x)[0], x.shape[1], self.num_heads, self.head_dim))


def _mlp_dense(units: int, name: str, precision: str) -> keras.layers.Dense:
    bias: Any = keras.initializers.RandomNormal(stddev=MLP_BIAS_STDDEV)
    return dense(units, precision=precision, bias_initializer=bias, name=name)


class Mlp(Container):
    """Dense, GELU (tanh form), Dense."""

    def __init__(self, width: int, mlp_dim: int, *, precision: str = "float32", **kwargs):
        super().__init__(**kwargs)
        self.up = _mlp_dense(mlp_dim, "up", precision)
        self.down = _mlp_dense(width, "down", precision)

    def build(self, shape):
        """Creates the variables."""
        self.up.build(shape)
        self.down.build((*shape[:-1], self.up.units))

    def call(self, x):
        """Maps `(batch, tokens, width)` to the same shape."""
        return self.down(tf.nn.gelu(self.up(x), approximate=True))


class Block(Container):
    """A pre-norm transformer block: attention, then MLP, each on its own residual."""

    def __init__(
        self,
        width: int,
        mlp_dim: int,
        num_heads: int,
        *,
        precision: str = "float32",
        rematerialize: bool = False,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.attention_norm = _layer_norm("attention_norm")
        self.attention = Attention(
            width,
            num_heads,
            precision=precision,
            rematerialize=rematerialize,
            name="attention",
        )
        self.mlp_norm = _layer_norm("mlp_norm")
        self.mlp = Mlp(width, mlp_dim, precision=precision, name="mlp")

    def build(self, shape):
        """Creates the variables."""
        self.attention_norm.build(shape)
        self.attention.build(shape, shape)
        self.mlp_norm.build(shape)
        self.mlp.build(shape)

    def call(self, x):
        """Maps `(batch, tokens, width)` to the same shape."""
        y = self.attention_norm(x)
        x += tf.cast(self.attention(y, y), x.dtype)
        return x + tf.cast(self.mlp(self.mlp_norm(x)), x.dtype)


class Encoder(Container):
    """A stack of blocks and a final layer norm."""

    def __init__(
        self,
        width: int,
        depth: int,
        mlp_dim: int,
        num_heads: int,
        *,
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
                precision=precision,
                rematerialize=rematerialize,
                name=f"block_{i}",
            )
            for i in range(depth)
        ]
        self.norm = _layer_norm("norm")

    def build(self, shape):
        """Creates the variables."""
        for block in self.blocks:
            block.build(shape)
        self.norm.build(shape)

    def call(self, x, tokens: slice | None = None):
        """Maps `(batch, tokens, width)` to the same shape, or to some of the tokens.

        Args:
            x: Shape `(batch, tokens, width)`.
            tokens: Those to return; all by default. The final norm is spared the others.
        """
        for block in self.blocks:
            x = rematerialized(block, x) if self.rematerialize else block(x)
        return self.norm(x if tokens is None else x[:, tokens])


class AttentionPool(Container):
    """The MAP head: one learned probe attends to all tokens (arXiv 2106.04560, section 3.2)."""

    def __init__(
        self, width: int, mlp_dim: int, num_heads: int, *, precision: str = "float32", **kwargs
    ):
        super().__init__(**kwargs)
        self.width = width
        self.attention = Attention(width, num_heads, precision=precision, name="attention")
        self.norm = _layer_norm("norm")
        self.mlp = Mlp(width, mlp_dim, precision=precision, name="mlp")

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


class VisionTransformer(Container):
    """Maps images to vectors; there is no projection after the pool, as in released SigLIP."""

    def __init__(
        self,
        config: ImageTowerConfig,
        *,
        precision: str = "float32",
        rematerialize: bool = False,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.config = config
        self.num_patches = (config.size // config.patch) ** 2
        self.embedding = dense(
            config.width, precision=precision, kernel_initializer="lecun_normal", name="embedding"
        )
        sizes = config.mlp_dim, config.num_heads
        self.encoder = Encoder(
            config.width,
            config.depth,
            *sizes,
            precision=precision,
            rematerialize=rematerialize,
            name="encoder",
        )
        self.pool = (
            AttentionPool(config.width, *sizes, precision=precision, name="pool")
            if config.pool == "map"
            else None
        )

    def build(self, shape=None):
        """Creates the variables; the input's shape is fixed by the configuration."""
        width = self.config.width
        normal = keras.initializers.RandomNormal(stddev=width**-0.5)
        self.embedding.build((None, self.num_patches, 3 * self.config.patch**2))
        self.positions = self.add_weight(
            name="positions", shape=(1, self.num_patches, width), initializer=normal
        )
        tokens = self.num_patches
        if self.config.pool == "tok":
            self.token = self.add_weight(name="token", shape=(1, 1, width), initializer="zeros")
            tokens += 1
        self.encoder.build((None, tokens, width))
        if self.pool is not None:
            self.pool.build((None, tokens, width))

    def call(self, images):
        """Embeds images.

        Args:
            images: Shape `(batch, size, size, 3)`, float32 in [-1, 1].

        Returns:
            Shape `(batch, width)`, not normalised.
        """
        x = self.embedding(_patches(images, self.config.patch))
        x += tf.cast(self.positions, x.dtype)
        if self.config.pool == "tok":
            token = tf.repeat(tf.cast(self.token, x.dtype), tf.shape(x)[0], axis=0)
            x = tf.concat([token, x], axis=1)
        if self.config.pool == "tok":
            return self.encoder(x, tokens=slice(0, 1))[:, 0]
        x = self.encoder(x)
        return self.pool(x) if self.pool is not None else tf.reduce_mean(x, axis=1)


def _patches(images, patch: int):
    """Cuts `(batch, size, size, 3)` into `(batch, patches, 3 * patch**2)`, row by row.

    The same as a convolution whose kernel and stride are the patch, but one plain product, which
    needs no convolution gradient.
    """
    grid = images.shape[1] // patch
    x = tf.reshape(images, (-1, grid, patch, grid, patch, 3))
    return tf.reshape(tf.transpose(x, (0, 1, 3, 2, 4, 5)), (-1, grid * grid, 3 * patch * patch))
