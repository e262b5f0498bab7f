"""Options for measuring more than the eval split with the model's own classes."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

from sigline.components.evaluate.corruptions import Corruption
from sigline.schemas import strict
from sigline.schemas.labels import LabelSet


@dataclass(frozen=True)
class Options:
    """What is measured.

    Attributes:
        labels: Further prompts of the model's classes by name, such as a language.
        probes: Whether probes learn from the training split.
        corruptions: What is done to images to see how robust the model is.
    """

    labels: Mapping[str, LabelSet] = field(default_factory=dict)
    probes: bool = False
    corruptions: tuple[Corruption, ...] = ()

    def to_json(self) -> str:
        """Returns the options as JSON."""
        return json.dumps(asdict(self), sort_keys=True, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> "Options":
        """The inverse of `to_json`."""
        return strict.build(cls, json.loads(text))


def corruption(text: str, name: str) -> Corruption:
    """Reads `KIND@SEVERITY`.

    Args:
        text: The text.
        name: Name of the option, for error messages.

    Raises:
        ValueError: If it is something else.
    """
    kind, _, severity = text.partition("@")
    if not severity.isdigit():
        raise ValueError(f"{name} reads KIND@SEVERITY, such as blur@3. Received: {text}")
    return Corruption(kind, int(severity))
