"""What a run has before its first step: weights, the way to embed, the state."""

import dataclasses
from pathlib import Path
from typing import Any

import tensorflow as tf

from sigline.schemas.labels import LabelSet
from sigline.trainer.config import DataConfig, TextTowerConfig, TrainConfig
from sigline.trainer.export import saved_model
from sigline.trainer.inputs import data, preprocess
from sigline.trainer.models import specs, two_tower
from sigline.trainer.objectives import making
from sigline.trainer.training import optimizers
from sigline.trainer.training.calls import Models
from sigline.trainer.training.state import TrainState, trained_names
from sigline.trainer.weights import model_weights, weight_folders
from sigline.trainer.weights.model_weights import Weights


def start_from(model: two_tower.TwoTower, weights: Weights | None, config: TrainConfig) -> None:
    """Assigns the parameters that `config.pretrained` names.

    Raises:
        ValueError: If weights are given and not asked for, or the other way round, or do not fit.
    """
    if weights is None and config.pretrained:
        raise ValueError(
            "The recipe starts from weights, which must be given. "
            f"Received: pretrained={list(config.pretrained)}"
        )
    if weights is None:
        return
    if not config.pretrained:
        raise ValueError(
            "pretrained must name the parameters that start from the given weights, such as "
            'pretrained=["image/.*"]. Received: pretrained=[]'
        )
    variables = two_tower.named_variables(model)
    shapes = {name: tuple(value.shape) for name, value in variables.items()}
    for name, value in model_weights.fitted(weights, shapes, config.pretrained).items():
        variables[name].assign(value)


def export_frozen_tower(directory: str | Path, config: TrainConfig, weights: str | Path) -> str:
    """Writes the SavedModel of the image tower that a run with these weights has.

    Args:
        directory: Where it goes; see `saved_model.export_image_tower`.
        config: The configuration.
        weights: A folder of weights.

    Returns:
        The tower's digest.
    """
    model = frozen_tower(config, weight_folders.load(weights))
    return saved_model.export_image_tower(directory, model, config=model.config)["image_digest"]


def export_weights(
    directory: str | Path, weights: Weights, labels: LabelSet | None = None
) -> dict[str, Any]:
    """Writes the SavedModel of weights, as `saved_model.export`, and returns its metadata.

    Args:
        directory: Folder of the SavedModel.
        weights: The weights.
        labels: Classes for `classify`; None for those of the weights.

    Raises:
        ValueError: If the weights have no vocabulary, or are not those of a whole model.
    """
    if weights.vocabulary is None and weights.config.text is not None:
        raise ValueError(
            "The weights have no vocabulary, without which no text can be served. Import them with "
            "--vocabulary. Received: vocabulary=None"
        )
    model = two_tower.build(weights.config)
    start_from(model, weights, dataclasses.replace(weights.config, pretrained=(".*",)))
    return saved_model.export(
        directory,
        model,
        config=weights.config,
        vocabulary=weights.vocabulary,
        labels=labels or weights.labels,
        provenance={"weights_digest": weights.digest(), "initial_digest": weights.origin()},
        tokenizer=weights.tokenizer,
    )


def frozen_tower(config: TrainConfig, weights: Weights) -> two_tower.TwoTower:
    """Returns a model whose image tower has the given weights."""
    config = tower_config(config)
    model = two_tower.build(config)
    start_from(model, weights, config)
    return model


def tower_config(config: TrainConfig) -> TrainConfig:
    """Returns a configuration of nothing but what decides an image tower and its pixels."""
    text = TextTowerConfig(vocabulary_size=1, length=2, width=1, depth=1, mlp_dim=1, num_heads=1)
    return TrainConfig(
        name="frozen_tower",
        steps=1,
        global_batch_size=1,
        image=dataclasses.replace(config.image, classes=None),
        # The loss of pairs asks for a text tower; this model never runs it.
        text=text,
        data=DataConfig(max_image_pixels=config.data.max_image_pixels),
        pretrained=("image/(?!head/).*",),
    )


def check_embeddable(config: TrainConfig) -> None:
    """Raises ValueError unless a run may take images that are embedded before."""
    data.check_embedded(config)
    names = [name for name in specs.parameter_specs(config) if name.startswith("image/")]
    _check_frozen(trained_names(names, config), config)


def _check_frozen(trained: list[str], config: TrainConfig) -> None:
    if any(name.startswith("image/") for name in trained):
        raise ValueError(
            "Images that are embedded already need an image tower that is frozen by "
            f"optimizer.rates. Received: optimizer.rates={config.optimizer.rates}"
        )


def digest(model: two_tower.TwoTower) -> str:
    """Returns the digest of a model's parameters, as of weights that hold them."""
    variables = two_tower.named_variables(model)
    return model_weights.parameters_digest({name: x.numpy() for name, x in variables.items()})


def make_tokenizer(vocabulary: bytes | None, config: TrainConfig) -> preprocess.Tokenizer | None:
    """Returns the vocabulary of a model that reads; None for a model of images alone.

    Raises:
        ValueError: If the model reads and there is none, or the vocabulary is not fit for it.
    """
    if config.text is None:
        return None
    if vocabulary is None:
        raise ValueError("A model with a text tower needs a vocabulary. Received: vocabulary=none")
    return preprocess.Tokenizer(vocabulary, config.text)


def check_embedded_by(
    model: two_tower.TwoTower, embedded: dict | None, config: TrainConfig
) -> None:
    """Checks that a run may take images that are embedded before, if its data holds such.

    Args:
        model: The model at its start.
        embedded: What `shards.embeddings` says of the data.
        config: The configuration.

    Raises:
        ValueError: If the data holds embeddings of another image tower, or of one that is trained.
    """
    if embedded is None:
        return
    _check_frozen(trained_names(two_tower.named_parameters(model), config), config)
    digest = saved_model.image_digest(model)
    if digest != embedded["image_digest"]:
        raise ValueError(
            "The images were embedded by another image tower than the one given; embed them again "
            "with `sigline data embed`. Received: "
            f"image_digest={embedded['image_digest'][:12]} in the data, {digest[:12]} in the model"
        )


def make_state(models: Models) -> TrainState:
    """Returns the state of a run before its first step as variables.

    Under a strategy, call it in the strategy's scope.
    """
    config = models.config
    own = making.named_parameters(models.objectives)
    parameters = two_tower.named_variables(models.model) | {n: x.value for n, x in own.items()}
    first = tf.VariableAggregation.ONLY_FIRST_REPLICA
    trained = {name: parameters[name] for name in trained_names(parameters, config)}
    # Fail before the first step where a parameter matches no pattern of the weight decay.
    optimizers.matched(config.optimizer.decays, trained)
    averaged = trained if config.optimizer.ema_decay is not None else {}
    extras = {item.name: item.state() for item in models.objectives}
    return TrainState(
        parameters,
        optimizers.make_slots(trained, config),
        {name: tf.Variable(value, trainable=False) for name, value in averaged.items()},
        tf.Variable(tf.zeros((), tf.int64), trainable=False, aggregation=first),
        tf.Variable(tf.zeros((2,), tf.int64), trainable=False, aggregation=first),
        {
            objective: {
                name: tf.Variable(value, trainable=False, aggregation=first)
                for name, value in values.items()
            }
            for objective, values in extras.items()
            if values
        },
    )
