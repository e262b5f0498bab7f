"""The object that is saved: what the signatures of a model share."""

import types
from typing import Any

import tensorflow as tf

from sigline.schemas import signatures
from sigline.schemas.labels import LabelSet
from sigline.trainer.config import TrainConfig
from sigline.trainer.inputs import preprocess
from sigline.trainer.models import two_tower
from sigline.trainer.models.two_tower import TwoTower, named_variables

_DECODES_IN_FLIGHT = 2
IMAGES = tf.TensorSpec((None,), tf.string, name=signatures.IMAGE_BYTES)
TEXTS = tf.TensorSpec((None,), tf.string, name=signatures.TEXT)


class Served(tf.Module):
    """A model as capabilities use it: bytes and strings in, float32 out.

    It tracks raw variables only. Keras objects in the trackable graph load in Python but not in TF
    Serving's C++ loader: a Keras variable exports itself as a new variable, which restore then
    fills instead of the one that the signatures read.

    Attributes:
        config: The model's configuration.
        labels: Names of classes; None where the model is exported without.
        tokenizer: The vocabulary; None for a model of images alone.
        variables_to_save: The model's variables, in the order of their names in the model.
        class_names: Names of the classes that `classify` answers with, if it does.
        class_embeddings: Their embeddings, where classes are told by texts.
    """

    def __init__(
        self,
        model: TwoTower,
        config: TrainConfig,
        *,
        tokenizer: preprocess.Tokenizer | None = None,
        labels: LabelSet | None = None,
    ):
        """Binds the encoders to the model's variables.

        Args:
            model: The model.
            config: Its configuration.
            tokenizer: The vocabulary; None to save the image tower alone.
            labels: Names of classes.
        """
        super().__init__()
        # A tf.Module tracks attributes that are trackable, also in lists and dictionaries. What
        # sits in a SimpleNamespace stays out of the object graph.
        self._plain = types.SimpleNamespace(model=model, config=config, labels=labels)
        self.class_names: tf.Tensor | None = None
        self.class_embeddings: tf.Variable | None = None
        self.image_encoder = self._make_image_encoder(None)
        others = set(config.image.grids) - {config.image.grid}
        self._plain.encoders = {grid: self._make_image_encoder(grid) for grid in sorted(others)}
        variables = named_variables(model)
        self.variables_to_save = [v for n, v in variables.items() if n.startswith("image/")]
        self.tokenizer = tokenizer
        if tokenizer is not None:
            assert config.text is not None
            self.text_encoder = tf.function(
                lambda ids: self._plain.model.embed_text(ids),
                input_signature=[tf.TensorSpec((None, config.text.length), tf.int32)],
                autograph=False,
            )
            self.variables_to_save = list(variables.values())

    def _make_image_encoder(self, grid: int | None) -> Any:
        size = self.config.image.size
        return tf.function(
            lambda pixels: self.look(pixels, grid)[two_tower.EMBEDDING],
            input_signature=[tf.TensorSpec((None, size, size, 3), tf.uint8)],
            autograph=False,
        )

    @property
    def config(self) -> TrainConfig:
        """The model's configuration."""
        return self._plain.config

    @property
    def labels(self) -> LabelSet | None:
        """Names of classes, where the model is exported with some."""
        return self._plain.labels

    def encoders(self) -> dict[str, Any]:
        """Returns the parts that Google's TPU converter may move to the TPU, by name."""
        texts = {} if self.tokenizer is None else {"text_encoder": self.text_encoder}
        grids = {
            signatures.at_grid("image_encoder", grid): encoder
            for grid, encoder in self._plain.encoders.items()
        }
        return {"image_encoder": self.image_encoder} | grids | texts

    def look(self, pixels: tf.Tensor, grid: int | None = None) -> dict[str, tf.Tensor]:
        """Returns what the model says of pixels, uint8 `(batch, size, size, 3)`.

        Args:
            pixels: The pixels.
            grid: Patches along a side, of a model of several grids; None for its default.
        """
        image = preprocess.to_model_range(pixels, self.config.image)
        return self._plain.model.look(image, variant=grid)

    def embed_images(self, pixels: tf.Tensor, grid: int | None = None) -> tf.Tensor:
        """Returns unit embeddings of pixels; see `look`."""
        return self._plain.encoders.get(grid, self.image_encoder)(pixels)

    def embed_texts(self, text: tf.Tensor) -> tf.Tensor:
        """Returns unit embeddings of texts `(batch,)`."""
        assert self.tokenizer is not None
        return self.text_encoder(self.tokenizer(text))

    def logits(self, image: tf.Tensor, text: tf.Tensor) -> tf.Tensor:
        """Returns the logits of all pairs of unit embeddings, `(images, texts)`."""
        model = self._plain.model
        scores = tf.matmul(image, text, transpose_b=True)
        return tf.exp(model.log_temperature.value) * scores + model.bias.value

    def probabilities(self, logits: tf.Tensor) -> tf.Tensor:
        """Returns what the loss trained: of each pair, or by softmax of the texts of an image."""
        return tf.nn.softmax(logits) if self.config.pair_loss == "softmax" else tf.sigmoid(logits)

    @tf.autograph.experimental.do_not_convert
    def _load_one(self, encoded: tf.Tensor) -> tf.Tensor:
        config = self.config
        return preprocess.load_image(encoded, config.image, max_pixels=config.data.max_image_pixels)

    def load(self, image_bytes: tf.Tensor) -> tf.Tensor:
        """Returns the pixels of encoded images; one that does not decode fails the request."""
        size = self.config.image.size
        spec = tf.TensorSpec((size, size, 3), tf.uint8)
        return tf.map_fn(
            self._load_one,
            image_bytes,
            fn_output_signature=spec,
            # Each image in flight may be decoded to the largest size allowed.
            parallel_iterations=_DECODES_IN_FLIGHT,
        )

    def load_valid(self, image_bytes: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Decodes what can be decoded: pixels with zeros for the rest, and which are valid."""
        size = self.config.image.size
        count = tf.shape(image_bytes)[0]
        good = (
            tf.data.Dataset.from_tensor_slices((tf.range(count), image_bytes))
            .map(lambda i, item: (i, self._load_one(item)), num_parallel_calls=_DECODES_IN_FLIGHT)
            .ignore_errors()
        )
        # A sentinel behind the last row, so that the set is never empty.
        sentinel = tf.data.Dataset.from_tensors((count, tf.zeros((size, size, 3), tf.uint8)))
        total = tf.cast(count, tf.int64) + 1
        rows, pixels = good.concatenate(sentinel).batch(total).get_single_element()
        shape = (count + 1, size, size, 3)
        # Integer scatter of 8 bits is not supported everywhere.
        pixels = tf.scatter_nd(rows[:, None], tf.cast(pixels, tf.int32), shape)[:count]
        valid = tf.scatter_nd(rows[:, None], tf.ones_like(rows), (count + 1,))[:count] > 0
        return tf.ensure_shape(tf.cast(pixels, tf.uint8), (None, size, size, 3)), valid
