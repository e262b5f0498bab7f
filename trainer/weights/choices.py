"""What a user says of weights that their files do not tell, such as `text.pool=gap`."""

from collections.abc import Iterable, Mapping

from sigline.trainer import config as trainer_config
from sigline.trainer.config import TrainConfig
from sigline.trainer.weights import processor, tokenizer_files

PIXELS = tuple(f"image.{name}" for name in processor.FIELDS)
TEXTS = tuple(f"text.{name}" for name in tokenizer_files.RULES)


def parsed(assignments: Iterable[str], allowed: Iterable[str]) -> dict[str, str]:
    """Returns the values of `KEY=VALUE` assignments by their keys.

    Args:
        assignments: What the user says.
        allowed: Keys that the files do not tell.

    Raises:
        ValueError: If an assignment has no `=`, or its key is another one.
    """
    allowed = tuple(allowed)
    values = {}
    for assignment in assignments:
        key, separator, value = assignment.partition("=")
        if not separator or key not in allowed:
            raise ValueError(
                "--set reads KEY=VALUE and says what the file does not tell: "
                f"{', '.join(allowed)}. Received: {assignment!r}"
            )
        values[key] = value
    return values


def applied(config: TrainConfig, chosen: Mapping[str, str]) -> TrainConfig:
    """Returns the configuration with the chosen values, whose types are checked."""
    return trainer_config.override(config, [f"{key}={value}" for key, value in chosen.items()])
