"""A split as one model sees it, with what metrics need besides."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from sigline.components.evaluate.predictions import Predictions

# The name of the prompt set whose metrics have no suffix.
DEFAULT_PROMPTS = ""


@dataclass(frozen=True)
class Scale:
    """How the model makes probabilities of cosines.

    Attributes:
        temperature: Cosines are multiplied by it.
        bias: What is added then.
        softmax: Whether texts compete, instead of every pair on its own.
    """

    temperature: float
    bias: float
    softmax: bool = False

    def probabilities(self, cosines: np.ndarray) -> np.ndarray:
        """Returns probabilities of the same shape, float64; texts are the last axis."""
        logits = self.temperature * np.asarray(cosines, np.float64) + self.bias
        if self.softmax:
            logits = np.exp(logits - logits.max(axis=-1, keepdims=True))
            return logits / logits.sum(axis=-1, keepdims=True)
        # logaddexp does not overflow, whichever sign the logits have.
        return np.exp(-np.logaddexp(0.0, -logits))


@dataclass(frozen=True)
class View:
    """A split as one model sees it.

    Attributes:
        split: Records with their embeddings.
        classes: Unit embeddings of the classes, shape `(classes, dim)`, by the name of their
            prompts, such as a language; `DEFAULT_PROMPTS` among them, if there are any.
        scale: How the model makes probabilities; None if that is not known.
        support: Labelled records that probes learn from, as the model sees them; none by default.
        corrupted: What the model says of the same images after a corruption, by its name.
        by_grid: What a FlexiViT says of the same images at each of its grids, patches along a side;
            `split` itself at the default one. Empty for a model of one grid.
        teacher: The same records as a teacher sees them; none by default.
        captioned: Whether captions are to be retrieved.
        class_loss: What the model's head was trained by: `softmax`, `sigmoid` or `semantic`.
        levels: The level of each class in the tree that a `semantic` head learnt; empty for others.
    """

    split: Predictions
    classes: Mapping[str, np.ndarray] = field(default_factory=dict)
    scale: Scale | None = None
    support: Predictions | None = None
    corrupted: Mapping[str, Predictions] = field(default_factory=dict)
    by_grid: Mapping[int, Predictions] = field(default_factory=dict)
    teacher: "View | None" = None
    captioned: bool = True
    class_loss: str = "softmax"
    levels: tuple[int, ...] = ()

    @property
    def reads(self) -> bool:
        """Whether there are captions, and the model reads them."""
        return self.split.text is not None and any(x.text for x in self.split.records)


def labelled(split: Predictions) -> np.ndarray:
    """Returns the positions of records with a label."""
    return np.array([i for i, record in enumerate(split.records) if record.label], np.int64)
