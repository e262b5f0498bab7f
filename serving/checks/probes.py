"""Probes of the infra check: for each signature, a test request and the checks of its answer."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from sigline.schemas import signatures
from sigline.serving.checks import oriented_images

_NORM_TOLERANCE = 1e-3
# Larger than rounding: a server may compute the images of a request in batches of other sizes.
_ORIENTATION_TOLERANCE = 1e-4
# Signatures that every model must have.
REQUIRED = frozenset({signatures.EMBED_IMAGE, signatures.EMBED_IMAGE_SAFE})

Answer = dict[str, np.ndarray]
Call = Callable[[str, dict[str, list]], Answer]


class WrongAnswer(RuntimeError):
    """A signature gives a wrong answer; the message says what is wrong."""


@dataclass(frozen=True)
class Golden:
    """Expected answers: the outputs of the model in the trainer for the same images and texts.

    Attributes:
        image: Embeddings, shape `(images, dim)`; NaN where unknown.
        text: Embeddings, shape `(texts, dim)`; NaN where unknown; None if the model has no text
            tower.
        class_logits: Shape `(images, classes)`; NaN where unknown; None if the model has no head.
        tolerance: Largest absolute difference of a component of an embedding. For logits it is
            multiplied by the largest absolute logit, if that is above 1.
    """

    image: np.ndarray
    text: np.ndarray | None
    tolerance: float
    class_logits: np.ndarray | None = None


class ProbeInputs(NamedTuple):
    """Inputs of the probes, and the expected answers.

    Attributes:
        images: Encoded images that are known to be good, at least one.
        texts: Texts; at least one for a model with a text tower.
        golden: The expected answers; None if they are unknown.
    """

    images: Sequence[bytes]
    texts: Sequence[str]
    golden: Golden | None

    @property
    def image_input(self) -> dict[str, list]:
        """The feed of a signature that takes images."""
        return {signatures.IMAGE_BYTES: list(self.images)}

    @property
    def text_input(self) -> dict[str, list]:
        """The feed of a signature that takes texts."""
        return {signatures.TEXT: list(self.texts)}


def _embed_image(call: Call, inputs: ProbeInputs) -> None:
    """Embeddings are unit vectors, equal to the trainer's, and independent of EXIF orientation."""
    answer = call(signatures.EMBED_IMAGE, inputs.image_input)[signatures.EMBEDDING]
    expected = None if inputs.golden is None else inputs.golden.image
    _check_embeddings("image", answer, len(inputs.images), expected, inputs)
    images = [encoded for _, _, encoded in oriented_images.oriented_images()]
    answer = call(signatures.EMBED_IMAGE, {signatures.IMAGE_BYTES: images})
    difference, image = oriented_images.max_difference(answer[signatures.EMBEDDING])
    if difference > _ORIENTATION_TOLERANCE:
        raise WrongAnswer(
            f"{image} gets another embedding than the upright picture: off by {difference:.2g}, of "
            f"at most {_ORIENTATION_TOLERANCE:g}"
        )


def _embed_image_safe(call: Call, inputs: ProbeInputs) -> None:
    """Images that do not decode are marked as invalid, and others as valid."""
    broken = [inputs.images[0], b"not an image", b""]
    answer = call(signatures.EMBED_IMAGE_SAFE, {signatures.IMAGE_BYTES: broken})
    valid = answer[signatures.VALID].tolist()
    if valid != [True, False, False]:
        raise WrongAnswer(
            "embed_image_safe must mark a good image and two broken ones as [True, False, False]. "
            f"Received: {valid}"
        )


def _embed_text(call: Call, inputs: ProbeInputs) -> None:
    """Embeddings are unit vectors, and equal to the trainer's."""
    answer = call(signatures.EMBED_TEXT, inputs.text_input)[signatures.EMBEDDING]
    expected = None if inputs.golden is None else inputs.golden.text
    _check_embeddings("text", answer, len(inputs.texts), expected, inputs)


def _similarity(call: Call, inputs: ProbeInputs) -> None:
    """Answers are probabilities of all pairs."""
    answer = call(signatures.SIMILARITY, inputs.image_input | inputs.text_input)
    _check_probabilities(
        "similarity",
        answer[signatures.PROBABILITIES],
        (len(inputs.images), len(inputs.texts)),
        "(images, texts)",
    )


def _classify(call: Call, inputs: ProbeInputs) -> None:
    """Answers are names of classes with probabilities, the best first."""
    answer = call(signatures.CLASSIFY, inputs.image_input)
    scores, names = answer[signatures.SCORES], answer[signatures.CLASSES]
    shape = (len(inputs.images), names.shape[-1])
    _check_probabilities("classify", scores, shape, "(images, classes)")
    if names.shape != shape or (np.diff(scores, axis=1) > 0).any():
        raise WrongAnswer(
            f"classify must answer with names and scores of shape {shape}, the best first. "
            f"Received: names of shape {names.shape}, for the first image {scores[0].tolist()}"
        )


def _class_logits(call: Call, inputs: ProbeInputs) -> None:
    """Logits are finite and equal to the trainer's; broken images are marked as invalid."""
    answer = call(
        signatures.CLASS_LOGITS, {signatures.IMAGE_BYTES: [*inputs.images, b"not an image"]}
    )
    logits, valid = answer[signatures.LOGITS], answer[signatures.VALID]
    if valid.tolist() != [True] * len(inputs.images) + [False]:
        raise WrongAnswer(
            "class_logits must mark all images as valid, except for the last one, which is broken. "
            f"Received: {valid.tolist()}"
        )
    if logits.shape[0] != len(valid) or not np.isfinite(logits).all():
        raise WrongAnswer(
            f"class_logits must be {len(valid)} rows of finite numbers. "
            f"Received: {_summary(logits)}"
        )
    if inputs.golden is not None and inputs.golden.class_logits is not None:
        expected = inputs.golden.class_logits
        scale = max(float(np.nanmax(np.abs(expected), initial=0.0)), 1.0)
        _compare("class logits", logits[:-1], expected, inputs.golden.tolerance * scale)


# By signature, in the order in which the probes run.
PROBES: Mapping[str, Callable[[Call, ProbeInputs], None]] = {
    signatures.EMBED_IMAGE: _embed_image,
    signatures.EMBED_TEXT: _embed_text,
    signatures.SIMILARITY: _similarity,
    signatures.EMBED_IMAGE_SAFE: _embed_image_safe,
    signatures.CLASSIFY: _classify,
    signatures.CLASS_LOGITS: _class_logits,
}


def probe_all(call: Call, probe_inputs: ProbeInputs, names: Collection[str]) -> None:
    """Runs the probes of a model's signatures, at each of its grids.

    Args:
        call: Calls a signature.
        probe_inputs: The inputs; their expected answers are those of the default grid.
        names: The model's signatures.

    Raises:
        WrongAnswer: If an answer is wrong; the message names the grid, if it is of one.
    """
    grids: dict[str, list[int | None]] = {}
    for signature in names:
        name, grid = signatures.split_grid(signature)
        grids.setdefault(name, []).append(grid)
    for name, probe in PROBES.items():
        for grid in sorted(grids.get(name, []), key=lambda grid: grid or 0):
            if grid is None:
                probe(call, probe_inputs)
            else:
                _probe_at(grid, probe, call, probe_inputs)


def _probe_at(
    grid: int, probe: Callable[[Call, ProbeInputs], None], call: Call, probe_inputs: ProbeInputs
) -> None:
    try:
        probe(
            lambda signature, feed: call(signatures.at_grid(signature, grid), feed),
            probe_inputs._replace(golden=None),
        )
    except WrongAnswer as error:
        raise WrongAnswer(f"at {grid} x {grid} patches: {error}") from None


def _check_embeddings(
    name: str, vectors: np.ndarray, count: int, expected: np.ndarray | None, inputs: ProbeInputs
) -> None:
    if vectors.shape[0] != count or not np.isfinite(vectors).all():
        raise WrongAnswer(
            f"{name} embeddings must be {count} rows of finite numbers. "
            f"Received: {_summary(vectors)}"
        )
    difference = float(np.abs(np.linalg.norm(vectors, axis=1) - 1.0).max())
    if difference > _NORM_TOLERANCE:
        raise WrongAnswer(f"{name} embeddings must have unit length: off by {difference:.2g}")
    if expected is not None:
        assert inputs.golden is not None
        _compare(f"{name} embeddings", vectors, expected, inputs.golden.tolerance)


def _check_probabilities(name: str, values: Any, shape: tuple[int, ...], words: str) -> None:
    if values.shape != shape or not np.all((values >= 0) & (values <= 1)):
        raise WrongAnswer(
            f"{name} must answer with probabilities {words} of shape {shape}. "
            f"Received: {_summary(values)}"
        )


def _compare(name: str, received: np.ndarray, expected: np.ndarray, tolerance: float) -> None:
    if received.shape != expected.shape:
        raise WrongAnswer(
            f"{name} have the shape {received.shape}, in the trainer {expected.shape}"
        )
    known = ~np.isnan(expected).any(axis=1)
    differences = np.abs(received[known].astype(np.float64) - expected[known])
    largest = float(differences.max(initial=0.0))
    if largest > tolerance:
        raise WrongAnswer(
            f"{name} differ from those of the model in the trainer by {largest:.2g}, of at "
            f"most {tolerance:.2g}"
        )


def _summary(values: np.ndarray) -> str:
    """Returns the shape and range of an answer, for error messages."""
    if not values.size:
        return f"shape {values.shape}"
    return f"shape {values.shape}, values {values.min():.4g} to {values.max():.4g}"
