"""The text tower: a transformer over token ids, by default bidirectional, its last token pooled."""

import keras
import tensorflow as tf

from sigline.trainer.config import TextTowerConfig
from sigline.trainer.models.transformer import Container, attention_pool_of, dense, encoder_of


class TextTransformer(Container):
    """Maps token ids to vectors, without padding mask, as SigLIP and CLIP do."""

    def __init__(
        self,
        config: TextTowerConfig,
        output_dim: int,
        *,
        precision: str = "float32",
        rematerialize: bool = False,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.config = config
        self.precision = precision
        self.encoder = encoder_of(
            config, causal=config.causal, precision=precision, rematerialize=rematerialize
        )
        self.pool = attention_pool_of(config, precision=precision)
        self.head = dense(
            output_dim,
            precision=precision,
            use_bias=config.head_bias,
            kernel_initializer="lecun_normal",
            name="head",
        )

    def build(self, shape=None):
        """Creates the variables; the input's shape is fixed by the configuration."""
        width = self.config.width
        normal = keras.initializers.RandomNormal(stddev=width**-0.5)
        self.tokens = self.add_weight(
            name="tokens", shape=(self.config.vocabulary_size, width), initializer=normal
        )
        self.positions = self.add_weight(
            name="positions", shape=(1, self.config.length, width), initializer=normal.clone()
        )
        self.encoder.build((None, self.config.length, width))
        if self.pool is not None:
            self.pool.build((None, self.config.length, width))
        self.head.build((None, width))

    def call(self, ids, seed=None):
        """Embeds texts.

        Args:
            ids: Token ids, shape `(batch, length)`, int32.
            seed: Two integers as a tensor, decide what is dropped; nothing is without them.

        Returns:
            Shape `(batch, output_dim)`, not normalised.
        """
        x = tf.gather(tf.convert_to_tensor(self.tokens), ids) + tf.convert_to_tensor(self.positions)
        return self.head(self._pooled(tf.cast(x, self.precision), ids, seed))

    def _pooled(self, x, ids, seed):
        pool = self.config.pool
        if pool == "last":
            return self.encoder(x, seed, tokens=slice(-1, None))[:, 0]
        if pool == "first":
            return self.encoder(x, seed, tokens=slice(0, 1))[:, 0]
        x = self.encoder(x, seed)
        if pool == "end":
            # `argmax` finds the first end token; padding follows it.
            places = tf.argmax(ids == self.config.end_id, axis=1)
            return tf.gather(x, places, batch_dims=1)
        if pool == "gap":
            return tf.reduce_mean(x, axis=1)
        if pool == "max":
            return tf.reduce_max(x, axis=1)
        assert self.pool is not None
        return self.pool(x)
