"""The training configuration: frozen dataclasses, strict overrides, JSON in and out.

A recipe (`trainer/recipes/NAME.py`) has a function `config()` that returns a `TrainConfig`.
"""

import dataclasses
import importlib
import json
import math
import types
import typing
from dataclasses import dataclass, field
from typing import Any

from sigline.schemas import digests
from sigline.schemas.gate import Gate


@dataclass(frozen=True)
class ImageTowerConfig:
    """A plain ViT.

    Attributes:
        size: Side of the square input in pixels.
        patch: Side of a patch in pixels; divides `size`.
        width: Width of the residual stream.
        depth: Number of blocks.
        mlp_dim: Hidden width of the MLPs.
        num_heads: Attention heads; divides `width`.
        pool: `map` (attention pooling), `gap` (mean) or `tok` (class token).
        antialias: Whether resizing to `size` is antialiased; SigLIP's contract is False.
        frozen: Whether the tower keeps its weights: no gradient, no moments, no decay. They are
            the initial ones, as long as no others can be given.
    """

    size: int = 224
    patch: int = 16
    width: int = 768
    depth: int = 12
    mlp_dim: int = 3072
    num_heads: int = 12
    pool: str = "map"
    antialias: bool = False
    frozen: bool = False


@dataclass(frozen=True)
class TextTowerConfig:
    """A bidirectional text transformer whose last token is the representation.

    Attributes:
        vocabulary_size: Rows of the token embedding; at least the vocabulary's size.
        length: Tokens per text after truncation and padding.
        width: Width of the residual stream.
        depth: Number of blocks.
        mlp_dim: Hidden width of the MLPs.
        num_heads: Attention heads; divides `width`.
        lowercase: Whether texts are lower-cased.
        strip_punctuation: Whether ASCII punctuation is removed.
    """

    vocabulary_size: int = 32_000
    length: int = 64
    width: int = 768
    depth: int = 12
    mlp_dim: int = 3072
    num_heads: int = 12
    lowercase: bool = True
    strip_punctuation: bool = True


@dataclass(frozen=True)
class LossConfig:
    """The loss over all pairs of the global batch.

    Attributes:
        name: `sigmoid` (SigLIP) or `softmax` (CLIP, which ignores the bias).
        temperature_init: Initial temperature; its logarithm is trained.
        bias_init: Initial bias of the logits; None for the log prior of a positive pair,
            `-log(global_batch_size - 1)`.
        chunk_size: Texts per block of pairs; None for four million pairs, but at least 512 texts.
            Changes memory and speed, not the result.
        exchange: How texts reach the images of other replicas: `ring`, `all_gather` or `auto`.
        negatives: Which negatives count: `all`, or for studies of the sigmoid loss `random`, `hard`
            or `easy` ones, `negatives_per_image` of them.
        negatives_per_image: How many; not used with `all`.
    """

    name: str = "sigmoid"
    temperature_init: float = 10.0
    bias_init: float | None = -10.0
    chunk_size: int | None = None
    exchange: str = "auto"
    negatives: str = "all"
    negatives_per_image: int = 16


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with a warm-up and a cosine decay to zero.

    Attributes:
        learning_rate: Peak learning rate.
        weight_decay: Decay in big_vision's convention: times the schedule, not times the rate.
        beta_1: Decay of the first moment.
        beta_2: Decay of the second moment.
        epsilon: Added to the root of the second moment.
        clip_norm: Largest global norm of the gradient.
        warmup_steps: Steps of linear warm-up.
        first_moment_dtype: `float32`, or `bfloat16` to save two bytes a parameter.
    """

    learning_rate: float = 1e-3
    weight_decay: float = 1e-4
    beta_1: float = 0.9
    beta_2: float = 0.95
    epsilon: float = 1e-8
    clip_norm: float = 1.0
    warmup_steps: int = 0
    first_moment_dtype: str = "float32"


@dataclass(frozen=True)
class DataConfig:
    """How training examples are read.

    Attributes:
        shuffle_records: Size of the shuffle buffer, in encoded records.
        max_image_pixels: Largest image that is decoded, in pixels.
    """

    shuffle_records: int = 50_000
    max_image_pixels: int = 25_000_000


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides the outcome of a training run, besides data and code.

    Attributes:
        name: Name of the recipe.
        steps: Optimizer steps.
        global_batch_size: Pairs per step over all replicas.
        seed: Seed of the initial weights, the shuffle and the choice of captions.
        checkpoint_steps: Steps between checkpoints.
        log_steps: Steps between log lines and TensorBoard scalars.
        strategy: `auto` (all TPU cores, else all GPUs, else the CPU), `tpu`, `mirrored` or
            `one_device`.
        jit_compile: Whether XLA compiles the forward and backward pass; None means on a TPU and on
            a single GPU.
        precision: `float32`, or `bfloat16` for all that the towers compute but norms and softmax;
            parameters and the loss stay float32.
        rematerialize: Whether the backward pass computes each block of the towers again instead of
            keeping what is inside: memory for time.
    """

    name: str
    steps: int
    global_batch_size: int
    image: ImageTowerConfig = field(default_factory=ImageTowerConfig)
    text: TextTowerConfig = field(default_factory=TextTowerConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    data: DataConfig = field(default_factory=DataConfig)
    seed: int = 0
    checkpoint_steps: int = 1000
    log_steps: int = 50
    strategy: str = "auto"
    jit_compile: bool | None = None
    precision: str = "float32"
    rematerialize: bool = False

    def __post_init__(self) -> None:
        _check_tower("image", self.image.width, self.image.num_heads)
        _check_tower("text", self.text.width, self.text.num_heads)
        if self.image.size % self.image.patch:
            raise ValueError(
                "image.patch must divide image.size; pixels would be dropped otherwise. "
                f"Received: image.size={self.image.size}, image.patch={self.image.patch}"
            )
        for name in ("steps", "global_batch_size", "checkpoint_steps", "log_steps"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"{name} must be at least 1. Received: {name}={getattr(self, name)}"
                )
        _check_choice("image.pool", self.image.pool, ("map", "gap", "tok"))
        _check_choice("strategy", self.strategy, ("auto", "tpu", "mirrored", "one_device"))
        _check_choice("precision", self.precision, ("float32", "bfloat16"))
        _check_choice("loss.name", self.loss.name, ("sigmoid", "softmax"))
        _check_choice("loss.exchange", self.loss.exchange, ("auto", "ring", "all_gather"))
        _check_choice("loss.negatives", self.loss.negatives, ("all", "random", "hard", "easy"))
        _check_choice(
            "optimizer.first_moment_dtype",
            self.optimizer.first_moment_dtype,
            ("float32", "bfloat16"),
        )
        if self.loss.name == "softmax" and self.loss.negatives != "all":
            raise ValueError(
                "loss.negatives must be all with the softmax loss. "
                f"Received: loss.negatives={self.loss.negatives!r}"
            )
        for name in ("chunk_size", "negatives_per_image"):
            value = getattr(self.loss, name)
            if value is not None and value < 1:
                raise ValueError(f"loss.{name} must be at least 1. Received: loss.{name}={value}")

    @property
    def bias_init(self) -> float:
        """Initial bias of the logits; none with the softmax loss, which no bias changes."""
        if self.loss.name == "softmax":
            return 0.0
        if self.loss.bias_init is not None:
            return self.loss.bias_init
        # A batch of one pair has no negatives, and any bias will do.
        return -math.log(max(self.global_batch_size - 1, 1))

    def to_json(self) -> str:
        """Returns the configuration as JSON text with sorted keys."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True, indent=1)

    def digest(self) -> str:
        """Returns the SHA-256 of the JSON form."""
        return digests.text_digest(self.to_json())


def from_json(text: str) -> TrainConfig:
    """Reads a configuration back from `TrainConfig.to_json`; unknown keys are an error."""
    return _build(TrainConfig, json.loads(text), "")


def load_recipe(name: str) -> TrainConfig:
    """Returns the configuration of `trainer/recipes/NAME.py`.

    Raises:
        ValueError: If there is no such recipe; the message lists those that exist.
    """
    return _recipe(name).config()


def load_gate(name: str) -> Gate:
    """Returns what a model of `trainer/recipes/NAME.py` must reach before it is published.

    Raises:
        ValueError: If there is no such recipe, or it has no gate.
    """
    module = _recipe(name)
    if not hasattr(module, "gate"):
        raise ValueError(
            f"Recipe {name} has no gate() and cannot run as a pipeline. Received: name={name!r}. "
            "Add a function gate() to the recipe, or train it with `sigline train`."
        )
    return module.gate()


def _recipe(name: str) -> types.ModuleType:
    from sigline.trainer import recipes

    known = recipes.names()
    if name not in known:
        raise ValueError(
            f"Unknown recipe. Received: name={name!r}. Known recipes: {', '.join(known)}"
        )
    return importlib.import_module(f"sigline.trainer.recipes.{name}")


def override(config: TrainConfig, assignments: typing.Iterable[str]) -> TrainConfig:
    """Returns the configuration with `a.b=value` assignments applied, strictly.

    Raises:
        ValueError: If a key is unknown (the message names the known keys), a value has the wrong
            type, or an assignment has no `=`.
    """
    data = dataclasses.asdict(config)
    for assignment in assignments:
        key, separator, text = assignment.partition("=")
        if not separator:
            raise ValueError(f"An override reads KEY=VALUE. Received: {assignment!r}")
        _assign(TrainConfig, data, key.split("."), text, key)
    # Checked as a whole: values that only fit together may come in any order.
    return _build(TrainConfig, data, "")


def tiny(config: TrainConfig) -> TrainConfig:
    """Returns the same recipe at a size that trains in seconds on a CPU, for tests."""
    image = dataclasses.replace(
        config.image, size=2 * config.image.patch, width=32, depth=2, mlp_dim=64, num_heads=2
    )
    text = dataclasses.replace(
        config.text, vocabulary_size=512, length=16, width=32, depth=2, mlp_dim=64, num_heads=2
    )
    return dataclasses.replace(
        config,
        image=image,
        text=text,
        steps=4,
        jit_compile=None,
        global_batch_size=8,
        checkpoint_steps=2,
        log_steps=1,
        optimizer=dataclasses.replace(config.optimizer, warmup_steps=1),
        data=dataclasses.replace(config.data, shuffle_records=64),
    )


def _check_tower(name: str, width: int, num_heads: int) -> None:
    if width % num_heads:
        raise ValueError(
            f"{name}.num_heads must divide {name}.width. "
            f"Received: {name}.width={width}, {name}.num_heads={num_heads}"
        )


def _check_choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}. Received: {name}={value!r}")


def _build(cls: type, data: Any, path: str) -> Any:
    if not isinstance(data, dict):
        raise ValueError(f"{path or 'the configuration'} must be an object. Received: {data!r}")
    hints = typing.get_type_hints(cls)
    unknown = sorted(set(data) - set(hints))
    if unknown:
        raise ValueError(
            f"Unknown key {', '.join(path + item for item in unknown)}. "
            f"Known keys: {', '.join(path + item for item in hints)}"
        )
    values = {}
    for name, value in data.items():
        if dataclasses.is_dataclass(hints[name]):
            values[name] = _build(typing.cast(type, hints[name]), value, f"{path}{name}.")
        else:
            values[name] = _checked(hints[name], value, path + name)
    return cls(**values)


def _assign(cls: type, data: dict[str, Any], keys: list[str], text: str, full_key: str) -> None:
    hints = typing.get_type_hints(cls)
    head, *rest = keys
    prefix = full_key[: len(full_key) - len(".".join(keys))]
    known = ", ".join(prefix + item for item in hints)
    if head not in hints:
        raise ValueError(f"Unknown key {full_key}. Known keys: {known}")
    nested = dataclasses.is_dataclass(hints[head])
    if nested != bool(rest):
        problem = "names a group of keys, not a value" if nested else "has no keys below it"
        raise ValueError(
            f"{prefix}{head} {problem}. Received: {full_key}={text}. Known keys: {known}"
        )
    if nested:
        _assign(typing.cast(type, hints[head]), data[head], rest, text, full_key)
    else:
        data[head] = _parse(hints[head], text, full_key)


def _parse(hint: Any, text: str, key: str) -> Any:
    if hint is str:
        return text
    literals = {"true": True, "false": False, "none": None}
    if text.lower() in literals:
        value: Any = literals[text.lower()]
    else:
        try:
            value = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"{key} must be {_type_name(hint)}. Received: {key}={text}") from error
    return _checked(hint, value, key)


def _checked(hint: Any, value: Any, key: str) -> Any:
    allowed = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if float in allowed and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) in allowed:
        return value
    raise ValueError(f"{key} must be {_type_name(hint)}. Received: {key}={value!r}")


def _type_name(hint: Any) -> str:
    return str(hint) if isinstance(hint, types.UnionType) else hint.__name__
