"""Weights of a model: values by name, what they belong to, and what another model takes over."""

import dataclasses
import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from sigline.schemas import digests
from sigline.schemas.labels import LabelSet
from sigline.trainer.config import TrainConfig
from sigline.trainer.models import positions


@dataclass(frozen=True)
class Weights:
    """Parameters and what they belong to.

    Attributes:
        config: A configuration whose model has these parameters.
        parameters: Values by the names of `two_tower.named_parameters`, float32; those of a tower
            that the source did not have are left out.
        vocabulary: A serialized SentencePiece model, if the source had one.
        initial_digest: Digest of the parameters that the training began with, if that is known.
        tokenizer: Files of a foreign tokenizer that is the vocabulary in another form, by name, as
            they were imported; they decide no answers.
        assumed: What a foreign source did not tell, and was assumed of it.
        left_out: What a foreign source holds beside, and no part of the model is.
        labels: Names of the classes of the head, if the source had some; they decide no numbers.
    """

    config: TrainConfig
    parameters: Mapping[str, np.ndarray]
    vocabulary: bytes | None = None
    initial_digest: str | None = None
    tokenizer: Mapping[str, bytes] = dataclasses.field(default_factory=dict)
    assumed: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    labels: LabelSet | None = None

    def digest(self) -> str:
        """Returns the digest of all that decides answers."""
        values = _digests(self.parameters)
        words = hashlib.sha256(self.vocabulary or b"").hexdigest()
        return digests.json_digest([self.config.digest(), values, words])

    def origin(self) -> str:
        """Returns the digest of what the training began with.

        Weights that came from elsewhere are their own origin, as they are that of a training that
        begins with them.
        """
        return self.initial_digest or parameters_digest(self.parameters)

    def ancestors(self) -> frozenset[str]:
        """Returns the digests of what kin may have begun with: of these, and of their origin."""
        return frozenset({parameters_digest(self.parameters), self.origin()})


def parameters_digest(parameters: Mapping[str, np.ndarray]) -> str:
    """Returns the digest of parameters by name."""
    return digests.json_digest(_digests(parameters))


def _digests(parameters: Mapping[str, np.ndarray]) -> dict[str, list]:
    return {
        name: [value.shape, hashlib.sha256(value.tobytes()).hexdigest()]
        for name, value in parameters.items()
    }


def fitted(
    weights: Weights, shapes: Mapping[str, Any], patterns: Iterable[str]
) -> dict[str, np.ndarray]:
    """Returns the weights that a model takes over, in its shapes.

    Args:
        weights: The weights to take parameters from.
        shapes: Shapes of the model's parameters by name.
        patterns: Regular expressions of the whole names of parameters to take over.

    Returns:
        Values by name. Learned positions of patches are resampled to another resolution.

    Raises:
        ValueError: If something that matches a pattern is only in the model or only in the weights,
            or its shape does not fit; the message lists all of it.
    """
    patterns = list(patterns)
    needed = {name for name in shapes if _matches(patterns, name)}
    available = {name for name in weights.parameters if _matches(patterns, name)}
    if not needed:
        raise ValueError(f"No parameter of the model matches. Received: pretrained={patterns}")
    missing, left_over = sorted(needed - available), sorted(available - needed)
    values, misfits = {}, []
    for name in sorted(needed & available):
        value = weights.parameters[name]
        if name == "image/positions" and value.shape != tuple(shapes[name]):
            value = _resampled(value, tuple(shapes[name]))
        if value.shape != tuple(shapes[name]):
            misfits.append(f"{name} {tuple(shapes[name])} but given {value.shape}")
        values[name] = value
    if missing or left_over or misfits:
        raise ValueError(
            "The weights do not fit the model. "
            f"Missing: {', '.join(missing) or 'nothing'}. "
            f"Left over: {', '.join(left_over) or 'nothing'}. "
            f"Of another shape: {', '.join(misfits) or 'nothing'}."
        )
    return values


def _matches(patterns: Iterable[str], name: str) -> bool:
    return any(re.fullmatch(pattern, name) for pattern in patterns)


def _resampled(value: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    grid = round(shape[1] ** 0.5)
    square = grid * grid == shape[1] and round(value.shape[1] ** 0.5) ** 2 == value.shape[1]
    return positions.resample(value, grid) if square else value
