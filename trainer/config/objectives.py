"""What a model learns: one dataclass for each kind of objective, and the scalars of pairs.

A run has a tuple of objectives, whose losses are added by weight. `trainer/objectives/` has a file
for each.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from sigline.schemas.labels import LabelSet
from sigline.trainer.config import checks

# What is checked against is a `TrainConfig`, whose module imports this one.
Config = Any


@dataclass(frozen=True)
class SimilarityConfig:
    """The scalars that turn products of embeddings into logits: temperature * product + bias.

    Attributes:
        temperature_init: Initial temperature; its logarithm is trained.
        bias_init: Initial bias of the logits; None for the log prior of a positive pair,
            `-log(global_batch_size - 1)`. The softmax loss has none.
    """

    temperature_init: float = 10.0
    bias_init: float | None = -10.0

    def check(self, key: str) -> None:
        """Raises ValueError, with the key and what to give, if a field makes no sense."""
        checks.positive(f"{key}.temperature_init", self.temperature_init)
        if self.bias_init is not None:
            checks.finite(f"{key}.bias_init", self.bias_init)


@dataclass(frozen=True)
class PairsConfig:
    """A loss over all pairs of the global batch.

    Attributes:
        loss: `sigmoid` (SigLIP) or `softmax` (CLIP, which ignores the bias).
        weight: Its factor beside other objectives.
        chunk_size: Texts per block of pairs; None for four million pairs, but at least 512 texts.
            Changes memory and speed, not the result.
        negatives: Which negatives count: `all`, or for studies of the sigmoid loss `random`, `hard`
            or `easy` ones, `negatives_per_image` of them.
        negatives_per_image: How many; not used with `all`.
    """

    kind: ClassVar[str] = "pairs"
    # Whether images may be mixed with others, and may be embedded before; what it asks of which
    # frozen model: `classes` or `pairs`.
    mixes: ClassVar[bool] = False
    takes_embedded: ClassVar[bool] = True
    asks: ClassVar[Mapping[str, str]] = {}

    loss: str = "sigmoid"
    weight: float = 1.0
    chunk_size: int | None = None
    negatives: str = "all"
    negatives_per_image: int = 16

    @property
    def name(self) -> str:
        """Names its scalars in logs; two objectives of a run have different names."""
        return "pairs" if self.loss == "sigmoid" else "softmax"

    def check(self, key: str, config: Config) -> None:
        """Raises ValueError, with the key and what to give, if it does not fit the model."""
        checks.one_of(f"{key}.loss", self.loss, ("sigmoid", "softmax"))
        checks.positive(f"{key}.weight", self.weight)
        checks.one_of(f"{key}.negatives", self.negatives, ("all", "random", "hard", "easy"))
        checks.at_least(f"{key}.chunk_size", self.chunk_size, 1)
        checks.at_least(f"{key}.negatives_per_image", self.negatives_per_image, 1)
        if config.text is None:
            raise ValueError(
                f"{key} is of images and texts and needs a text tower; leave the objective out for "
                f"a model of images alone. Received: {key}.kind={self.kind}, text=none"
            )
        if self.loss == "softmax" and self.negatives != "all":
            raise ValueError(
                f"{key}.negatives must be all with the softmax loss. "
                f"Received: {key}.negatives={self.negatives!r}"
            )


@dataclass(frozen=True)
class DistillConfig:
    """What the model learns from a teacher: a frozen model that sees the same pixels.

    Crop, flip and mixup are the same for both ("patient and consistent", arXiv 2106.05237); if the
    teacher has another resolution, it gets the same crop at that one.

    Attributes:
        teacher: Name that the teacher's weights are given under.
        target: `classes`, the teacher's distribution over classes (of its own head, or of its texts
            for a label set) for the student's head, by KL divergence; or `pairs`, the probabilities
            it gives to the pairs of the batch, by the sigmoid loss with these as soft targets. With
            `image.distillation_token` the head of that token learns `classes`.
        weight: Factor of this loss.
        temperature: Divides the logits of both for `classes`; the divergence is multiplied by its
            square, which keeps the size of the gradient. 1 for `pairs`, and with `hard`.
        chunk_size: As in `PairsConfig`, for `pairs`.
        hard: Whether the teacher's best class is the target of `classes`, by softmax cross-entropy
            without smoothing, in place of its distribution (arXiv 2012.12877, section 4).
    """

    kind: ClassVar[str] = "distill"
    mixes: ClassVar[bool] = True
    takes_embedded: ClassVar[bool] = False

    teacher: str
    target: str = "classes"
    weight: float = 1.0
    temperature: float = 1.0
    chunk_size: int | None = None
    hard: bool = False

    @property
    def name(self) -> str:
        """Names its scalars in logs; two objectives of a run have different names."""
        return f"{self.teacher}_{self.target}"

    @property
    def asks(self) -> Mapping[str, str]:
        """What it asks of which frozen model."""
        return {self.teacher: self.target}

    def check(self, key: str, config: Config) -> None:
        """Raises ValueError, with the key and what to give, if it does not fit the model."""
        if not re.fullmatch(r"\w+", self.teacher):
            raise ValueError(
                f"{key}.teacher must be a name of letters, digits and underscores. "
                f"Received: {key}.teacher={self.teacher!r}"
            )
        checks.one_of(f"{key}.target", self.target, ("classes", "pairs"))
        checks.positive(f"{key}.weight", self.weight)
        checks.positive(f"{key}.temperature", self.temperature)
        checks.at_least(f"{key}.chunk_size", self.chunk_size, 1)
        if self.hard and (self.target, self.temperature) != ("classes", 1.0):
            raise ValueError(
                f"{key}.hard must be false, or {key}.target classes and {key}.temperature 1: the "
                "teacher's best class is the same at any temperature. Received: "
                f"{key}.hard=True, {key}.target={self.target!r}, "
                f"{key}.temperature={self.temperature}"
            )
        if self.target == "classes":
            _check_head(f"{key}.target=classes", config, " of the teacher, or of the label set")
            return
        if config.text is None or config.pair_loss != "sigmoid":
            raise ValueError(
                f"{key}.target=pairs needs a text tower, and the sigmoid loss in an objective of "
                "pairs beside it: the student learns that loss's bias and temperature. Received: "
                f"loss={config.pair_loss!r}, text={'none' if config.text is None else 'there'}"
            )
        if self.temperature != 1.0:
            raise ValueError(
                f"{key}.temperature must be 1 for pairs. "
                f"Received: {key}.temperature={self.temperature}"
            )


@dataclass(frozen=True)
class ClassifyConfig:
    """Supervised classification of images by the image tower's head: `image.classes`.

    Each record's `label` has the ids of its classes. The loss is the mean over the labelled images
    of the global batch.

    Attributes:
        loss: `softmax` cross-entropy, in which several labels of an image share its probability
            equally; `sigmoid`, the sum over classes of their binary cross-entropies; or `semantic`
            (arXiv 2104.10972), a softmax for each level of a tree of the classes, which is
            `parents` in the run's label set. With `image.distillation_token` the head of the class
            token learns the labels.
        weight: Its factor beside other objectives.
        smoothing: Share of the target that is spread: over all classes by `softmax`, over those of
            each level that is reached by `semantic`; by `sigmoid` half of it is in every class.
        unlabelled: What becomes of records without a label: `refuse`, which stops the run as other
            records do that cannot be used, or `skip`: they do not count.
        labels_per_image: Most labels of a record; one with more cannot be used.
    """

    kind: ClassVar[str] = "classify"
    mixes: ClassVar[bool] = True
    takes_embedded: ClassVar[bool] = False
    asks: ClassVar[Mapping[str, str]] = {}

    loss: str = "softmax"
    weight: float = 1.0
    smoothing: float = 0.0
    unlabelled: str = "refuse"
    labels_per_image: int = 8

    @property
    def name(self) -> str:
        """Names its scalars in logs; two objectives of a run have different names."""
        return self.kind

    def check(self, key: str, config: Config) -> None:
        """Raises ValueError, with the key and what to give, if it does not fit the model."""
        checks.one_of(f"{key}.loss", self.loss, ("softmax", "sigmoid", "semantic"))
        checks.positive(f"{key}.weight", self.weight)
        checks.share(f"{key}.smoothing", self.smoothing)
        checks.one_of(f"{key}.unlabelled", self.unlabelled, ("refuse", "skip"))
        checks.at_least(f"{key}.labels_per_image", self.labels_per_image, 1)
        _check_head(key, config, " that the labels tell apart")
        if config.data.mixup and self.unlabelled == "skip":
            raise ValueError(
                f"{key}.unlabelled must be refuse with data.mixup, which mixes an image and its "
                "labels with those of its neighbour. Received: "
                f"{key}.unlabelled='skip', data.mixup={config.data.mixup}"
            )


# What `TrainConfig.objectives` may hold; the configuration names it by its kind.
ObjectiveConfig = PairsConfig | DistillConfig | ClassifyConfig


def check_together(objectives: tuple[ObjectiveConfig, ...], config: Config) -> None:
    """Raises ValueError if objectives do not fit each other or the rest of a configuration."""
    if not objectives:
        raise ValueError(
            "There must be something to learn: at least one of objectives, such as "
            '[{"kind": "pairs"}]. Received: objectives=[]'
        )
    for i, item in enumerate(objectives):
        item.check(f"objectives[{i}]", config)
        if config.data.mixup and not item.mixes:
            raise ValueError(
                f"data.mixup must be 0 with an objective of kind {item.kind}: a mixed image does "
                f"not belong to its text. Received: data.mixup={config.data.mixup}, "
                f"objectives[{i}].kind={item.kind}"
            )
    names = [item.name for item in objectives]
    if len(set(names)) != len(names):
        raise ValueError(
            "objectives must each be there once; raise the weight instead. "
            f"Received: {', '.join(names)}"
        )
    teaches = any(isinstance(x, DistillConfig) and x.target == "classes" for x in objectives)
    if config.image.distillation_token and config.image.classes is not None and not teaches:
        raise ValueError(
            "image.distillation_token needs an objective of kind distill with target=classes, "
            f"which its head learns. Received: objectives={', '.join(names)}"
        )


def check_tree(objectives: tuple[ObjectiveConfig, ...], labels: LabelSet | None) -> None:
    """Raises ValueError if an objective needs a tree of classes that the label set has not.

    Args:
        objectives: What is learnt.
        labels: The run's label set; None for none.
    """
    for i, item in enumerate(objectives):
        is_semantic = isinstance(item, ClassifyConfig) and item.loss == "semantic"
        if is_semantic and (labels is None or not labels.parents):
            raise ValueError(
                f"objectives[{i}].loss=semantic needs a tree of the classes: `parents` in the "
                "label set, which is the classes.json of a pipeline's input or of --labels, with "
                "the id of the class above each class, or -1 at the top. Received: "
                + ("no label set" if labels is None else "a label set without parents")
            )


def _check_head(key: str, config: Config, of_what: str) -> None:
    if config.image.classes is None:
        raise ValueError(
            f"{key} needs a head. Received: image.classes=none. Set it to the number of classes"
            f"{of_what}."
        )


def log_prior(global_batch_size: int) -> float:
    """Returns the logit of the share of positives among the pairs of a batch."""
    # A batch of one pair has no negatives, and any bias will do.
    return -math.log(max(global_batch_size - 1, 1))
