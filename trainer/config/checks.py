"""What a configuration must satisfy beyond the types of its fields."""

import math
import re
from typing import Any

from sigline.schemas import suggestions

# What is checked is a `TrainConfig`, whose module imports this one.
Config = Any

_CHOICES = {
    "image.pool": ("map", "gap", "tok", "last"),
    "image.positions": ("learned", "sincos2d"),
    "image.resize": ("squash", "crop"),
    "image.interpolation": ("bilinear", "bicubic", "box", "hamming", "lanczos"),
    "image.resampler": ("tensorflow", "pillow"),
    "image.block.activation": ("gelu_tanh", "gelu", "quick_gelu"),
    "text.pool": ("last", "first", "end", "gap", "max", "map"),
    "text.block.activation": ("gelu_tanh", "gelu", "quick_gelu"),
    "loss.name": ("sigmoid", "softmax"),
    "loss.exchange": ("auto", "ring", "all_gather"),
    "loss.negatives": ("all", "random", "hard", "easy"),
    "optimizer.name": ("adamw", "adafactor", "lion"),
    "optimizer.schedule": ("cosine", "linear", "rsqrt", "constant"),
    "optimizer.first_moment_dtype": ("float32", "bfloat16"),
    "run.strategy": ("auto", "multi_worker", "tpu", "mirrored", "one_device"),
    "precision": ("float32", "bfloat16"),
}
# Least values; None passes.
_AT_LEAST = {
    "steps": 1,
    "global_batch_size": 1,
    "run.checkpoint_steps": 1,
    "run.keep_checkpoints": 1,
    "run.keep_every_steps": 1,
    "run.max_skipped_steps": 0,
    "run.log_steps": 1,
    "microbatches": 1,
    "image.size": 1,
    "image.patch": 1,
    "image.width": 1,
    "image.depth": 1,
    "image.mlp_dim": 1,
    "image.num_heads": 1,
    "text.width": 1,
    "text.depth": 1,
    "text.mlp_dim": 1,
    "text.num_heads": 1,
    "text.vocabulary_size": 1,
    "data.shuffle_records": 1,
    "run.max_damaged_records": 0,
    "data.max_image_pixels": 1,
    "image.num_registers": 0,
    "image.projection": 1,
    "image.classes": 1,
    "text.length": 2,
    "text.end_id": 0,
    "loss.chunk_size": 1,
    "loss.negatives_per_image": 1,
    "optimizer.warmup_steps": 0,
    "optimizer.cooldown_steps": 0,
    "optimizer.timescale": 1,
}
# Shares: at least zero, and less than one.
_SHARES = (
    "image.token_dropout",
    "image.block.dropout",
    "image.block.stochastic_depth",
    "text.block.dropout",
    "text.block.stochastic_depth",
    "optimizer.beta_1",
    "optimizer.beta_2",
    "optimizer.ema_decay",
)


# Finite, and at least zero.
_NOT_NEGATIVE = (
    "optimizer.learning_rate",
    "optimizer.weight_decay",
    "optimizer.epsilon",
    "loss.weight",
    "loss.softmax_weight",
    "data.mixup",
)


def check(config: Config) -> None:
    """Raises ValueError, with the key and what to give, if a configuration makes no sense."""
    for key, allowed in _CHOICES.items():
        value = _get(config, key)
        if value not in allowed and not _is_left_out(config, key):
            raise ValueError(
                f"{key} must be one of {', '.join(allowed)}. Received: {key}={value!r}."
                f"{suggestions.did_you_mean(str(value), allowed)}"
            )
    for key, least in _AT_LEAST.items():
        value = _get(config, key)
        if value is not None and value < least:
            raise ValueError(f"{key} must be at least {least}. Received: {key}={value}")
    for key in _NOT_NEGATIVE:
        value = _get(config, key)
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"{key} must be at least 0. Received: {key}={value}")
    temperature = config.loss.temperature_init
    if not (math.isfinite(temperature) and temperature > 0):
        raise ValueError(
            f"loss.temperature_init must be positive. Received: loss.temperature_init={temperature}"
        )
    if min(config.image.std) <= 0:
        raise ValueError(f"image.std must be positive. Received: image.std={config.image.std}")
    minutes = config.run.checkpoint_minutes
    if minutes is not None and not minutes > 0:
        raise ValueError(
            "run.checkpoint_minutes must be positive, or none. "
            f"Received: run.checkpoint_minutes={minutes}"
        )
    for key in _SHARES:
        value = _get(config, key)
        if value is not None and not 0.0 <= value < 1.0:
            raise ValueError(f"{key} must be at least 0 and less than 1. Received: {key}={value}")
    area = config.data.crop_min_area
    if area is not None and not 0.0 < area <= 1.0:
        raise ValueError(
            "data.crop_min_area must be above 0 and at most 1, or none. "
            f"Received: data.crop_min_area={area}"
        )
    if not all(math.isfinite(x) and x > 0 for x in config.data.mixture):
        raise ValueError(
            "data.mixture must hold positive weights, or nothing. "
            f"Received: data.mixture={list(config.data.mixture)}"
        )
    for pattern in config.pretrained:
        _check_pattern("pretrained", pattern)
    _check_towers(config)
    _check_optimizer(config)
    _check_objectives(config)
    if config.loss.name == "softmax" and config.loss.negatives != "all":
        raise ValueError(
            "loss.negatives must be all with the softmax loss. "
            f"Received: loss.negatives={config.loss.negatives!r}"
        )


def _check_towers(config: Config) -> None:
    for name, tower in (("image", config.image), ("text", config.text)):
        if tower is not None and tower.width % tower.num_heads:
            raise ValueError(
                f"{name}.num_heads must divide {name}.width. "
                f"Received: {name}.width={tower.width}, {name}.num_heads={tower.num_heads}"
            )
    _check_pixels(config.image)
    text = config.text
    if text is not None and text.pool == "end" and text.end_id is None:
        raise ValueError("text.end_id must be given with text.pool=end. Received: text.end_id=None")
    if config.image.pool == "last" and config.image.token_dropout:
        raise ValueError(
            "image.token_dropout must be 0 with image.pool=last: the last patch may be left out. "
            f"Received: image.token_dropout={config.image.token_dropout}"
        )


def _check_pixels(image: Any) -> None:
    if image.size < image.patch:
        raise ValueError(
            "image.size must be at least image.patch. "
            f"Received: image.size={image.size}, image.patch={image.patch}"
        )
    if image.size % image.patch and not image.drop_remainder:
        raise ValueError(
            "image.patch must divide image.size; pixels on the right and below would be dropped "
            "otherwise, which image.drop_remainder=true allows. "
            f"Received: image.size={image.size}, image.patch={image.patch}"
        )
    if image.resize_side is not None and image.resize_side < image.size:
        raise ValueError(
            "image.resize_side must be at least image.size, or none. "
            f"Received: image.resize_side={image.resize_side}, image.size={image.size}"
        )
    if image.resampler == "pillow" and not image.antialias:
        raise ValueError(
            "image.antialias must be true with image.resampler=pillow, which always antialiases. "
            "Received: image.antialias=False"
        )
    if image.resampler != "pillow" and image.interpolation not in ("bilinear", "bicubic"):
        raise ValueError(
            f"image.interpolation={image.interpolation} needs image.resampler=pillow. "
            f"Received: image.resampler={image.resampler!r}"
        )


def _check_objectives(config: Config) -> None:
    if not config.loss.weight and not config.distillation:
        raise ValueError(
            "There must be something to learn: a loss.weight above 0 or distillation. "
            f"Received: loss.weight={config.loss.weight}, distillation=[]"
        )
    if config.loss.weight and config.text is None:
        raise ValueError(
            "loss.weight must be 0 without a text tower. "
            f"Received: loss.weight={config.loss.weight}, text=none"
        )
    if config.loss.weight and config.data.mixup:
        raise ValueError(
            "data.mixup must be 0 unless loss.weight is: a mixed image does not belong to its "
            f"text. Received: data.mixup={config.data.mixup}, loss.weight={config.loss.weight}"
        )
    if config.loss.softmax_weight and (config.loss.name != "sigmoid" or not config.loss.weight):
        raise ValueError(
            "loss.softmax_weight adds to the sigmoid loss; for the softmax loss alone give "
            f"loss.name=softmax. Received: loss.softmax_weight={config.loss.softmax_weight}, "
            f"loss.name={config.loss.name!r}, loss.weight={config.loss.weight}"
        )
    named = [(item.teacher, item.target) for item in config.distillation]
    if len(set(named)) != len(named):
        raise ValueError(
            "distillation must name each teacher and target once; raise the weight instead. "
            f"Received: {named}"
        )
    for i, item in enumerate(config.distillation):
        _check_distillation(config, f"distillation[{i}]", item)


def _check_distillation(config: Config, key: str, item: Any) -> None:
    if not re.fullmatch(r"\w+", item.teacher):
        raise ValueError(
            f"{key}.teacher must be a name of letters, digits and underscores. "
            f"Received: {key}.teacher={item.teacher!r}"
        )
    for name in ("weight", "temperature"):
        value = getattr(item, name)
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"{key}.{name} must be positive. Received: {key}.{name}={value}")
    if item.target == "classes":
        if config.image.classes is None:
            raise ValueError(
                f"{key}.target=classes needs a head. Received: image.classes=none. Set it to the "
                "number of classes of the teacher, or of the label set."
            )
        return
    if item.target != "pairs":
        raise ValueError(
            f"{key}.target must be one of classes, pairs. Received: {key}.target={item.target!r}"
        )
    if config.text is None or config.loss.name != "sigmoid":
        raise ValueError(
            f"{key}.target=pairs needs a text tower and loss.name=sigmoid, whose bias and "
            f"temperature the student learns. Received: loss.name={config.loss.name!r}, "
            f"text={'none' if config.text is None else 'given'}"
        )
    if item.temperature != 1.0:
        raise ValueError(
            f"{key}.temperature must be 1 for pairs. Received: {key}.temperature={item.temperature}"
        )


def _check_pattern(key: str, pattern: str) -> None:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(
            f"{key} holds no regular expression: {error}. Received: {pattern!r}"
        ) from error


def _check_optimizer(config: Config) -> None:
    optimizer = config.optimizer
    if optimizer.clip_norm is not None and optimizer.clip_norm <= 0:
        raise ValueError(
            "optimizer.clip_norm must be positive, or none for no limit. "
            f"Received: optimizer.clip_norm={optimizer.clip_norm}"
        )
    for key, rules in (("rates", optimizer.rates), ("decays", optimizer.decays)):
        for pattern, value in rules:
            _check_pattern(f"optimizer.{key}", pattern)
            # Frozen parameters are named by None; a rate of 0 would keep their slots.
            if (value is None and key == "decays") or (value is not None and not value >= 0):
                raise ValueError(
                    f"optimizer.{key} must hold factors of at least 0. "
                    f"Received: {pattern!r} with {value}"
                )


def _get(config: Any, key: str) -> Any:
    """Returns the value of a key; None if its group is left out."""
    for name in key.split("."):
        config = None if config is None else getattr(config, name)
    return config


def _is_left_out(config: Any, key: str) -> bool:
    return _get(config, key.split(".")[0]) is None
