"""Frozen models that see, inside the training step, what the trained model sees: teachers."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from sigline.schemas.labels import LabelSet
from sigline.trainer.config import (
    DataConfig,
    DistillConfig,
    ImageTowerConfig,
    PairsConfig,
    TrainConfig,
)
from sigline.trainer.inputs import needs, preprocess
from sigline.trainer.inputs.needs import Needs, View
from sigline.trainer.models import two_tower
from sigline.trainer.weights import model_weights, tokenizer_json
from sigline.trainer.weights.model_weights import Weights

# Names of a frozen model's embeddings of texts, and of the variable with those of classes.
TEXT = "text"
_CLASS_EMBEDDINGS = "class_embeddings"


class FrozenModel(NamedTuple):
    """A model that objectives ask, and that does not change.

    Attributes:
        model: Says what to compute.
        variables: What with, by name; the model's, and the embeddings of classes if it tells
            classes by their texts.
        asked: What it is asked for: `classes`, `pairs`.
        image: Name in the batch of the view that it sees.
        text: Name in the batch of the tokens that it reads.
        own: What it needs of an example that the trained model does not.
    """

    model: two_tower.TwoTower
    variables: Mapping[str, tf.Variable]
    asked: frozenset[str]
    image: str = needs.IMAGE
    text: str = needs.TEXT
    own: Needs = Needs()


def make(
    weights: Mapping[str, Weights],
    config: TrainConfig,
    *,
    vocabulary: bytes | None,
    labels: LabelSet | None,
) -> dict[str, FrozenModel]:
    """Returns the frozen models that objectives ask; call it in the strategy's scope.

    Args:
        weights: Their weights by their names.
        config: The student's configuration.
        vocabulary: The student's; a teacher that reads texts has one of its own.
        labels: Classes for teachers that tell classes by their texts.

    Raises:
        ValueError: If the names are not those that the configuration asks for, or a teacher cannot
            give what is asked of it.
    """
    if set(weights) != set(config.teachers):
        raise ValueError(
            "The teachers of the recipe must be given, and no others, each as NAME=WEIGHTS. "
            f"Received: {', '.join(sorted(weights)) or 'none'}; the recipe's: "
            f"{', '.join(config.teachers) or 'none'}"
        )
    return {
        name: _make_one(name, weights[name], config, vocabulary=vocabulary, labels=labels)
        for name in config.teachers
    }


def _make_one(
    name: str,
    weights: Weights,
    config: TrainConfig,
    *,
    vocabulary: bytes | None,
    labels: LabelSet | None,
) -> FrozenModel:
    asked = frozenset(item.asks[name] for item in config.objectives if name in item.asks)
    by_texts = "classes" in asked and weights.config.image.classes is None
    reads = by_texts or "pairs" in asked
    settings = dataclasses.replace(
        weights.config,
        precision=config.precision,
        rematerialize=False,
        text=weights.config.text if reads else None,
        # The teacher's own settings of data and augmentation do not matter here.
        data=DataConfig(),
        objectives=(PairsConfig(loss=weights.config.pair_loss) if reads else DistillConfig(name),),
    )
    _check_asked(name, weights, asked, reads=reads)
    model, variables = _filled(weights, settings, reads=reads)
    tokenizer = _tokenizer(name, weights.vocabulary, settings) if reads else None
    if by_texts:
        assert tokenizer is not None
        variables[_CLASS_EMBEDDINGS] = _class_embeddings(name, model, tokenizer, labels)
    if "classes" in asked:
        _check_classes(name, labels if by_texts else None, settings, config)
    other_pixels = _pixels(settings.image) != _pixels(config.image)
    other_texts = "pairs" in asked and (
        _words(settings) != _words(config) or not _same(weights.vocabulary, vocabulary)
    )
    image = f"{name}_{needs.IMAGE}" if other_pixels else needs.IMAGE
    text = f"{name}_{needs.TEXT}" if other_texts else needs.TEXT
    own = Needs(
        {image: View(settings.image)} if other_pixels else {},
        {text: tokenizer} if other_texts and tokenizer is not None else {},
    )
    return FrozenModel(model, variables, asked, image, text, own)


def _check_asked(name: str, weights: Weights, asked: frozenset[str], *, reads: bool) -> None:
    """Refuses a teacher that cannot give what it is asked for."""
    if "pairs" in asked and weights.config.pair_loss != "sigmoid":
        raise ValueError(
            f"The teacher {name} must be of the sigmoid loss to give probabilities of pairs. "
            f"Received: loss={weights.config.pair_loss!r}"
        )
    has_head = weights.config.image.classes is not None
    if "classes" in asked and has_head and weights.config.class_loss == "semantic":
        raise ValueError(
            f"The teacher {name} must give one distribution over all classes; a head that learnt a "
            "tree of classes has one for each level. Received: loss='semantic'"
        )
    if reads and not any(parameter.startswith("text/") for parameter in weights.parameters):
        raise ValueError(
            f"The teacher {name} must have a text tower to tell pairs, or classes without a head. "
            "Received: weights of an image tower alone"
        )


def _filled(
    weights: Weights, settings: TrainConfig, *, reads: bool
) -> tuple[two_tower.TwoTower, dict[str, tf.Variable]]:
    """Returns a model with the values of weights, and its variables by name.

    Args:
        weights: The values.
        settings: What to build.
        reads: Whether it has a text tower.
    """
    model = two_tower.build(settings)
    variables = two_tower.named_variables(model)
    shapes = {key: tuple(value.shape) for key, value in variables.items()}
    patterns = [r"image/.*"] + ([r"(?!image/).*"] if reads else [])
    for key, value in model_weights.fitted(weights, shapes, patterns).items():
        variables[key].assign(value)
    return model, variables


def _class_embeddings(
    name: str,
    model: two_tower.TwoTower,
    tokenizer: preprocess.Tokenizer,
    labels: LabelSet | None,
) -> tf.Variable:
    """Returns the embeddings of the texts of classes, shape `(classes, dim)`."""
    if labels is None:
        raise ValueError(
            f"The teacher {name} has no head and tells classes by their texts, which a label "
            "set (classes.json) must name. Received: labels=none"
        )
    encode = tf.function(lambda texts: model.embed_text(tokenizer(texts)), autograph=False)
    return tf.Variable(two_tower.embed_classes(encode, labels), trainable=False)


def _tokenizer(name: str, vocabulary: bytes | None, config: TrainConfig) -> preprocess.Tokenizer:
    if vocabulary is None:
        raise ValueError(
            f"The teacher {name} reads texts and must come with the vocabulary of its token table. "
            "Add it: `sigline weights import WEIGHTS --vocabulary FILE --output "
            "FOLDER`. Received: vocabulary of the teacher=none"
        )
    assert config.text is not None
    return preprocess.Tokenizer(vocabulary, config.text)


def _same(one: bytes | None, other: bytes | None) -> bool:
    return one == other or (
        one is not None and other is not None and tokenizer_json.same(one, other)
    )


def _check_classes(
    name: str, labels: LabelSet | None, teacher: TrainConfig, student: TrainConfig
) -> None:
    count = teacher.image.classes if labels is None else len(labels.names)
    if count != student.image.classes:
        raise ValueError(
            f"image.classes must be the number of classes that the teacher {name} tells apart. "
            f"Received: image.classes={student.image.classes}, classes of the teacher={count}"
        )


def _pixels(image: ImageTowerConfig) -> tuple:
    """Returns what decides the bytes that a tower gets."""
    return (
        image.size,
        image.resize,
        image.interpolation,
        image.antialias,
        image.resampler,
        image.resized_side,
    )


def _words(config: TrainConfig) -> dict[str, Any]:
    """Returns what decides the tokens of a text, beside the vocabulary."""
    text = dataclasses.asdict(config.text_tower)
    sizes = ("vocabulary_size", "width", "depth", "mlp_dim", "num_heads", "pool", "end_id", "block")
    return {k: v for k, v in text.items() if k not in (*sizes, "causal", "head_bias")}


def look(
    model: FrozenModel, variables: Mapping[str, tf.Tensor], inputs: Mapping[str, tf.Tensor]
) -> dict[str, tf.Tensor]:
    """Returns what a frozen model says of a batch. No gradient flows through it.

    Args:
        model: The frozen model.
        variables: Values of its variables.
        inputs: The batch.

    Returns:
        `embedding` and, if it is asked for them, `classes`, logits `(batch, classes)`, and `text`,
        unit embeddings of texts.
    """
    tower, outputs = model.model, {}
    parameters = two_tower.named_parameters(tower)
    mapping = [(parameters[key], variables[key]) for key in parameters]
    with keras.StatelessScope(state_mapping=mapping):
        pixels = preprocess.to_model_range(inputs[model.image], tower.config.image)
        image_outputs = tower.look(pixels)
        outputs[two_tower.EMBEDDING] = image_outputs[two_tower.EMBEDDING]
        if "pairs" in model.asked:
            outputs[TEXT] = tower.embed_text(inputs[model.text])
    if "classes" in model.asked:
        outputs[two_tower.CLASSES] = image_outputs.get(two_tower.CLASSES)
    if _CLASS_EMBEDDINGS in variables:
        products = tf.matmul(
            outputs[two_tower.EMBEDDING], variables[_CLASS_EMBEDDINGS], transpose_b=True
        )
        outputs[two_tower.CLASSES] = tf.exp(variables["log_temperature"]) * products
    return {name: tf.stop_gradient(value) for name, value in outputs.items()}


def scalars(variables: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    """Returns temperature and bias of a frozen model's logits of pairs."""
    return {"temperature": tf.exp(variables["log_temperature"]), "bias": variables["bias"]}
