"""The label set of zero-shot classification: class names and prompt templates."""

import json
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class LabelSet:
    """Class names and the prompt templates that turn each into captions.

    Attributes:
        names: Class names; the position is the class id.
        templates: Prompts with one `{}` where the class name goes.
    """

    names: tuple[str, ...]
    templates: tuple[str, ...] = ("a photo of {}",)

    def __post_init__(self) -> None:
        if len(set(self.names)) != len(self.names) or not all(self.names):
            raise ValueError(f"names must be distinct and not empty. Received: names={self.names}")
        broken = [template for template in self.templates if template.count("{}") != 1]
        if broken or not self.templates:
            raise ValueError(
                "templates must each hold '{}' exactly once, and there must be at least one. "
                f"Received: templates={self.templates}"
            )

    def prompts(self) -> list[list[str]]:
        """Returns the prompts of each class, `len(names)` lists of `len(templates)` texts."""
        return [
            [template.replace("{}", name) for template in self.templates] for name in self.names
        ]

    def to_json(self) -> str:
        """Returns the label set as JSON text."""
        return json.dumps(asdict(self), ensure_ascii=False, indent=1)

    @classmethod
    def from_json(cls, text: str) -> "LabelSet":
        """Reads a label set from JSON text with `names` and, optionally, `templates`."""
        data = json.loads(text)
        unknown = sorted(set(data) - {"names", "templates"})
        if unknown or "names" not in data:
            raise ValueError(
                "A label set is a JSON object with 'names' and 'templates'. "
                f"Received: keys={sorted(data)}"
            )
        templates = data.get("templates", cls.templates)
        return cls(names=tuple(data["names"]), templates=tuple(templates))
