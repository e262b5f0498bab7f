"""The label set: class names, the templates of their prompts, and a tree of the classes."""

import json
from dataclasses import asdict, dataclass

from sigline.schemas import class_tree


@dataclass(frozen=True)
class LabelSet:
    """Class names and the prompt templates that turn each into captions.

    Attributes:
        names: Class names; the position is the class id.
        templates: Prompts with one `{}` where the class name goes.
        parents: For each class the id of the class above it, or -1 at the top; empty for classes
            without a tree.
    """

    names: tuple[str, ...]
    templates: tuple[str, ...] = ("a photo of {}",)
    parents: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if len(set(self.names)) != len(self.names) or not all(self.names):
            raise ValueError(f"names must be distinct and not empty. Received: names={self.names}")
        broken = [template for template in self.templates if template.count("{}") != 1]
        if broken or not self.templates:
            raise ValueError(
                "templates must each hold '{}' exactly once, and there must be at least one. "
                f"Received: templates={self.templates}"
            )
        if self.parents:
            class_tree.check(self.parents, num_classes=len(self.names))

    def prompts(self) -> list[list[str]]:
        """Returns the prompts of each class, `len(names)` lists of `len(templates)` texts."""
        return [
            [template.replace("{}", name) for template in self.templates] for name in self.names
        ]

    def to_json(self) -> str:
        """Returns the label set as JSON text."""
        content = asdict(self)
        if not self.parents:
            # Without a tree the text, which enters digests, is what it was before there were trees.
            del content["parents"]
        return json.dumps(content, ensure_ascii=False, indent=1)

    @classmethod
    def from_json(cls, text: str) -> "LabelSet":
        """Reads a label set from JSON text with `names` and, if need be, `templates` and `parents`.

        Raises:
            ValueError: If the text is no label set, or the parents make no tree.
        """
        data = json.loads(text)
        unknown = sorted(set(data) - {"names", "templates", "parents"})
        if unknown or "names" not in data:
            raise ValueError(
                "A label set is a JSON object with 'names' and 'templates', and 'parents' for a "
                f"tree of classes. Received: keys={sorted(data)}"
            )
        parents = data.get("parents", [])
        if not isinstance(parents, list):
            raise ValueError(f"parents must be a list of class ids. Received: parents={parents!r}")
        return cls(
            names=tuple(data["names"]),
            templates=tuple(data.get("templates", cls.templates)),
            parents=tuple(parents),
        )
