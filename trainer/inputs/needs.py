"""What a batch holds of each example, as the objectives of a run ask for it."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple, TypeVar

from sigline.trainer.config import ImageTowerConfig
from sigline.trainer.inputs import preprocess
from sigline.trainer.inputs.views import View

# Names in a batch.
IMAGE, TEXT, LABEL = "image", "text", "label"

_Item = TypeVar("_Item")


class Labels(NamedTuple):
    """Class ids of an example: a row of `most` ids, filled with -1.

    Attributes:
        classes: Ids are below this.
        most: Most labels of a record.
        required: Whether a record must have one.
    """

    classes: int
    most: int
    required: bool


class Needs(NamedTuple):
    """What a batch holds.

    Attributes:
        images: Views by their names in the batch.
        texts: How a text, the same for all, becomes tokens, by their names in the batch.
        labels: Class ids, `label` in the batch; None for none.
    """

    images: Mapping[str, View] = {}
    texts: Mapping[str, preprocess.Tokenizer] = {}
    labels: Labels | None = None


def merged(needs: Iterable[Needs]) -> Needs:
    """Returns what several objectives need together.

    Raises:
        ValueError: If two of them mean different things by one name.
    """
    images: dict[str, View] = {}
    texts: dict[str, preprocess.Tokenizer] = {}
    labels: dict[str, Labels] = {}
    for item in needs:
        _add(images, item.images)
        _add(texts, item.texts)
        _add(labels, {LABEL: item.labels} if item.labels else {})
    return Needs(images, texts, labels.get(LABEL))


def of_pairs(image: ImageTowerConfig, tokenizer: preprocess.Tokenizer | None) -> Needs:
    """Returns one view of each image and, with a tokenizer, its text."""
    return Needs({IMAGE: View(image)}, {} if tokenizer is None else {TEXT: tokenizer})


def _add(known: dict[str, _Item], more: Mapping[str, _Item]) -> None:
    for name, item in more.items():
        if known.setdefault(name, item) != item:
            raise ValueError(
                f"Objectives must mean the same by {name} of a batch. "
                f"Received: {known[name]} and {item}"
            )
