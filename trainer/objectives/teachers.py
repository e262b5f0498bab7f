"""Teachers: frozen models that see, inside the training step, what the student sees."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from sigline.schemas.labels import LabelSet
from sigline.trainer.config import (
    DataConfig,
    DistillationConfig,
    ImageTowerConfig,
    LossConfig,
    TrainConfig,
)
from sigline.trainer.inputs import preprocess
from sigline.trainer.inputs.views import View
from sigline.trainer.models import two_tower
from sigline.trainer.objectives import combined
from sigline.trainer.weights import tokenizer_json, weight_folders
from sigline.trainer.weights.weight_folders import Weights

_CLASS_EMBEDDINGS = "class_embeddings"


class Teacher(NamedTuple):
    """A frozen model.

    Attributes:
        model: Says what to compute.
        variables: What with, by name; the model's, and the embeddings of classes if it tells
            classes by their texts.
        targets: What is asked of it.
        view: What it gets.
    """

    model: two_tower.TwoTower
    variables: Mapping[str, tf.Variable]
    targets: frozenset[str]
    view: View


def make(
    weights: Mapping[str, Weights],
    config: TrainConfig,
    *,
    vocabulary: bytes | None,
    labels: LabelSet | None,
) -> dict[str, Teacher]:
    """Returns the teachers that a configuration names; call it in the strategy's scope.

    Args:
        weights: The teachers' weights by their names.
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
) -> Teacher:
    targets = frozenset(item.target for item in config.distillation if item.teacher == name)
    by_texts = "classes" in targets and weights.config.image.classes is None
    reads = by_texts or "pairs" in targets
    settings = dataclasses.replace(
        weights.config,
        precision=config.precision,
        rematerialize=False,
        text=weights.config.text if reads else None,
        # How it was trained itself does not matter.
        data=DataConfig(),
        loss=LossConfig(name=weights.config.loss.name, weight=1.0 if reads else 0.0),
        distillation=() if reads else (DistillationConfig(name),),
    )
    if "pairs" in targets and weights.config.loss.name != "sigmoid":
        raise ValueError(
            f"The teacher {name} must be of the sigmoid loss to give probabilities of pairs. "
            f"Received: loss.name={weights.config.loss.name!r}"
        )
    if reads and not any(parameter.startswith("text/") for parameter in weights.parameters):
        raise ValueError(
            f"The teacher {name} must have a text tower to tell pairs, or classes without a head. "
            "Received: weights of an image tower alone"
        )
    model = two_tower.build(settings)
    variables = two_tower.named_variables(model)
    shapes = {key: tuple(value.shape) for key, value in variables.items()}
    wanted = [r"image/.*"] + ([r"(?!image/).*"] if reads else [])
    for key, value in weight_folders.fitted(weights, shapes, wanted).items():
        variables[key].assign(value)
    tokenizer = _tokenizer(name, weights.vocabulary, settings) if reads else None
    if by_texts:
        assert tokenizer is not None
        if labels is None:
            raise ValueError(
                f"The teacher {name} has no head and tells classes by their texts, which a label "
                "set (classes.json) must name. Received: labels=none"
            )
        tokens_of = tokenizer
        encode = tf.function(lambda texts: model.embed_text(tokens_of(texts)), autograph=False)
        embeddings = two_tower.embed_classes(encode, labels)
        variables[_CLASS_EMBEDDINGS] = tf.Variable(embeddings, trainable=False)
    if "classes" in targets:
        _check_classes(name, labels if by_texts else None, settings, config)
    own_pixels = _pixels(settings.image) != _pixels(config.image)
    own_texts = "pairs" in targets and (
        _words(settings) != _words(config) or not _same(weights.vocabulary, vocabulary)
    )
    view = View(settings.image if own_pixels else None, tokenizer if own_texts else None)
    return Teacher(model, variables, targets, view)


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
        image.resize_side,
    )


def _words(config: TrainConfig) -> dict[str, Any]:
    """Returns what decides the tokens of a text, beside the vocabulary."""
    text = dataclasses.asdict(config.text_tower)
    sizes = ("vocabulary_size", "width", "depth", "mlp_dim", "num_heads", "pool", "end_id", "block")
    return {k: v for k, v in text.items() if k not in (*sizes, "causal", "head_bias")}


def look(
    teachers: Mapping[str, Teacher],
    variables: Mapping[str, Mapping[str, tf.Tensor]],
    inputs: Mapping[str, tf.Tensor],
) -> dict[str, dict[str, tf.Tensor]]:
    """Returns what each teacher says of a batch; see `objectives`. No gradient flows through it.

    Args:
        teachers: The teachers by name.
        variables: Values of their variables.
        inputs: The batch; a teacher's own view has its name behind a slash.
    """
    return {
        name: tf.nest.map_structure(tf.stop_gradient, _look(name, teacher, variables[name], inputs))
        for name, teacher in teachers.items()
    }


def _look(
    name: str,
    teacher: Teacher,
    variables: Mapping[str, tf.Tensor],
    inputs: Mapping[str, tf.Tensor],
) -> dict[str, tf.Tensor]:
    model, found = teacher.model, {}
    parameters = two_tower.named_parameters(model)
    mapping = [(parameters[key], variables[key]) for key in parameters]
    with keras.StatelessScope(state_mapping=mapping):
        pixels = inputs.get(f"{combined.IMAGE}/{name}", inputs[combined.IMAGE])
        said = model.look(preprocess.to_model_range(pixels, model.config.image))
        found[combined.IMAGE] = said[combined.IMAGE]
        if "pairs" in teacher.targets:
            ids = inputs.get(f"{combined.TEXT}/{name}", inputs.get(combined.TEXT))
            found[combined.TEXT] = model.embed_text(ids)
    if "classes" in teacher.targets:
        found[combined.CLASSES] = said.get(combined.CLASSES)
    if _CLASS_EMBEDDINGS in variables:
        scores = tf.matmul(found[combined.IMAGE], variables[_CLASS_EMBEDDINGS], transpose_b=True)
        found[combined.CLASSES] = tf.exp(variables["log_temperature"]) * scores
    return found


def scalars(variables: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    """Returns the scalars of a teacher's logits of pairs; none of an image tower alone."""
    if "bias" not in variables:
        return {}
    return {
        combined.TEMPERATURE: tf.exp(variables["log_temperature"]),
        combined.BIAS: variables["bias"],
    }
