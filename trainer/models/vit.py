"""The image tower: a plain ViT (arXiv 2010.11929), or one of several grids (arXiv 2212.08013)."""

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from sigline.trainer.config import ImageTowerConfig
from sigline.trainer.models import flexi, positions
from sigline.trainer.models.transformer import (
    Container,
    attention_pool_of,
    dense,
    encoder_of,
    fold,
    layer_norm,
)


class VisionTransformer(Container):
    """Maps images to vectors; without `projection` they are what the pool gives, as in SigLIP.

    Its variants are the grids of a FlexiViT, numbers of patches along a side.
    """

    variant_name = "grid"

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
        initializer: Any = "lecun_normal"
        if config.grids:
            # `lecun_normal` has the scale of one size of patches, and a FlexiViT has several. Made
            # here alone, since each initializer draws a seed, and others' weights would change.
            initializer = keras.initializers.RandomNormal(stddev=config.width**-0.5)
        self.embedding = dense(
            config.width,
            precision=precision,
            use_bias=config.patch_bias,
            kernel_initializer=initializer,
            name="embedding",
        )
        self.embedding_norm = (
            layer_norm("embedding_norm", config.block) if config.embedding_norm else None
        )
        self.encoder = encoder_of(config, precision=precision, rematerialize=rematerialize)
        self.pool = attention_pool_of(config, precision=precision)
        self.head = (
            dense(
                config.classes,
                precision=precision,
                kernel_initializer="zeros",
                bias_initializer=keras.initializers.Constant(config.head_bias_init),
                name="head",
            )
            if config.classes is not None
            else None
        )
        # Made where it is switched on alone, as the initializer above.
        self.distilled_head = None
        if config.distillation_token and config.classes is not None:
            self.distilled_head = dense(
                config.classes, precision=precision, kernel_initializer="zeros", name="distilled"
            )
        self.projection = (
            dense(
                config.projection,
                precision=precision,
                use_bias=config.projection_bias,
                activation="tanh" if config.projection_tanh else None,
                kernel_initializer="lecun_normal",
                name="projection",
            )
            if config.projection is not None
            else None
        )

    @property
    def variants(self) -> Sequence[int | None]:
        """The grids that a step of training may be of."""
        return self.config.grids or (None,)

    def build(self, shape=None):
        """Creates the variables; the input's shape is fixed by the configuration."""
        config, width, patches = self.config, self.config.width, self.config.stored_grid**2
        self.embedding.build((None, patches, 3 * config.patch**2))
        if config.positions == "learned":
            self.positions = self.add_weight(
                name="positions",
                shape=(1, patches, width),
                initializer=keras.initializers.RandomNormal(stddev=width**-0.5),
            )
        else:
            self.positions = tf.constant(positions.sincos_2d(config.stored_grid, width))
        self.token = self.distillation_token = self.token_positions = self.registers = None
        if config.pool == "tok":
            self.token = self.add_weight(name="token", shape=(1, 1, width), initializer="zeros")
        if config.num_registers:
            self.registers = self.add_weight(
                name="registers",
                shape=(1, config.num_registers, width),
                initializer=keras.initializers.RandomNormal(stddev=width**-0.5),
            )
        if config.distillation_token:
            self._build_distillation(width)
        own = (config.pool == "tok") + config.distillation_token + config.num_registers
        tokens = (None, patches + own, width)
        if self.embedding_norm is not None:
            self.embedding_norm.build(tokens)
        self.encoder.build(tokens)
        if self.pool is not None:
            self.pool.build(tokens)
        if self.projection is not None:
            self.projection.build((None, width))
        if self.head is not None:
            self.head.build((None, config.output_dim))
        if self.distilled_head is not None:
            # All below `head/` is no part of the embedding, as of a single head.
            with keras.name_scope("head"):
                self.distilled_head.build((None, config.output_dim))

    def _build_distillation(self, width: int):
        """Creates the distillation token, and the positions of both tokens (arXiv 2012.12877)."""
        self.distillation_token = self.add_weight(
            name="distillation_token",
            shape=(1, 1, width),
            initializer=keras.initializers.TruncatedNormal(stddev=0.02),
        )
        if self.config.positions == "learned":
            # A table of their own, so that the patches' can be resampled to another resolution.
            self.token_positions = self.add_weight(
                name="token_positions",
                shape=(1, 2, width),
                initializer=keras.initializers.RandomNormal(stddev=width**-0.5),
            )

    def call(
        self, images, seed=None, *, variant: int | None = None, with_distilled: bool = False
    ) -> Any:
        """Embeds images.

        Args:
            images: Shape `(batch, size, size, 3)`, float32 in [-1, 1].
            seed: Two integers as a tensor, decide what is dropped; nothing is without them.
            variant: Patches along a side; None for the configuration's `grid`.
            with_distilled: Whether to return what the distillation token gives, too.

        Returns:
            Shape `(batch, dim)`, not normalised; with the distillation token's a pair of such.
        """
        x = self._tokens(images, variant or self.config.grid)
        if seed is not None and self.config.token_dropout:
            x = _some_tokens(x, self.config.token_dropout, fold(seed, 0))
        patches = x.shape[1]
        before, behind = self._first_tokens(x), self._own_tokens(self.registers, x)
        x = tf.concat([*before, x, *behind], axis=1)
        if self.embedding_norm is not None:
            x = tf.cast(self.embedding_norm(x), x.dtype)
        pooled = self._pooled(x, patches, fold(seed, 1))
        outputs = pooled if self.projection is None else self.projection(pooled)
        if not self.config.distillation_token:
            return outputs
        return (outputs[:, 0], outputs[:, 1]) if with_distilled else outputs[:, 0]

    def _tokens(self, images, grid: int) -> Any:
        """Returns the embedded patches with their positions, `(batch, grid * grid, width)`."""
        config, embedding = self.config, self.embedding
        patch = config.size // grid if config.grids else config.patch
        x: Any = _patches(images, patch)
        if patch == config.patch:
            x = embedding(x)
        else:
            kernel = flexi.resize_kernel(embedding.kernel, config.patch, patch)
            # Resize in float32 and compute the product in the precision of the layer.
            dtype = embedding.compute_dtype
            x = keras.ops.matmul(tf.cast(x, dtype), tf.cast(kernel, dtype))
            if embedding.bias is not None:
                x += tf.cast(embedding.bias, dtype)
        table = flexi.resize_positions(self.positions, config.stored_grid, grid)
        return x + tf.cast(table, x.dtype)

    def classify(self, x):
        """Returns the logits `(batch, classes)`, float32, of what `call` returned."""
        assert self.head is not None
        return tf.cast(self.head(x), tf.float32)

    def classify_distilled(self, x):
        """Returns the logits `(batch, classes)`, float32, of what the distillation token gave."""
        assert self.distilled_head is not None
        return tf.cast(self.distilled_head(x), tf.float32)

    def _pooled(self, x, patches: int, seed):
        """Returns `(batch, width)`, or with a distillation token `(batch, 2, width)` of both."""
        if self.config.distillation_token:
            return self.encoder(x, seed, tokens=slice(0, 2))
        if self.config.pool == "tok":
            return self.encoder(x, seed, tokens=slice(0, 1))[:, 0]
        if self.config.pool == "last":
            return self.encoder(x, seed, tokens=slice(patches - 1, patches))[:, 0]
        if self.config.pool == "gap":
            return tf.reduce_mean(self.encoder(x, seed, tokens=slice(0, patches)), axis=1)
        assert self.pool is not None
        return self.pool(self.encoder(x, seed))

    def _first_tokens(self, x) -> list[tf.Tensor]:
        """Returns the tokens before the patches, at their positions."""
        first = [*self._own_tokens(self.token, x), *self._own_tokens(self.distillation_token, x)]
        if self.token_positions is None:
            return first
        return [tf.concat(first, axis=1) + tf.cast(self.token_positions, x.dtype)]

    def _own_tokens(self, variable, x) -> list[tf.Tensor]:
        if variable is None:
            return []
        return [tf.repeat(tf.cast(variable, x.dtype), tf.shape(x)[0], axis=0)]


def _some_tokens(x, share: float, seed):
    """Drops a share of the tokens, drawn apart for every image (arXiv 2212.00794)."""
    kept = max(round(x.shape[1] * (1.0 - share)), 1)
    scores = tf.random.stateless_uniform(tf.shape(x)[:2], seed)
    # Keep the order of the tokens, although only the pool of the last token depends on it.
    places = tf.sort(tf.math.top_k(scores, kept).indices, axis=1)
    return tf.ensure_shape(tf.gather(x, places, batch_dims=1), (None, kept, x.shape[2]))


def _patches(images, patch: int):
    """Cuts `(batch, size, size, 3)` into `(batch, patches, 3 * patch**2)`, row by row.

    The same as a convolution whose kernel and stride are the patch, but one plain product, which
    needs no convolution gradient. Pixels on the right and below that fill no patch are left out.
    """
    grid = images.shape[1] // patch
    if images.shape[1] % patch:
        images = images[:, : grid * patch, : grid * patch]
    x = tf.reshape(images, (-1, grid, patch, grid, patch, 3))
    return tf.reshape(tf.transpose(x, (0, 1, 3, 2, 4, 5)), (-1, grid * grid, 3 * patch * patch))
