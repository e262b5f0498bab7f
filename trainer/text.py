"""The text tower: a bidirectional transformer whose last token is the representation."""

import keras
import tensorflow as tf

from sigline.trainer.config import TextTowerConfig
from sigline.trainer.vit import Container, Encoder, dense


class TextTransformer(Container):
    """Maps token ids to vectors, without causal or padding mask, as SigLIP does."""

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
        self.encoder = Encoder(
            config.width,
            config.depth,
            config.mlp_dim,
            config.num_heads,
            precision=precision,
            rematerialize=rematerialize,
            name="encoder",
        )
        self.head = dense(
            output_dim, precision=precision, kernel_initializer="lecun_normal", name="head"
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
        self.head.build((None, width))

    def call(self, ids):
        """Embeds texts.

        Args:
            ids: Token ids, shape `(batch, length)`, int32.

        Returns:
            Shape `(batch, output_dim)`, not normalised.
        """
        x = tf.gather(tf.convert_to_tensor(self.tokens), ids) + tf.convert_to_tensor(self.positions)
        x = self.encoder(tf.cast(x, self.precision), tokens=slice(-1, None))
        return self.head(x[:, 0])
