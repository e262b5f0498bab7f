"""The two-tower model: image and text encoders with the temperature and bias of the loss."""

import contextlib
import dataclasses
import math
import random
from collections.abc import Callable, Hashable, Iterator, Mapping
from typing import Any

import keras
import tensorflow as tf

from sigline.schemas.labels import LabelSet
from sigline.trainer.config import ImageTowerConfig, TextTowerConfig, TrainConfig
from sigline.trainer.models.text import TextTransformer
from sigline.trainer.models.transformer import Container
from sigline.trainer.models.vit import VisionTransformer

# What makes a tower of a configuration, by its type.
TOWERS: Mapping[type, Callable[..., Any]] = {
    ImageTowerConfig: VisionTransformer,
    TextTowerConfig: TextTransformer,
}

# What a model says of images: unit vectors, and logits of its head.
EMBEDDING, CLASSES = "embedding", "classes"
# Logits of the head that learns labels and of the one that learns a teacher's classes. With a
# distillation token these are two heads, whose mean is `CLASSES`; else both are the only one.
CLASS_HEAD, DISTILLATION_HEAD = "class_head", "distillation_head"

# Added to the norm, not under the root, as in the reference.
NORM_EPSILON = 1e-8


def normalize(x: tf.Tensor) -> tf.Tensor:
    """Scales the last axis to unit length, in float32: x / (|x| + 1e-8)."""
    x = tf.cast(x, tf.float32)
    # The square root has no gradient at zero; a zero row must yield zero, not NaN.
    squared = tf.reduce_sum(x * x, axis=-1, keepdims=True)
    norm = tf.where(squared > 0, tf.sqrt(tf.where(squared > 0, squared, 1.0)), 0.0)
    return x / (norm + NORM_EPSILON)


class TwoTower(Container):
    """Image and text towers that embed into one space of unit vectors.

    Attributes:
        image: The image tower.
        text: The text tower; None for a model of images alone, which has no scalars either.
        log_temperature: Logarithm of the temperature, a scalar variable.
        bias: Bias of the logits, a scalar variable.
    """

    def __init__(self, config: TrainConfig, **kwargs):
        super().__init__(**kwargs)
        self.config = config
        options = {
            "precision": config.precision,
            "rematerialize": config.rematerialize,
        }
        self.image = TOWERS[type(config.image)](config.image, name="image", **options)
        self.text = None
        if config.text is not None:
            self.text = TOWERS[type(config.text)](
                config.text, output_dim=config.image.output_dim, name="text", **options
            )

    def build(self, shape=None):
        """Creates all variables; the inputs' shapes are fixed by the configuration."""
        similarity = self.config.similarity
        self.image.build()
        if self.text is None:
            return
        self.text.build()
        self.log_temperature = self.add_weight(
            name="log_temperature",
            shape=(),
            initializer=keras.initializers.Constant(math.log(similarity.temperature_init)),
            dtype="float32",
        )
        self.bias = self.add_weight(
            name="bias",
            shape=(),
            initializer=keras.initializers.Constant(self.config.bias_init),
            dtype="float32",
        )

    def embed_image(self, images: tf.Tensor, seed: tf.Tensor | None = None) -> tf.Tensor:
        """Embeds pixels `(batch, size, size, 3)` in [-1, 1] as unit vectors `(batch, dim)`.

        Dropping, if the tower drops anything, needs a `seed` of two integers.
        """
        return self.look(images, seed)[EMBEDDING]

    def look(
        self, images: tf.Tensor, seed: tf.Tensor | None = None, variant: Hashable = None
    ) -> dict[str, tf.Tensor]:
        """Returns the unit embeddings of images and, from a head, logits `(batch, classes)`.

        Args:
            images: See `embed_image`.
            seed: See `embed_image`.
            variant: One of the image tower's variants; None for its default.
        """
        # A tower without variants takes no such argument.
        options: dict[str, Any] = {} if variant is None else {"variant": variant}
        if self.config.image.distillation_token:
            x, distilled = self.image(images, seed, with_distilled=True, **options)
        else:
            x = distilled = self.image(images, seed, **options)
        outputs = {EMBEDDING: normalize(x)}
        if self.config.image.classes is None:
            return outputs
        logits: tf.Tensor = self.image.classify(x)
        if distilled is x:
            return outputs | dict.fromkeys((CLASSES, CLASS_HEAD, DISTILLATION_HEAD), logits)
        taught = self.image.classify_distilled(distilled)
        # The released code of DeiT averages logits, not probabilities.
        mean = 0.5 * (logits + taught)
        return outputs | {CLASSES: mean, CLASS_HEAD: logits, DISTILLATION_HEAD: taught}

    def embed_text(self, ids: tf.Tensor, seed: tf.Tensor | None = None) -> tf.Tensor:
        """Embeds token ids `(batch, length)` as unit vectors `(batch, dim)`; see `embed_image`."""
        assert self.text is not None
        return normalize(self.text(ids, seed))

    def call(self, images, ids):
        """Returns the unit embeddings of both towers, each of shape `(batch, dim)`."""
        return self.embed_image(images), self.embed_text(ids)


def build(config: TrainConfig) -> TwoTower:
    """Returns a model with all its variables, initialised from the configuration's seed."""
    with seeded(config.seed):
        model = TwoTower(config, name="two_tower")
        model.build()
    return model


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Initialises the layers that are built inside from a seed."""
    # Keras seeds its initialisers from here. `keras.utils.set_random_seed` would also set the seed
    # of TensorFlow, which drops its cached kernels, and with them the tables of tokenizers.
    state = random.getstate()
    random.seed(seed)
    try:
        yield
    finally:
        random.setstate(state)


def for_serving(model: TwoTower) -> TwoTower:
    """Returns a copy that computes in float32, of plain variables, and keeps nothing for gradients.

    Embeddings then do not depend on the precision that a serving machine is fast at, nor the
    SavedModel on the strategy that the model was trained under.
    """
    plain = dataclasses.replace(model.config, precision="float32", rematerialize=False)
    copy, trained = build(plain), named_parameters(model)
    for name, variable in named_parameters(copy).items():
        variable.assign(tf.convert_to_tensor(trained[name]))
    return copy


def embed_classes(embed_texts: Callable[[tf.Tensor], tf.Tensor], labels: LabelSet) -> tf.Tensor:
    """Returns one unit vector a class, `(classes, dim)`: the mean over its prompts.

    Args:
        embed_texts: Turns texts into embeddings `(batch, dim)`.
        labels: Names the classes.
    """
    classes = []
    for prompts in labels.prompts():
        classes.append(tf.reduce_mean(embed_texts(tf.constant(prompts)), axis=0))
    return tf.math.l2_normalize(tf.stack(classes), axis=-1)


def named_parameters(model: TwoTower) -> dict[str, keras.Variable]:
    """Returns the model's variables by their path below the model, in creation order."""
    prefix = f"{model.name}/"
    return {item.path.removeprefix(prefix): item for item in model.variables}


def named_variables(model: TwoTower) -> dict[str, tf.Variable]:
    """Returns the model's raw variables by the names of `named_parameters`."""
    return {name: item.value for name, item in named_parameters(model).items()}
