"""What the infra check asks of each signature, and what a right answer is: one probe for each."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from sigline.schemas import signatures
from sigline.serving.checks import turned_pictures

_NORM_TOLERANCE = 1e-3
# A server may cut a request into batches of other sizes.
_TURNED_TOLERANCE = 1e-4
# Every model has these.
NEEDED = frozenset({signatures.EMBED_IMAGE, signatures.EMBED_IMAGE_SAFE})

Answer = dict[str, np.ndarray]
Call = Callable[[str, dict[str, list]], Answer]


class WrongAnswer(RuntimeError):
    """A signature answers otherwise than it must; the message says how."""


@dataclass(frozen=True)
class Golden:
    """What the model in the trainer makes of the images and texts that a server is asked.

    Attributes:
        image: Shape `(images, dim)`; NaN where it is not known.
        text: Shape `(texts, dim)`; NaN where it is not known; None of a model of images alone.
        class_logits: Shape `(images, classes)`; NaN where they are not known; None of a model
            without a head.
        tolerance: Largest difference of a number of an embedding; logits may differ by as much
            for each of the largest's size.
    """

    image: np.ndarray
    text: np.ndarray | None
    tolerance: float
    class_logits: np.ndarray | None = None


class Asked(NamedTuple):
    """What a server is asked about.

    Attributes:
        images: Encoded images that are known to be good, at least one.
        texts: Texts; at least one for a model that reads.
        golden: What the answers must be; None if it is not known.
    """

    images: Sequence[bytes]
    texts: Sequence[str]
    golden: Golden | None

    @property
    def image_input(self) -> dict[str, list]:
        """The input of a signature of images."""
        return {signatures.IMAGE_BYTES: list(self.images)}

    @property
    def text_input(self) -> dict[str, list]:
        """The input of a signature of texts."""
        return {signatures.TEXT: list(self.texts)}


def _embed_image(call: Call, asked: Asked) -> None:
    """Embeddings are unit vectors, those of the trainer, and the same however a picture lies."""
    answer = call(signatures.EMBED_IMAGE, asked.image_input)[signatures.EMBEDDING]
    expected = None if asked.golden is None else asked.golden.image
    _check_embeddings("image", answer, len(asked.images), expected, asked)
    pictures = [encoded for _, _, encoded in turned_pictures.turned_pictures()]
    answer = call(signatures.EMBED_IMAGE, {signatures.IMAGE_BYTES: pictures})
    off, which = turned_pictures.difference(answer[signatures.EMBEDDING])
    if off > _TURNED_TOLERANCE:
        raise WrongAnswer(
            f"{which} gets another embedding than the upright picture: off by {off:.2g}, of at "
            f"most {_TURNED_TOLERANCE:g}"
        )


def _embed_image_safe(call: Call, asked: Asked) -> None:
    """Images that do not decode are told from good ones."""
    broken = [asked.images[0], b"not an image", b""]
    answer = call(signatures.EMBED_IMAGE_SAFE, {signatures.IMAGE_BYTES: broken})
    if answer[signatures.VALID].tolist() != [True, False, False]:
        raise WrongAnswer("embed_image_safe does not tell good images from broken ones")


def _embed_text(call: Call, asked: Asked) -> None:
    """Embeddings are unit vectors, and those of the trainer."""
    answer = call(signatures.EMBED_TEXT, asked.text_input)[signatures.EMBEDDING]
    expected = None if asked.golden is None else asked.golden.text
    _check_embeddings("text", answer, len(asked.texts), expected, asked)


def _similarity(call: Call, asked: Asked) -> None:
    """Answers are probabilities of all pairs."""
    answer = call(signatures.SIMILARITY, asked.image_input | asked.text_input)
    _check_probabilities(
        "similarity",
        answer[signatures.PROBABILITIES],
        (len(asked.images), len(asked.texts)),
        "(images, texts)",
    )


def _classify(call: Call, asked: Asked) -> None:
    """Answers are names of classes with probabilities, the best first."""
    answer = call(signatures.CLASSIFY, asked.image_input)
    scores, names = answer[signatures.SCORES], answer[signatures.CLASSES]
    shape = (len(asked.images), names.shape[-1])
    _check_probabilities("classify", scores, shape, "(images, classes)")
    if names.shape != shape or (np.diff(scores, axis=1) > 0).any():
        raise WrongAnswer("classify does not answer with as many names, the best first")


def _class_logits(call: Call, asked: Asked) -> None:
    """Logits are finite, and those of the trainer; images that do not decode are told."""
    answer = call(
        signatures.CLASS_LOGITS, {signatures.IMAGE_BYTES: [*asked.images, b"not an image"]}
    )
    logits, valid = answer[signatures.LOGITS], answer[signatures.VALID]
    if valid.tolist() != [True] * len(asked.images) + [False]:
        raise WrongAnswer("class_logits does not tell good images from broken ones")
    if logits.shape[0] != len(valid) or not np.isfinite(logits).all():
        raise WrongAnswer(f"class_logits are not finite or not {len(valid)} rows")
    if asked.golden is not None and asked.golden.class_logits is not None:
        expected = asked.golden.class_logits
        scale = max(float(np.nanmax(np.abs(expected), initial=0.0)), 1.0)
        _compare("class logits", logits[:-1], expected, asked.golden.tolerance * scale)


# By signature, in the order in which they are asked.
PROBES: Mapping[str, Callable[[Call, Asked], None]] = {
    signatures.EMBED_IMAGE: _embed_image,
    signatures.EMBED_TEXT: _embed_text,
    signatures.SIMILARITY: _similarity,
    signatures.EMBED_IMAGE_SAFE: _embed_image_safe,
    signatures.CLASSIFY: _classify,
    signatures.CLASS_LOGITS: _class_logits,
}


def _check_embeddings(
    name: str, vectors: np.ndarray, count: int, expected: np.ndarray | None, asked: Asked
) -> None:
    if vectors.shape[0] != count or not np.isfinite(vectors).all():
        raise WrongAnswer(f"{name} embeddings are not finite or not {count} rows")
    off = float(np.abs(np.linalg.norm(vectors, axis=1) - 1.0).max())
    if off > _NORM_TOLERANCE:
        raise WrongAnswer(f"{name} embeddings are not of unit length: off by {off:.2g}")
    if expected is not None:
        assert asked.golden is not None
        _compare(f"{name} embeddings", vectors, expected, asked.golden.tolerance)


def _check_probabilities(name: str, values: Any, shape: tuple[int, ...], words: str) -> None:
    if values.shape != shape or not np.all((values >= 0) & (values <= 1)):
        raise WrongAnswer(f"{name} does not answer with probabilities {words}")


def _compare(name: str, received: np.ndarray, expected: np.ndarray, tolerance: float) -> None:
    if received.shape != expected.shape:
        raise WrongAnswer(
            f"{name} have the shape {received.shape}, in the trainer {expected.shape}"
        )
    known = ~np.isnan(expected).any(axis=1)
    off = float(np.abs(received[known].astype(np.float64) - expected[known]).max(initial=0.0))
    if off > tolerance:
        raise WrongAnswer(
            f"{name} differ from those of the model in the trainer by {off:.2g}, of at "
            f"most {tolerance:.2g}"
        )
