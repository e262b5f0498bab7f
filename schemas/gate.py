"""The thresholds that a model must reach before it is published."""

import json
from dataclasses import asdict, dataclass, field
from typing import Any

from sigline.schemas import strict

# Properties of examples that metrics are sliced by.
DIMENSIONS = ("source", "language", "caption_words", "image_size", "prompts", "corruption", "grid")


@dataclass(frozen=True)
class Gate:
    """The thresholds of a model.

    Keys are names of metrics, or `METRIC/DIMENSION=VALUE` for a slice. Rules that compare with the
    last blessed model apply only if there is one.

    Attributes:
        minimum: Smallest value.
        maximum: Largest value, for metrics that are better low: errors, times, sizes, leaks.
        above_chance: Smallest factor by which a metric must exceed its value under guessing.
        max_drop: Largest amount by which a metric may fall below the last blessed model's on the
            same examples. A larger drop is refused only if its interval excludes 0, so that chance
            alone refuses no model.
        max_rise: As `max_drop`, for metrics that are better low.
        max_ratio: Largest factor by which a cost may exceed the last blessed model's.
        slice_minimum: Smallest value of the metric in every slice of a dimension, as
            `{metric: {dimension: value}}`.
        slice_max_drop: As `max_drop`, in every slice of a dimension.
        max_parity_difference: Largest absolute difference between the components of embeddings
            in the trainer and in the SavedModel, if the trainer has stored some embeddings.
        min_slice_examples: Slices with fewer examples are not judged.
        confidence: Confidence level of the intervals.
        seed_std: Standard deviation of a metric between runs that differ only in their seed, if it
            was measured. It widens the intervals of differences, so that another seed alone is not
            taken for a regression.
    """

    minimum: dict[str, float] = field(default_factory=dict)
    maximum: dict[str, float] = field(default_factory=dict)
    above_chance: dict[str, float] = field(default_factory=dict)
    max_drop: dict[str, float] = field(default_factory=dict)
    max_rise: dict[str, float] = field(default_factory=dict)
    max_ratio: dict[str, float] = field(default_factory=dict)
    slice_minimum: dict[str, dict[str, float]] = field(default_factory=dict)
    slice_max_drop: dict[str, dict[str, float]] = field(default_factory=dict)
    max_parity_difference: float = 1e-4
    min_slice_examples: int = 20
    confidence: float = 0.95
    seed_std: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in _BY_METRIC:
            _check_numbers(name, getattr(self, name))
        for name in _BY_DIMENSION:
            _check_mapping(name, getattr(self, name))
            for metric, limits in getattr(self, name).items():
                _check_numbers(f"{name}.{metric}", limits)
                if unknown := sorted(set(limits) - set(DIMENSIONS)):
                    raise ValueError(
                        f"{name}.{metric} must name dimensions: {', '.join(DIMENSIONS)}. "
                        f"Received: {', '.join(unknown)}"
                    )
        _check_numbers("seed_std", self.seed_std)
        if not any(getattr(self, name) for name in (*_BY_METRIC, *_BY_DIMENSION)):
            raise ValueError(
                "A gate must have at least one threshold; it would bless every model. "
                f"Received: none of {', '.join((*_BY_METRIC, *_BY_DIMENSION))}"
            )
        scalars = ("confidence", "min_slice_examples", "max_parity_difference")
        _check_numbers("A gate", {name: getattr(self, name) for name in scalars})
        if not 0.0 < self.confidence < 1.0 or self.min_slice_examples < 1:
            raise ValueError(
                "confidence must lie between 0 and 1, and min_slice_examples must be at least 1. "
                f"Received: confidence={self.confidence}, "
                f"min_slice_examples={self.min_slice_examples}"
            )

    def to_json(self) -> str:
        """Returns the gate as JSON text."""
        return json.dumps(asdict(self), sort_keys=True)

    def changed(self, changes: Any) -> "Gate":
        """Returns the gate with other thresholds.

        Args:
            changes: In the form that `from_dict` reads. Other thresholds stay; null removes one.

        Raises:
            ValueError: If a key is unknown, or a value is no number.
        """
        _check_mapping("gate", changes)
        return self.from_dict(_merged(asdict(self), changes))

    @classmethod
    def from_dict(cls, data: Any) -> "Gate":
        """Reads a gate from the parsed content of a JSON or YAML file.

        Raises:
            ValueError: If a key is unknown, or a value is no number.
        """
        return strict.build(cls, data, "gate.")

    @classmethod
    def from_json(cls, text: str) -> "Gate":
        """Reads a gate from JSON text."""
        return cls.from_dict(json.loads(text))


_BY_METRIC = ("minimum", "maximum", "above_chance", "max_drop", "max_rise", "max_ratio")
_BY_DIMENSION = ("slice_minimum", "slice_max_drop")


def _merged(values: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    merged = dict(values)
    for key, change in changes.items():
        if change is None:
            merged.pop(key, None)
        elif isinstance(change, dict) and isinstance(merged.get(key), dict):
            merged[key] = _merged(merged[key], change)
        else:
            merged[key] = change
    return merged


def _check_mapping(name: str, value: Any) -> None:
    if not isinstance(value, dict):
        raise ValueError(f"{name} must be a mapping. Received: {value!r}")


def _check_numbers(name: str, value: Any) -> None:
    _check_mapping(name, value)
    for key, limit in value.items():
        if isinstance(limit, bool) or not isinstance(limit, int | float) or limit != limit:
            raise ValueError(f"{name} must hold numbers. Received: {key}={limit!r}")
