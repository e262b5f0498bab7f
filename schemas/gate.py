"""The thresholds that a model must reach before it is published."""

import json
from dataclasses import asdict, dataclass, field


@dataclass(frozen=True)
class Gate:
    """What a model must reach.

    Attributes:
        minimum: Smallest value of a metric, by name.
        above_chance: Smallest factor by which a metric exceeds another that holds its chance level,
            as `{metric: (chance metric, factor)}`.
        max_drop: Largest amount by which a metric may fall below the last blessed model's, by name.
    """

    minimum: dict[str, float] = field(default_factory=dict)
    above_chance: dict[str, tuple[str, float]] = field(default_factory=dict)
    max_drop: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not (self.minimum or self.above_chance or self.max_drop):
            raise ValueError("A gate must have at least one threshold; it would bless every model.")

    def to_json(self) -> str:
        """Returns the gate as JSON text."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> "Gate":
        """Reads a gate from JSON text."""
        data = json.loads(text)
        chance = {name: tuple(value) for name, value in data.pop("above_chance", {}).items()}
        return cls(above_chance=chance, **data)
